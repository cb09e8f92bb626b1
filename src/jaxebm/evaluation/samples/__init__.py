"""Are the samples like the data? Distances between two sets, in pixels or in the features of a classifier."""
