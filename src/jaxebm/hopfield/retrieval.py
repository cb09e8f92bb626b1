"""Recall: from a query to a memory by steps that lower the energy.

`retrieve` moves all coordinates at once, `retrieve_asynchronously` one after the other; `trajectory` keeps
every state on the way. Recall at a temperature is sampling: see `jaxebm.hopfield.glauber`, and any kernel of
`jaxebm.samplers` on `jaxebm.hopfield.density_energy`. All are of one query; a batch is ``jax.vmap(retrieve,
(None, 0))(memory, queries)``.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.hopfield.family import AssociativeMemory, UpdateRule, check_rule, moved
from jaxebm.hopfield.validation import COLUMNS, memory_arrays, spins, vector
from jaxebm.trees import wide_dtype
from jaxebm.types import Array

__all__ = ["Retrieval", "check_query", "retrieve", "trajectory"]


class Retrieval(NamedTuple):
    """The result of a retrieval.

    Attributes:
      state: where it came to rest, or the last state, shape (D,). Its energy, which takes as long as half a
        step, is `jaxebm.hopfield.energy` of it.
      steps: steps taken, or sweeps over the coordinates, shape (), int32.
      period: 1 if the state is a fixed point, 2 if it takes turns with one other state, 0 if ``max_steps``
        came first; shape (), int32.
    """

    state: Array
    steps: Array
    period: Array

    @property
    def converged(self) -> Array:
        """Whether the state is a fixed point, shape (), bool. A cycle is not."""
        return self.period == 1


def check_query(memory: AssociativeMemory, query: Any, clamped: Any) -> Array:
    """Returns the query as an array of the memory's width; raises if one of the arguments is invalid."""
    memory_arrays("memory", memory)
    vector("query", query, memory.dimension, COLUMNS)
    checks.finite("query", query)
    if memory.states == "spins":
        spins("query", query, unknown=True)
    elif memory.states == "bits":
        checks.in_range("query", query, 0.0, 1.0)
    if clamped is not None:
        vector("clamped", clamped, memory.dimension, "True for each coordinate to hold")
        if jnp.asarray(clamped).dtype != bool:
            raise TypeError(f"clamped has dtype {jnp.asarray(clamped).dtype}: booleans are needed.")
    dtype = jax.tree.leaves(memory)[0].dtype
    return jnp.asarray(query, dtype)


def _step(
    memory: AssociativeMemory,
    x: Array,
    step_size: Array | float,
    free: Array | None,
    rule: UpdateRule,
) -> Array:
    following = moved(memory, x, rule)
    if memory.states == "reals":
        following = (1 - step_size) * x + step_size * following  # exact at step 1, however large x is
    return following if free is None else jnp.where(free, following, x)


def _check_step_size(memory: AssociativeMemory, step_size: Any) -> None:
    checks.positive("step_size", step_size)
    checks.one_number("step_size", step_size)
    if memory.states != "reals" and not (isinstance(step_size, float | int) and step_size == 1):
        raise ValueError(f"step_size={step_size!r}: spins and bits move by whole steps, step_size=1.")


def retrieve(
    memory: AssociativeMemory,
    query: Any,
    *,
    max_steps: int = 100,
    tolerance: float = 1e-5,
    step_size: float = 1.0,
    clamped: Any = None,
    rule: UpdateRule = "tangent",
) -> Retrieval:
    """Recalls by synchronous steps, until the state has converged.

    x <- x + step_size (update(x) - x). With step 1 and the rule "tangent" this is the concave-convex step of
    `jaxebm.hopfield.energy`, which never raises the energy of a `PatternMemory`; smaller steps follow the
    continuous dynamics.

    The result of real states is differentiable with respect to the memory (and to clamped coordinates) by the
    implicit function theorem: where x rests, r(x, memory) = 0, so dx = -(dr/dx)^-1 dr. The steps themselves
    are not differentiated, and a fixed point does not depend on where its basin was entered.

    Args:
      memory: any memory of this package.
      query: shape (D,). Of spins, 0 stands for an unknown entry.
      max_steps: when to give up, at least 1.
      tolerance: a state rests if no coordinate moves by more, in the units of x.
      step_size: in (0, 1]; 1 for spins and bits. `GradedMemory` needs about 0.1 to 0.5.
      clamped: shape (D,), True for coordinates that are held at the query's value; None for none.
      rule: of spins and bits, as in `jaxebm.hopfield.update`: "difference" is the published step, which
        corrects more of a network whose couplings with itself are large, and can end in a cycle.

    Returns:
      A `Retrieval`.

    Raises:
      ValueError: if a shape is wrong, the query is not of the memory's kind, or a number is out of range.
      TypeError: if ``memory`` is no memory, or ``clamped`` is not boolean.

    Example:
      >>> from jaxebm.hopfield.memories import modern
      >>> found = retrieve(modern(jnp.array([[1.0, 0.0], [0.0, 1.0]]), beta=20.0), jnp.array([0.7, 0.4]))
      >>> print(jnp.round(found.state, 2), bool(found.converged))
      [1. 0.] True
      >>> from jaxebm.hopfield.pairwise import pairwise
      >>> found = retrieve(pairwise([[0.0, -1.0], [-1.0, 0.0]]), jnp.array([1.0, 1.0]))
      >>> int(found.period), bool(found.converged)
      (2, False)
    """
    checks.positive_integer("max_steps", max_steps)
    checks.non_negative("tolerance", tolerance)
    checks.one_number("tolerance", tolerance)
    query = check_query(memory, query, clamped)
    _check_step_size(memory, step_size)
    check_rule(memory, rule)
    free = None if clamped is None else ~jnp.asarray(clamped)
    return _retrieve(memory, query, max_steps, tolerance, jnp.asarray(step_size, query.dtype), free, rule)


@partial(jax.jit, static_argnames="rule")
def _retrieve(
    memory: Any,
    query: Array,
    max_steps: Array | int,
    tolerance: Array | float,
    step_size: Array | float,
    free: Array | None,
    rule: UpdateRule,
) -> Retrieval:
    recall = partial(_descend, rule=rule) if memory.states != "reals" else _fixed_point
    x, counts = recall(memory, query, max_steps, tolerance, step_size, free)
    steps, period = counts.astype(jnp.int32)
    return Retrieval(x, steps, period)


def _descend(
    memory: Any,
    query: Array,
    max_steps: Any,
    tolerance: Any,
    step_size: Any,
    free: Array | None,
    rule: UpdateRule,
) -> tuple[Array, Array]:
    """Returns the last state, and steps and period as floats, (2,), of at least 32 bits to count exactly."""

    def go_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, _, steps, period = carry
        return (period == 0) & (steps < max_steps)

    def advance(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        before, x, steps, _ = carry
        following = _step(memory, x, step_size, free, rule)
        rests = jnp.max(jnp.abs(following - x)) <= tolerance
        returns = (jnp.max(jnp.abs(following - before)) <= tolerance) & (steps > 0)
        period = jnp.where(rests, 1, jnp.where(returns, 2, 0)).astype(jnp.int32)
        return x, following, steps + 1, period

    zero = jnp.zeros((), jnp.int32)
    _, x, steps, period = jax.lax.while_loop(go_on, advance, (query, query, zero, zero))
    return x, jnp.stack([steps, period]).astype(wide_dtype(x))


@jax.custom_jvp
def _fixed_point(
    memory: Any, query: Array, max_steps: Any, tolerance: Any, step_size: Any, free: Array | None
) -> tuple[Array, Array]:
    return _descend(memory, query, max_steps, tolerance, step_size, free, "tangent")


@_fixed_point.defjvp
def _implicit_derivative(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """0 = r(x, memory, query) along the solution, so (dr/dx) dx = -dr."""
    memory, query, *_, free = primals
    x, counts = _fixed_point(*primals)

    def residual(x: Array, memory: Any, query: Array) -> Array:
        if free is None:
            return memory.residual(x)
        # Clamped coordinates enter as constants, so that the Jacobian of the free ones stays symmetric.
        return jnp.where(free, memory.residual(jnp.where(free, x, query)), x - query)

    _, drift = jax.jvp(partial(residual, x), (memory, query), tangents[:2])
    _, jacobian = jax.linearize(lambda x: residual(x, memory, query), x)
    solver = jax.scipy.sparse.linalg.cg if memory.symmetric else jax.scipy.sparse.linalg.gmres

    def solve(jacobian: Any, right: Array) -> Array:
        return cast(Array, solver(jacobian, right, tol=1e-7)[0])

    # Wrapped once more, because jax.scipy's solvers cannot be transposed where the right side is a tangent.
    change = jax.lax.custom_linear_solve(
        jacobian, -drift, solve, transpose_solve=solve, symmetric=memory.symmetric
    )
    return (x, counts), (change, jnp.zeros_like(counts))


def trajectory(
    memory: AssociativeMemory,
    query: Any,
    num_steps: int,
    *,
    step_size: float = 1.0,
    clamped: Any = None,
    rule: UpdateRule = "tangent",
) -> tuple[Array, Array]:
    """Takes a number of synchronous steps and returns them all, for pictures and for derivatives.

    Args:
      memory: any memory of this package.
      query: shape (D,).
      num_steps: T, at least 1.
      step_size: as in `retrieve`.
      clamped: as in `retrieve`.
      rule: as in `retrieve`.

    Returns:
      ``(states, energies)``, shapes (T + 1, D) and (T + 1,); the first is the query.

    Raises:
      ValueError: as `retrieve`.
      TypeError: as `retrieve`.

    Example:
      >>> from jaxebm.hopfield.memories import modern
      >>> memory = modern(jnp.array([[1.0, 0.0], [0.0, 1.0]]), beta=4.0)
      >>> states, energies = trajectory(memory, jnp.array([0.7, 0.4]), 5)
      >>> states.shape, bool(jnp.all(jnp.diff(energies) <= 1e-6))
      ((6, 2), True)
    """
    checks.positive_integer("num_steps", num_steps)
    query = check_query(memory, query, clamped)
    _check_step_size(memory, step_size)
    check_rule(memory, rule)
    free = None if clamped is None else ~jnp.asarray(clamped)
    return _trajectory(memory, query, jnp.asarray(step_size, query.dtype), free, num_steps, rule)


@partial(jax.jit, static_argnames=("num_steps", "rule"))
def _trajectory(
    memory: Any, query: Array, step_size: Array, free: Array | None, num_steps: int, rule: UpdateRule
) -> tuple[Array, Array]:
    def advance(x: Array, _: None) -> tuple[Array, Array]:
        following = _step(memory, x, step_size, free, rule)
        return following, following

    _, states = jax.lax.scan(advance, query, length=num_steps)
    states = jnp.concatenate([query[None, :], states])
    return states, jax.vmap(memory.energy)(states)
