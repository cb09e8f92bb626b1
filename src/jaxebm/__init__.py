"""jaxebm: energy-based models in JAX.

An energy-based model is a pure function ``energy(params, x)``: one example in, one scalar out, low where data
are; p(x) = exp(-E(x)) / Z. Everything else here is a function of that function:

- `jaxebm.energies`: energies, from analytic targets to classifiers (JEM) and Flax networks, and their
  composition.
- `jaxebm.hopfield`: associative memories, classical to modern, as energies; retrieval, storage, Flax layers.
- `jaxebm.samplers`: kernels (SGLD, MALA, HMC, NUTS), chains by ``lax.scan``, the replay buffer.
- `jaxebm.data`: images, two-dimensional densities, and batches drawn inside the compiled step.
- `jaxebm.objectives`: training objectives with samples of the model (`likelihood`, `jem`) and without
  (score matching, noise contrast, energy matching), and samplers of negatives.
- `jaxebm.evaluation`: log Z, calibration, out-of-distribution scores, sample quality.
- `jaxebm.training`: `learner` and `fit`, recovery from divergence, checkpoints, the run's folder.
- `jaxebm.report`: the evaluation card of any energy or classifier.
- `jaxebm.recipes`: published recipes as configurations; `train`, `load`, and the command ``jaxebm``.

Example:
  >>> import jax, jax.numpy as jnp, jaxebm
  >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
  >>> start = jnp.zeros((1000, 2))
  >>> x = jaxebm.sample(jax.random.key(0), energy, jnp.array([3.0, -1.0]), start, 200, step_size=0.05)
  >>> bool(jnp.all(jnp.abs(jnp.mean(x, axis=0) - jnp.array([3.0, -1.0])) < 0.2))
  True
"""

from jaxebm import signals_at_start as signals_at_start  # first: it acts while the rest is imported

# isort: split
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jaxebm.data.examples import Examples
from jaxebm.energies.adapters import from_nnx, unbatched
from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.objectives import (
    NegativeSampler,
    Objective,
    classifier,
    contrastive_divergence,
    jem,
    likelihood,
    persistent,
    short_run,
)
from jaxebm.samplers import hmc, mala, nuts, run_annealed_chain, run_chain, run_chains, sample, sgld
from jaxebm.training import Checkpointing, FitResult, Learner, fit, learner, open_run
from jaxebm.types import EnergyFn, Kernel, LogitsFn, MakeKernel

if TYPE_CHECKING:
    from jaxebm.recipes import Model

__version__ = version("jaxebm")

__all__ = [
    "Checkpointing",
    "EnergyFn",
    "Examples",
    "FitResult",
    "Kernel",
    "Learner",
    "LogitsFn",
    "MakeKernel",
    "NegativeSampler",
    "Objective",
    "__version__",
    "classifier",
    "contrastive_divergence",
    "fit",
    "from_nnx",
    "hmc",
    "jem",
    "joint_energy",
    "learner",
    "likelihood",
    "load",
    "mala",
    "marginal_energy",
    "nuts",
    "open_run",
    "persistent",
    "run_annealed_chain",
    "run_chain",
    "run_chains",
    "sample",
    "sgld",
    "short_run",
    "unbatched",
]


def load(path: Any, **options: Any) -> "Model":
    """Loads a trained model from the folder of its run: `jaxebm.recipes.load`, imported when it is called.

    Args:
      path: the folder of a run of ``jaxebm train`` or `jaxebm.recipes.train`.
      **options: ``select`` and ``step``, as there.

    Returns:
      A `jaxebm.recipes.Model`.

    Raises:
      FileNotFoundError: if there is no run, or no such checkpoint.
      ValueError: if its files cannot be read.

    Example:
      >>> load("nowhere")
      Traceback (most recent call last):
      FileNotFoundError: nowhere holds no run...
    """
    from jaxebm.recipes import load

    return load(path, **options)
