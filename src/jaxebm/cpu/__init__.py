"""Code for CPUs, where the form that XLA chooses is slow; on other platforms the work is left to JAX.

`jaxebm.cpu.convolution` has a convolution, `jaxebm.cpu.noise` the random numbers of a step. Both choose by
the platform that a program is compiled for, and their results are those of JAX.
"""
