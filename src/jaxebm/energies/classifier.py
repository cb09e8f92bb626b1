"""A classifier is an energy-based model: from logits f(x) to E(x, y), E(x) and p(y|x).

Grathwohl et al. (2020) read the K logits of any classifier as the negative energies of the pairs (x, y):

    E(x, y) = -f(x)[y],    E(x) = -log sum_y exp(f(x)[y]),    p(y|x) = softmax(f(x))[y],

so that log p(x, y) = log p(y|x) + log p(x) holds exactly, with one normaliser Z for both densities.

The energies that are returned here compare and hash by their logits function:
``marginal_energy(f) == marginal_energy(f)``. They may therefore be static arguments of ``jax.jit``, and made
again without a second compilation.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array, EnergyFn, JointEnergyFn, LogitsFn, Params, Position, Target

__all__ = [
    "class_conditional_target",
    "complement_energy",
    "joint_energy",
    "log_class_probability",
    "marginal_energy",
]


def _class_logits(logits: LogitsFn, params: Params, x: Position) -> Array:
    values = logits(params, x)
    if np.ndim(values) != 1:
        raise ValueError(
            f"logits(params, x) has shape {np.shape(values)}: it must be (num_classes,) for one example x; "
            f"batch with jax.vmap around the energy."
        )
    return values


def _check_one_class(y: Array | int) -> None:
    if np.ndim(y) != 0:
        raise ValueError(
            f"y has shape {np.shape(y)}: one class, shape (), is needed; batch with jax.vmap over y."
        )


def only_of_class(values: Array, y: Array | int, name: str = "y") -> Array:
    """Returns ``values (K,)``, after a check that y is one of their classes; all NaN if a traced y is not.

    NaN in every entry, because then derivatives are NaN too. An index out of range has derivative 0, and a
    chain would move by its noise alone.
    """
    _check_one_class(y)
    num_classes = values.shape[0]
    if not checks.is_traced(y):
        # As a numpy array, since under jit even the minimum of a concrete jax array is traced.
        checks.integer_labels(name, np.asarray(y), num_classes)
        return values
    checks.integer_labels(name, y, num_classes)
    return values * jnp.where((y >= 0) & (y < num_classes), 1.0, jnp.nan).astype(values.dtype)


def _logits_with_class(logits: LogitsFn, params: Params, x: Position, y: Array | int) -> Array:
    return only_of_class(_class_logits(logits, params, x), y)


@dataclass(frozen=True)
class _MarginalEnergy:
    logits: LogitsFn

    def __call__(self, params: Params, x: Position, /) -> Array:
        return -jax.nn.logsumexp(_class_logits(self.logits, params, x))


@dataclass(frozen=True)
class JointEnergy:
    """E(x, y) = -f(x)[y] of logits f; made by `joint_energy`."""

    logits: LogitsFn

    def __call__(self, params: Params, x: Position, y: Array, /) -> Array:
        values = _logits_with_class(self.logits, params, x, y)
        return -values.at[y].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@dataclass(frozen=True)
class _ComplementEnergy:
    logits: LogitsFn

    def __call__(self, params: Params, x: Position, y: Array, /) -> Array:
        values = _logits_with_class(self.logits, params, x, y)
        if values.shape[0] < 2:
            raise ValueError("logits has one class: a second one is needed for what is not of the first.")
        excluded = jnp.arange(values.shape[0]) == y
        others = jax.nn.logsumexp(jnp.where(excluded, -jnp.inf, values))
        return jnp.where(jnp.any(excluded), jax.nn.logsumexp(values) - others, jnp.nan)


@dataclass(frozen=True)
class _LogClassProbability:
    logits: LogitsFn

    def __call__(self, params: Params, x: Position, /) -> Array:
        return jax.nn.log_softmax(_class_logits(self.logits, params, x))


def marginal_energy(logits: LogitsFn) -> EnergyFn:
    """Returns the energy of x that a classifier defines, with its classes summed out.

    E(x) = -log sum_y exp(f(x)[y]).

    Args:
      logits: f, ``logits(params, x) -> (K,)`` for one example x; for instance the ``apply`` of a Flax module.

    Returns:
      ``energy(params, x) -> ()``. It raises ``ValueError`` if the logits of one example are not of rank 1.

    Raises:
      TypeError: if logits is no function of two arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = marginal_energy(lambda params, x: params @ x)
      >>> round(float(energy(jnp.eye(2), jnp.zeros(2))), 4)
      -0.6931

    Reference:
      Grathwohl et al., "Your classifier is secretly an energy based model and you should treat it like one",
      ICLR 2020, equations 6 and 7.
    """
    checks.function("logits", logits, "params", "x")
    return _MarginalEnergy(logits)


def joint_energy(logits: LogitsFn) -> JointEnergyFn:
    """Returns the energy of the pair (x, y) that a classifier defines.

    E(x, y) = -f(x)[y], y in 0..K-1.

    Args:
      logits: f, ``logits(params, x) -> (K,)`` for one example x.

    Returns:
      ``energy(params, x, y) -> ()``, y one integer of shape (). It raises ``TypeError`` for a y that is no
      integer and ``ValueError`` for one out of range; a traced y cannot be checked, and gives NaN if it is
      out of range.

    Raises:
      TypeError: if logits is no function of two arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = joint_energy(lambda params, x: params @ x)
      >>> float(energy(jnp.eye(2), jnp.array([1.0, 3.0]), 1))
      -3.0

    Reference:
      Grathwohl et al. (2020), equation 5.
    """
    checks.function("logits", logits, "params", "x")
    return JointEnergy(logits)


def complement_energy(logits: LogitsFn) -> JointEnergyFn:
    """Returns the energy of "x is not of class y", to be added to others: the negation of a class.

    E_not(x, y) = -log(1 - p(y|x)) = logsumexp_y' f(x)[y'] - logsumexp_{y' != y} f(x)[y'] >= 0.

    ``product(of_class_a, not_of_class_b)`` is proportional to p(x) p(a|x) (1 - p(b|x)), a density wherever
    that of class a is one. `negation` of E(x, y) divides by p(x|y) itself instead, and so by a part of p(x):
    samples leave the data.

    Args:
      logits: f, ``logits(params, x) -> (K,)`` for one example x, K of at least 2.

    Returns:
      ``energy(params, x, y) -> ()``, in nats, y one integer of shape (). It raises as that of `joint_energy`
      does for a y that is not an integer or out of range; a traced y that is out of range gives NaN.

    Raises:
      TypeError: if logits is no function of two arguments.
      ValueError: when the energy is called, if there is only one class.

    Example:
      >>> import jax.numpy as jnp
      >>> energy = complement_energy(lambda params, x: params @ x)
      >>> print(energy(jnp.eye(2), jnp.zeros(2), 1).round(3))  # -log(1/2)
      0.693

    Reference:
      Grathwohl et al. (2020), equation 5; Du et al. (2020, arXiv 2004.06030), concept negation, whose form
      is `negation`.
    """
    checks.function("logits", logits, "params", "x")
    return _ComplementEnergy(logits)


def log_class_probability(logits: LogitsFn) -> LogitsFn:
    """Returns the classifier itself: the log-probability of each class.

    log p(y|x) = f(x)[y] - log sum_y' exp(f(x)[y']) = E(x) - E(x, y).

    Args:
      logits: f, ``logits(params, x) -> (K,)`` for one example x.

    Returns:
      ``log_probability(params, x) -> (K,)``, in nats.

    Raises:
      TypeError: if logits is no function of two arguments.

    Example:
      >>> import jax.numpy as jnp
      >>> log_probability = log_class_probability(lambda params, x: params @ x)
      >>> print(log_probability(jnp.eye(2), jnp.zeros(2)).round(3))
      [-0.693 -0.693]

    Reference:
      Grathwohl et al. (2020), equation 4.
    """
    checks.function("logits", logits, "params", "x")
    return _LogClassProbability(logits)


def class_conditional_target(logits: LogitsFn, params: Params, y: Array | int) -> Target:
    """Binds parameters and one class, for drawing x from p(x|y).

    p(x|y) = exp(f(x)[y]) / Z(y), the target x -> E(x, y).

    Args:
      logits: f, ``logits(params, x) -> (K,)`` for one example x.
      params: parameters of the logits.
      y: the class, one integer of shape (). To run one chain per class, make the target inside the function
        that ``jax.vmap`` maps over y.

    Returns:
      ``target(x) -> ()``, which any ``MakeKernel`` takes.

    Raises:
      TypeError: if y is not an integer, logits no function of two arguments, or params holds no arrays.
      ValueError: if y is not a scalar or is negative. A y of K or more is reported when the target is first
        called, since K is not known before.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits = lambda params, x: params @ x
      >>> x = jnp.array([1.0, 2.0, 3.0])
      >>> print(jax.vmap(lambda y: class_conditional_target(logits, jnp.eye(3), y)(x))(jnp.arange(3)))
      [-1. -2. -3.]

    Reference:
      Grathwohl et al. (2020), section 5.1 (class-conditional samples).
    """
    checks.array("y", y)
    _check_one_class(y)
    if not jnp.issubdtype(jnp.asarray(y).dtype, jnp.integer):
        raise TypeError(f"y={y!r} has dtype {jnp.asarray(y).dtype}: an integer class is needed.")
    checks.non_negative("y", y)
    checks.arrays("params", params)
    label = jnp.asarray(y)
    joint = joint_energy(logits)

    def target(x: Position) -> Array:
        with checks.shapes_noted(params=params, x=x):
            return joint(params, x, label)

    return target
