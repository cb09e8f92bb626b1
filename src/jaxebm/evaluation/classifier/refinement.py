r"""Classifiers that first move their input by a sampler (JEM's refinement), fully differentiable.

A *defended* classifier is ``(rng_key, params, x) -> (K,)``: logits that may use noise, which is what
`jaxebm.evaluation.classifier.robustness` attacks. ``deterministic`` makes one of plain logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from jaxebm import checks
from jaxebm.energies.classifier import marginal_energy
from jaxebm.samplers.chains import run_chain
from jaxebm.types import Array, EnergyFn, Kernel, LogitsFn, MakeKernel, Params, Position

__all__ = ["DefendedFn", "deterministic", "refine", "refined_logits"]

DefendedFn: TypeAlias = Callable[[Array, Params, Position], Array]
"""``(rng_key, params, x) -> (K,)``: the logits of one example, whose computation may use noise."""


@dataclass(frozen=True)
class _Deterministic:
    logits: LogitsFn

    def __call__(self, rng_key: Array, params: Params, x: Position, /) -> Array:
        del rng_key
        return self.logits(params, x)


@dataclass(frozen=True)
class _Refine:
    make_kernel: MakeKernel
    energy: EnergyFn
    num_steps: int

    def __call__(self, rng_key: Array, params: Params, x: Position, /) -> Position:
        if self.num_steps == 0:
            return x
        kernel = self.make_kernel(lambda position: self.energy(params, position))

        # Backward, a step is computed again from its position instead of keeping every layer's output of
        # every step: memory grows by one position per step. The info of the step is dropped, or its
        # square roots at a gradient of zero would turn the derivative into NaN.
        @jax.checkpoint
        def step(step_key: Array, state: Any) -> Any:
            return kernel.step(step_key, state)[0]

        quiet = Kernel(kernel.init, lambda step_key, state: (step(step_key, state), None))
        return run_chain(rng_key, quiet, x, self.num_steps)[0].position


@dataclass(frozen=True)
class _RefinedLogits:
    logits: LogitsFn
    refinement: _Refine

    def __call__(self, rng_key: Array, params: Params, x: Position, /) -> Array:
        return self.logits(params, self.refinement(rng_key, params, x))


def deterministic(logits: LogitsFn) -> DefendedFn:
    """Returns plain logits in the form for attacks: the key is not used.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.

    Returns:
      ``(rng_key, params, x) -> (K,)``; equal for equal logits, so ``jit`` does not trace again.

    Raises:
      TypeError: if the logits are no such function.

    Example:
      >>> import jax.numpy as jnp
      >>> deterministic(lambda params, x: params @ x)(jax.random.key(0), jnp.eye(2), jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    checks.function("logits", logits, "params", "x")
    return _Deterministic(logits)


def refine(
    make_kernel: MakeKernel, energy: EnergyFn, num_steps: int
) -> Callable[[Array, Params, Position], Position]:
    r"""Returns a function that moves an input by a few steps of a sampler on the energy, towards the data.

    x_0 = x, x_{t+1} = kernel step on E(params, .) from x_t; the result is x_{num_steps}. A small perturbation
    that left the data is undone, if the model is good; one that changed what the image shows is not.

    The result can be differentiated with respect to x through all steps (reverse mode, each step computed
    twice; as smooth as the kernel is: where a clip or a clamp of the kernel binds, the derivative of that
    entry is 0).

    Args:
      make_kernel: target -> kernel, such as ``functools.partial(sgld, step_size=..., noise_scale=...)``.
        Make it once: two equal partials are different objects, for which ``jit`` compiles twice.
      energy: ``(params, x) -> ()``, for one example.
      num_steps: at least 0; 0 returns x.

    Returns:
      ``(rng_key, params, x) -> x``, for one example.

    Raises:
      ValueError: if ``num_steps`` is not an integer of at least 0.
      TypeError: if a function is none, or takes other arguments.

    Example:
      >>> from functools import partial
      >>> import jax.numpy as jnp
      >>> from jaxebm.samplers.langevin import sgld
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> halfway = refine(partial(sgld, step_size=0.5, noise_scale=0.0), energy, 1)
      >>> halfway(jax.random.key(0), jnp.ones(2), jnp.array([3.0, 1.0])).tolist()
      [2.0, 1.0]

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), section 5.4.
    """
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.function("energy", energy, "params", "x")
    checks.integer("num_steps", num_steps, 0)
    return _Refine(make_kernel, energy, num_steps)


def refined_logits(logits: LogitsFn, make_kernel: MakeKernel, num_steps: int) -> DefendedFn:
    r"""Returns JEM's refined classifier: a few steps of the sampler on E(x), then the logits.

    f(x_{num_steps}), with x_0 = x and x_{t+1} a step on E(x) = -logsumexp_y f(x)[y]. With 0 steps it is the
    plain classifier. The gradient of an attack runs through the chain. In JEM's own evaluation it did not:
    its attacks saw the classifier alone, and its robust accuracies with refinement are upper bounds for
    that.

    Args:
      logits: ``(params, x) -> (K,)``, for one example.
      make_kernel: as in ``refine``. Choose the one the model was trained with.
      num_steps: at least 0.

    Returns:
      ``(rng_key, params, x) -> (K,)``, for one example.

    Raises:
      ValueError: if ``num_steps`` is not an integer of at least 0.
      TypeError: if a function is none, or takes other arguments.

    Example:
      >>> from functools import partial
      >>> import jax.numpy as jnp
      >>> from jaxebm.samplers.langevin import sgld
      >>> defended = refined_logits(lambda params, x: params @ x, partial(sgld, step_size=0.1), 3)
      >>> defended(jax.random.key(0), jnp.eye(2), jnp.ones(2)).shape
      (2,)

    Reference:
      Grathwohl et al. 2020 (JEM, arXiv 1912.03263), section 5.4; Athalye et al. 2018 (arXiv 1802.00420) on
      defences that merely hide their gradient.
    """
    checks.function("logits", logits, "params", "x")
    refinement = refine(make_kernel, marginal_energy(logits), num_steps)
    assert isinstance(refinement, _Refine)
    return _RefinedLogits(logits, refinement)
