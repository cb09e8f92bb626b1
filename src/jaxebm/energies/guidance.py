"""Guidance: the energy of a model, conditioned on a class or, at noise levels, on observed coordinates."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.energies.classifier import log_class_probability, only_of_class
from jaxebm.energies.compose import check_alike, check_observation
from jaxebm.energies.levels import at_level
from jaxebm.types import Array, EnergyFn, LevelEnergyFn, LevelLogitsFn, LogitsFn, Params, Position

__all__ = ["clamp_at", "guided_energy", "guided_energy_at"]


def guided_energy(
    energy: EnergyFn, logits: LogitsFn, label: Array | int, strength: Array | float = 1.0
) -> EnergyFn:
    r"""Conditions a model on a class by a classifier.

    .. math:: E(x \mid y) = E(x) - s \log p(y \mid x), \qquad p(y \mid x) = \mathrm{softmax}(f(x))[y]

    At strength s = 1 it is Bayes' rule: if p(x) = exp(-E(x)) / Z and the classifier is that of the same joint
    density, the result is p(x | y), and its normaliser Z p(y). Above 1 samples are more typical of the class
    and less varied; at 0 it is E.

    The energy and the classifier may be two networks, of two sets of parameters, or one network, whose
    parameters are then given twice: with E(x) = -logsumexp f(x) of the same logits and s = 1 it is the joint
    energy E(x, y) = -f(x)[y].

    Energies that are told a noise level need a classifier of noisy examples, told the level, too:
    ``lambda params, x, level: guided_energy(at_level(energy_at, level), at_level(logits_at, level), label)(
    params, x)``, with ``at_level`` of this room.

    Args:
      energy: E, ``energy(params, x) -> ()`` for one example.
      logits: f, ``logits(params, x) -> (K,)`` for one example.
      label: y, one integer of shape (); may be traced, so that ``jax.vmap`` gives each chain its class.
      strength: s >= 0, shape (); may be traced.

    Returns:
      The energy ``(params, x) -> ()``, params a pair: those of the energy and those of the classifier.

    Raises:
      TypeError: if energy or logits are no functions of two arguments or label no integer or, when it is
        called, if the energy's output is no real number.
      ValueError: if the label is negative or no scalar, or the strength not one number of at least 0 or, when
        it is called, if params is no pair, the logits of one example are not ``(K,)``, or the label is not
        one of their classes (NaN if it is traced).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> guided = guided_energy(
      ...     lambda params, x: 0.5 * jnp.sum(x**2), lambda params, x: params @ x, 1, strength=2.0)
      >>> round(float(guided((None, jnp.eye(2)), jnp.array([0.0, 3.0]))), 4)
      4.5972

    Reference:
      Dhariwal & Nichol 2021 (arXiv 2105.05233), equation 14; Sohl-Dickstein et al. 2015 (arXiv 1503.03585).
    """
    checks.function("energy", energy, "params", "x")
    checks.function("logits", logits, "params", "x")
    checks.array("label", label, (), "one class, shape (),")
    if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
        raise TypeError(f"label has dtype {jnp.result_type(label)}: one integer class is needed.")
    checks.non_negative("label", label)
    checks.non_negative_number("strength", strength)
    log_probability = log_class_probability(logits)

    def guided(params: Params, x: Position, /) -> Array:
        if not isinstance(params, tuple | list) or len(params) != 2:
            found = f"{len(params)} entries" if isinstance(params, tuple | list) else type(params).__name__
            raise ValueError(f"params is {found}: a pair is needed, of the energy's and the classifier's.")
        value = energy(params[0], x)
        checks.scalar_energy("energy", value)
        probabilities = only_of_class(log_probability(params[1], x), label, "label")
        of_class = probabilities.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return value - strength * of_class

    return guided


@dataclass(frozen=True)
class _GuidedLevelEnergy:
    logits_at: LevelLogitsFn
    strength: float | Array

    def __call__(self, params: Params, x: Position, y: Array, level: Array, /) -> Array:
        values = only_of_class(at_level(self.logits_at, level)(params, x), y)
        return (self.strength - 1) * jax.nn.logsumexp(values) - self.strength * values[y]


def guided_energy_at(logits_at: LevelLogitsFn, strength: float | Array = 1.0) -> _GuidedLevelEnergy:
    r"""The same of one network that is told a noise level: its logits give the energy and the classifier.

    .. math::

      E(x \mid y; \sigma) = -\log \sum_k e^{f(x; \sigma)_k} - s \log p(y \mid x; \sigma)
                         = (s - 1) \log \sum_k e^{f(x; \sigma)_k} - s f(x; \sigma)_y

    It costs one gradient of the network. At s = 1 it is the energy of `jaxebm.energies.joint_energy_at`.

    Args:
      logits_at: f, ``logits_at(params, x, level) -> (K,)`` for one example.
      strength: s >= 0, shape (); may be traced.

    Returns:
      ``energy_at(params, x, y, level) -> ()``, y one integer.

    Raises:
      TypeError: if ``logits_at`` is no function of three arguments.
      ValueError: if the strength is not one number of at least 0 or, when it is called, if y is no class (NaN
        if it is traced).

    Example:
      >>> import jax.numpy as jnp
      >>> energy_at = guided_energy_at(lambda params, x, level: params @ x / level, strength=2.0)
      >>> round(float(energy_at(jnp.eye(2), jnp.array([0.0, 3.0]), 1, 1.0)), 4)  # 3.0486 - 2 * 3
      -2.9514

    Reference:
      Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4; Ho & Salimans 2022 (arXiv 2207.12598), equation 6,
      whose w is s - 1.
    """
    checks.function("logits_at", logits_at, "params", "x", "level")
    checks.non_negative_number("strength", strength)
    return _GuidedLevelEnergy(logits_at, strength)


def clamp_at(
    energy_at: LevelEnergyFn, mask: Position, values: Position, scale: Array | float
) -> LevelEnergyFn:
    r"""Conditions an energy that is told its noise level on some coordinates of the clean example.

    .. math::

      E(x \mid \text{values}; \sigma) = E(x; \sigma)
        + \frac{1}{2 v} \sum_{i: \text{mask}_i} (\hat{x}_i - \text{values}_i)^2, \qquad
      \hat{x} = x - \sigma^2\, \partial E / \partial x, \quad
      v = \frac{\sigma^2 s^2}{\sigma^2 + s^2}

    Here x is noisy everywhere, and the expected clean example (Tweedie) is held to the observed values: as if
    it had, given x, independent errors of the variance v, which is that of coordinates of standard deviation
    s under noise. It is exact for independent coordinates of this deviation, tends to ``clamp`` as the level
    falls, and is an approximation elsewhere. Show samples through ``fill``.

    Its gradient costs two of E: it holds the second derivative along one direction.

    Args:
      energy_at: E, ``energy_at(params, x, level) -> ()``.
      mask: booleans, the pytree and shapes of x, True where observed; may be traced.
      values: the observed values of the clean example, the pytree and shapes of x; entries that are not
        observed are never read (may be NaN).
      scale: s > 0, the standard deviation of one coordinate of the data, in the units of x, ``()``; may be
        traced.

    Returns:
      ``energy(params, x, level) -> ()``, the level above 0; ``predictor_corrector`` draws from it.

    Raises:
      TypeError: if energy_at is no function of (params, x, level), mask is not boolean or values is not
        floating-point or, when it is called, if the energy's output is no real number.
      ValueError: if mask and values differ in tree structure or shape, the scale is not one positive number
        or, when it is called, if x has other shapes or the level is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> energy_at = lambda mean, x, level: 0.5 * jnp.sum((x - mean) ** 2) / (1 + level**2)
      >>> observed = clamp_at(energy_at, jnp.array([True, False]), jnp.array([3.0, 0.0]), 1.0)
      >>> print(observed(0.0, jnp.array([2.0, 0.0]), 1.0))  # 1 + (1 - 3)^2 / (2 * 1/2)
      5.0

    Reference:
      Ho et al. 2022 (arXiv 2204.03458), equation 7, reconstruction guidance; Song et al. 2023, Pseudoinverse-
      guided diffusion models for inverse problems (ICLR), for v.
    """
    checks.function("energy_at", energy_at, "params", "x", "level")
    check_observation(mask, values)
    checks.positive_number("scale", scale)

    def clamped_energy(params: Params, x: Position, level: Array, /) -> Array:
        check_alike("x", x, mask)
        checks.floating("x", x)
        checks.positive_number("level", level)
        value, slope = jax.value_and_grad(lambda x: _scalar(energy_at, params, x, level))(x)
        variance = 1 / (1 / jnp.square(level) + 1 / jnp.square(scale))

        def misfit(part: Array, slope: Array, seen: Array, observed: Array) -> Array:
            # where before the square: a NaN in an unobserved value reaches neither energy nor gradient.
            offset = jnp.where(seen, part - jnp.square(level) * slope - observed, 0.0)
            return 0.5 * jnp.sum(jnp.square(offset))

        misfits = jax.tree.leaves(jax.tree.map(misfit, x, slope, mask, values))
        return value + sum(misfits) / variance

    return clamped_energy


def _scalar(energy_at: LevelEnergyFn, params: Params, x: Position, level: Array) -> Array:
    value = energy_at(params, x, level)
    checks.scalar_energy("energy_at", value)
    return value
