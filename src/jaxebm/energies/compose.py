"""Energies made from energies: temper, multiply, mix, negate, condition, tilt.

Each function takes ``energy(params, x)`` and returns another, so that anything which samples, trains or
evaluates an energy takes the result too. Temperatures, strengths, weights, masks and observed values are
ordinary array arguments: made inside ``jax.jit`` from traced values, new values of one shape never recompile.

``product``, ``tilt`` and an unweighted ``mixture`` hold functions only; they compare and hash by those
functions and may be static arguments of ``jax.jit``.

Reference:
  Du, Li and Mordatch, "Compositional visual generation with energy based models", NeurIPS 2020.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.energies.target import log_sum_exp
from jaxebm.types import Array, EnergyFn, Params, Position

__all__ = ["clamp", "fill", "gaussian_log_reference", "mixture", "negation", "product", "tempered", "tilt"]


def tempered(energy: EnergyFn, temperature: Array | float) -> EnergyFn:
    """Heats or cools a model.

    E_T(x) = E(x) / T, so p_T(x) is proportional to p(x)^(1/T).

    Args:
      energy: the energy E of temperature 1.
      temperature: T > 0, shape (); may be traced. Below 1 sharpens the modes, above 1 joins them.

    Returns:
      The energy ``(params, x) -> ()``.

    Raises:
      ValueError: if the temperature is not one positive number.
      TypeError: if energy is no function of (params, x) or, when it is called, its output no real number.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> float(tempered(energy, 2.0)(jnp.zeros(2), jnp.ones(2)))
      0.5
    """
    checks.function("energy", energy, "params", "x")
    checks.positive_number("temperature", temperature)

    def tempered_energy(params: Params, x: Position, /) -> Array:
        return _evaluate("energy", energy, params, x) / temperature

    return tempered_energy


def _evaluate(name: str, energy: EnergyFn, params: Params, x: Position) -> Array:
    value = energy(params, x)
    checks.scalar_energy(name, value)
    return value


def _check_terms(energies: tuple[EnergyFn, ...]) -> None:
    if not energies:
        raise ValueError("energies=(): at least one energy is needed.")
    for index, energy in enumerate(energies):
        checks.function(f"energies[{index}]", energy, "params", "x")


def _evaluate_each(energies: tuple[EnergyFn, ...], params: Params, x: Position) -> Array:
    if not isinstance(params, tuple | list) or len(params) != len(energies):
        found = f"{len(params)} entries" if isinstance(params, tuple | list) else f"a {type(params).__name__}"
        raise ValueError(
            f"params is {found}: a tuple of {len(energies)} is needed, an entry for each energy in turn."
        )
    each = enumerate(zip(energies, params, strict=True))
    return jnp.stack([_evaluate(f"energies[{index}]", energy, part, x) for index, (energy, part) in each])


@dataclass(frozen=True)
class _Product:
    energies: tuple[EnergyFn, ...]

    def __call__(self, params: Params, x: Position, /) -> Array:
        return jnp.sum(_evaluate_each(self.energies, params, x))


@dataclass(frozen=True)
class _Mixture:
    energies: tuple[EnergyFn, ...]

    def __call__(self, params: Params, x: Position, /) -> Array:
        return -log_sum_exp(-_evaluate_each(self.energies, params, x))


def product(*energies: EnergyFn) -> EnergyFn:
    """Returns the product of experts, the conjunction "this and that".

    E(x) = sum_i E_i(x), so p(x) is proportional to prod_i p_i(x).

    Args:
      *energies: the experts E_i, at least one.

    Returns:
      The energy ``(params, x) -> ()``, params a tuple with one entry for each expert.

    Raises:
      ValueError: if there is no expert or, when it is called, if params has another length.
      TypeError: if an expert is no function of (params, x) or, when it is called, its output no real number.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> float(product(energy, energy)((jnp.zeros(2), jnp.ones(2)), jnp.ones(2)))
      1.0

    Reference:
      Hinton, "Training products of experts by minimizing contrastive divergence", 2002; Du et al. (2020),
      conjunction.
    """
    _check_terms(energies)
    return _Product(energies)


def mixture(*energies: EnergyFn, log_weights: Array | None = None) -> EnergyFn:
    """Returns the mixture of models, the disjunction "this or that".

    E(x) = -log sum_i w_i exp(-E_i(x)), so log Z = logsumexp_i(log w_i + log Z_i).

    The weights multiply *unnormalised* terms: component i holds the share w_i Z_i / sum_j w_j Z_j of the
    samples, which is w_i only if all the Z_i are equal. For given shares pi_i set
    log w_i = log pi_i - log Z_i.

    Args:
      *energies: the components E_i, n of them, at least one.
      log_weights: log w_i, shape (n,), not necessarily normalised; may be traced. None means w_i = 1.

    Returns:
      The energy ``(params, x) -> ()``, params a tuple with one entry for each component.

    Raises:
      ValueError: if there is no component, if log_weights is not (n,), holds NaN or +infinity (-infinity
        switches a component off) or switches all off or, when it is called, if params has another length.
      TypeError: if a component is no function of (params, x) or, when it is called, its output no real
        number.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> round(float(mixture(energy, energy)((jnp.zeros(2), jnp.zeros(2)), jnp.zeros(2))), 4)
      -0.6931

    Reference:
      Du et al. (2020), disjunction.
    """
    _check_terms(energies)
    if log_weights is None:
        return _Mixture(energies)
    checks.array("log_weights", log_weights, (len(energies),))
    if not checks.is_traced(log_weights):
        numbers = np.asarray(log_weights)
        if not np.all(numbers < np.inf):
            raise ValueError(f"log_weights={log_weights!r}: each must be a number below +infinity.")
        if np.all(numbers == -np.inf):
            raise ValueError(f"log_weights={log_weights!r}: at least one must be above -infinity.")
    log_weights = jnp.asarray(log_weights)

    # A closure, hashed by identity: arrays do not hash, and jax.jit hashes the function that it is given.
    def weighted_mixture(params: Params, x: Position, /) -> Array:
        return -log_sum_exp(log_weights - _evaluate_each(energies, params, x))

    return weighted_mixture


def negation(energy: EnergyFn, strength: Array | float = 1.0) -> EnergyFn:
    """Inverts an energy, the negation "not that".

    E_not(x) = -strength E(x), so p_not(x) is proportional to p(x)^(-strength).

    Alone it is not a density on an unbounded space, because all mass would be where the energy is highest.
    Multiply it: ``product(this, negation(that, 0.5))`` is proportional to p_this / p_that^0.5, which is a
    density if the energy of ``this`` rises faster than ``strength`` times that of ``that``.

    Args:
      energy: the energy E of the model to avoid.
      strength: at least 0, shape (); may be traced. Du et al. call it alpha.

    Returns:
      The energy ``(params, x) -> ()``.

    Raises:
      ValueError: if the strength is not one number of at least 0.
      TypeError: if energy is no function of (params, x) or, when it is called, its output no real number.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> float(negation(energy, 0.5)(jnp.zeros(2), jnp.ones(2)))
      -0.5

    Reference:
      Du et al. (2020), negation.
    """
    checks.function("energy", energy, "params", "x")
    checks.non_negative_number("strength", strength)

    def negated_energy(params: Params, x: Position, /) -> Array:
        value = _evaluate("energy", energy, params, x)
        # p(x)^0 = 1 where p(x) = 0, too: 0 inf would be NaN.
        return -strength * jnp.where(jnp.isinf(value) & (strength == 0), 0.0, value)

    return negated_energy


def check_alike(name: str, tree: Position, mask: Position) -> None:
    """Raises ``ValueError`` unless ``tree`` has the structure and the shapes of ``mask``."""
    structure, mask_structure = jax.tree.structure(tree), jax.tree.structure(mask)
    if structure != mask_structure:
        raise ValueError(f"{name} has tree structure {structure}: it must be that of mask, {mask_structure}.")
    for leaf, mask_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True):
        if np.shape(leaf) != np.shape(mask_leaf):
            raise ValueError(
                f"{name} has shape {np.shape(leaf)}: that of mask, {np.shape(mask_leaf)}, is needed."
            )


def check_observation(mask: Position, values: Position) -> None:
    """Raises unless ``mask`` holds booleans, and ``values`` floating-point numbers of the same shapes."""
    checks.arrays("mask", mask)
    for leaf in jax.tree.leaves(mask):
        dtype = getattr(leaf, "dtype", np.dtype(type(leaf)))
        if dtype != jnp.bool_:
            raise TypeError(f"mask has dtype {dtype}: booleans, True where observed, are needed.")
    checks.floating("values", values)
    check_alike("values", values, mask)


def _fill(x: Position, mask: Position, values: Position) -> Position:
    check_alike("x", x, mask)
    checks.real_arrays("x", x)
    return jax.tree.map(lambda part, seen, value: jnp.where(seen, value, part), x, mask, values)


def fill(x: Position, mask: Position, values: Position) -> Position:
    """Puts observed values into a position.

    fill(x)_i = values_i where mask_i, else x_i.

    Args:
      x: one position, any pytree of arrays.
      mask: booleans, the pytree and shapes of x, True where observed; may be traced.
      values: the observed values, the pytree and shapes of x; entries that are not observed are never read.

    Returns:
      The filled position.

    Raises:
      TypeError: if mask is not boolean, values is not floating-point or x holds no real numbers.
      ValueError: if the three differ in tree structure or shape.

    Example:
      >>> import jax.numpy as jnp
      >>> print(fill(jnp.zeros(3), jnp.array([True, False, True]), jnp.array([1.0, jnp.nan, 3.0])))
      [1. 0. 3.]
    """
    check_observation(mask, values)
    return _fill(x, mask, values)


def clamp(energy: EnergyFn, mask: Position, values: Position) -> EnergyFn:
    """Conditions a model on some of its coordinates.

    E_c(x) = E(fill(x, mask, values)) + 1/2 sum_{i: mask_i} (x_i - values_i)^2.

    For an energy that is told a noise level see ``clamp_at``.

    The free coordinates follow the conditional p(x_free | x_observed = values) exactly. The clamped
    coordinates of x no longer enter E; the second term makes them independent normals of variance 1 around
    their observed values, so that the whole is a proper density of x's own shape, which Langevin dynamics,
    HMC and AIS take as they take any other, and

        log Z_c = log integral exp(-E(x_free, values)) dx_free + n_clamped / 2 log(2 pi).

    Show samples through ``fill``, which puts the observed values in the place of those normals.

    Args:
      energy: the energy E of whole positions.
      mask: booleans, the pytree and shapes of x, True where observed; may be traced.
      values: the observed values, the pytree and shapes of x; entries that are not observed are never read
        (may be NaN).

    Returns:
      The energy ``(params, x) -> ()``.

    Raises:
      TypeError: if energy is no function of (params, x), mask is not boolean or values is not floating-point
        or, when it is called, the energy's output is no real number.
      ValueError: if mask and values differ in tree structure or shape or, when it is called, x does.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = lambda params, x: 0.5 * jnp.sum((x - params) ** 2)
      >>> observed = clamp(energy, jnp.array([True, False]), jnp.array([3.0, 0.0]))
      >>> float(observed(jnp.zeros(2), jnp.array([3.0, 1.0])))
      5.0
    """
    checks.function("energy", energy, "params", "x")
    check_observation(mask, values)

    def clamped_energy(params: Params, x: Position, /) -> Array:
        filled = _fill(x, mask, values)
        # where before the square: a NaN in an unobserved value reaches neither the energy nor its gradient.
        offsets = jax.tree.map(lambda part, seen, value: jnp.where(seen, part - value, 0.0), x, mask, values)
        tether = sum(0.5 * jnp.sum(offset**2) for offset in jax.tree.leaves(offsets))
        return _evaluate("energy", energy, params, filled) + tether

    return clamped_energy


@dataclass(frozen=True)
class _Tilt:
    energy: EnergyFn
    log_reference: Callable[[Position], Array]

    def __call__(self, params: Params, x: Position, /) -> Array:
        log_density = self.log_reference(x)
        checks.scalar_energy("log_reference", log_density)
        return _evaluate("energy", self.energy, params, x) - log_density


def tilt(energy: EnergyFn, log_reference: Callable[[Position], Array]) -> EnergyFn:
    """Lets an energy correct a reference density, from which it learns only the difference.

    E_q(x) = E(x) - log q(x), so p(x) is proportional to q(x) exp(-E(x)), and Z = E_{x~q}[exp(-E(x))] for
    normalised q.

    A proper q makes p proper wherever E is bounded below, which an energy network alone does not promise.

    Args:
      energy: the correction E.
      log_reference: ``log_reference(x) -> ()``, log q of one position, for instance
        ``gaussian_log_reference``.

    Returns:
      The energy ``(params, x) -> ()``, its params those of ``energy``.

    Raises:
      TypeError: if energy is no function of (params, x) or log_reference none of (x) or, when it is called,
        an output is no real number.

    Example:
      >>> import jax.numpy as jnp
      >>> flat = lambda params, x: jnp.sum(params * x)
      >>> energy = tilt(flat, gaussian_log_reference(0.0, 1.0))
      >>> round(float(energy(jnp.zeros(2), jnp.zeros(2))), 4)
      1.8379

    Reference:
      Xie et al., "A theory of generative ConvNet", ICML 2016: exponential tilting of a reference.
    """
    checks.function("energy", energy, "params", "x")
    checks.function("log_reference", log_reference, "x")
    return _Tilt(energy, log_reference)


def gaussian_log_reference(mean: Array | float, scale: Array | float) -> Callable[[Position], Array]:
    """Returns the log density of a Gaussian with independent coordinates, normalised.

    log q(x) = -1/2 sum_i ((x_i - mean_i) / scale_i)^2 - sum_i log(scale_i) - d/2 log(2 pi).

    Args:
      mean: shape () or that of x; may be traced.
      scale: standard deviations, positive, shape () or that of x; may be traced.

    Returns:
      ``log_reference(x) -> ()`` for one array x of d entries.

    Raises:
      ValueError: if a mean is not finite or a scale not positive or, when it is called, x has another shape.
      TypeError: if one is no array of real numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(gaussian_log_reference(0.0, 1.0)(jnp.zeros(2))), 4)
      -1.8379
    """
    checks.array("mean", mean)
    checks.finite("mean", mean)
    checks.array("scale", scale)
    checks.positive("scale", scale)

    def log_reference(x: Position, /) -> Array:
        for name, value in (("mean", mean), ("scale", scale)):
            if np.shape(value) not in ((), np.shape(x)):
                raise ValueError(
                    f"{name} has shape {np.shape(value)}: () or that of x, {np.shape(x)}, is needed."
                )
        standard = (x - mean) / scale
        log_scales = jnp.broadcast_to(jnp.log(scale), standard.shape)
        return -jnp.sum(0.5 * standard**2 + log_scales) - 0.5 * standard.size * math.log(2 * math.pi)

    return log_reference
