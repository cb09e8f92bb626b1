"""jaxebm: energy-based models in JAX.

An energy-based model is a pure function ``energy(params, x)``: one example in, one scalar out, low where data
live; p(x) = exp(-E(x)) / Z. Everything else here is a function of that function:

- `jaxebm.energies`: what is modelled, from analytic targets to classifiers (JEM) and Flax networks, and how
  to compose them.
- `jaxebm.hopfield`: associative memories, classical to modern, as energies; retrieval, storage, Flax layers.
- `jaxebm.samplers`: kernels (SGLD, MALA, HMC, NUTS), chains by ``lax.scan``, the replay buffer.
- `jaxebm.objectives`: losses whose gradients learn an energy, and where their negatives come from.
- `jaxebm.evaluation`: log Z, calibration, out-of-distribution scores, sample quality.
- `jaxebm.training`: the compiled step, the loop, checkpoints, the run's folder.
- `jaxebm.data`: images and two-dimensional densities.

Example:
  >>> import jax, jax.numpy as jnp, jaxebm
  >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
  >>> start = jnp.zeros((1000, 2))
  >>> x = jaxebm.sample(jax.random.key(0), energy, jnp.array([3.0, -1.0]), start, 200, step_size=0.05)
  >>> bool(jnp.all(jnp.abs(jnp.mean(x, axis=0) - jnp.array([3.0, -1.0])) < 0.2))
  True
"""

from importlib.metadata import version

from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.samplers import hmc, mala, nuts, run_annealed_chain, run_chain, run_chains, sample, sgld
from jaxebm.types import EnergyFn, Kernel, LogitsFn, MakeKernel

__version__ = version("jaxebm")

__all__ = [
    "EnergyFn",
    "Kernel",
    "LogitsFn",
    "MakeKernel",
    "__version__",
    "hmc",
    "joint_energy",
    "mala",
    "marginal_energy",
    "nuts",
    "run_annealed_chain",
    "run_chain",
    "run_chains",
    "sample",
    "sgld",
]
