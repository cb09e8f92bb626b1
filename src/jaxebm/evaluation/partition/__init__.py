"""Log Z and likelihoods: exact sums, annealed importance sampling, likelihoods of data."""
