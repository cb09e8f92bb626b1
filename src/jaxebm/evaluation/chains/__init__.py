"""Do the chains sample the energy? Convergence, drift beyond training's length, distance from exp(-E)."""
