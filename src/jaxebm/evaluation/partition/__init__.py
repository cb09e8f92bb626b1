"""What is log Z, and how likely are the data? Exact sums, annealed importance sampling, likelihoods."""
