"""Do the chains sample the energy? Convergence, drift beyond the training length, distance from exp(-E)."""
