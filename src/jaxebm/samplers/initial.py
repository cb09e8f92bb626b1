"""Initial distributions of chains: unbatched callables ``initial(rng_key, label) -> position``.

They are pytrees whose arrays are leaves, so they are arguments of compiled programs and not constants.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.trees import dimension
from jaxebm.types import Array, Position

__all__ = [
    "ClassGaussianInitial",
    "GaussianInitial",
    "Initial",
    "NormalInitial",
    "UniformInitial",
    "uniform_like",
]

Initial: TypeAlias = Callable[[Array, Array], Position]
"""``(rng_key, label) -> position``: one draw, for one class (an int32 scalar, 0 where there are none)."""

_T = TypeVar("_T")
_STATIC = {"static": True}


def _pytree(cls: type[_T]) -> type[_T]:
    """Registers a dataclass as a pytree whose fields are checked where it is made, not where JAX rebuilds it.

    ``jax.tree_util.register_dataclass`` rebuilds it by its constructor, from tracers, shardings and
    placeholders of any kind, which no check could tell from wrong arguments.
    """
    own: Any = cls
    names = [part.name for part in fields(own) if not part.metadata.get("static")]
    static = [part.name for part in fields(own) if part.metadata.get("static")]

    def flatten(made: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(made, name) for name in names), tuple(getattr(made, name) for name in static)

    def flatten_with_keys(made: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, constants = flatten(made)
        return tuple(zip(map(jax.tree_util.GetAttrKey, names), children, strict=True)), constants

    def unflatten(constants: tuple[Any, ...], children: Any) -> Any:
        made = object.__new__(cls)
        for name, value in (*zip(names, children, strict=True), *zip(static, constants, strict=True)):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@_pytree
@dataclass(frozen=True)
class UniformInitial:
    """Uniform noise on [low, high), from which JEM restarts its chains; it ignores the label.

    Attributes:
      low: lower end, ``()``.
      high: upper end, ``()``.
      shape: shape of one position.
      dtype: floating-point type of one position; ``None`` is JAX's default, float32 (float64 under x64).

    Raises:
      ValueError: if low is not below high, an end is not finite, or the shape holds negative numbers.
      TypeError: if an end is no number, the shape no tuple of integers, or the dtype not floating-point.

    Example:
      >>> initial = UniformInitial(-1.0, 1.0, shape=(8, 8, 1))
      >>> initial(jax.random.key(0), jnp.array(3)).shape
      (8, 8, 1)
    """

    low: Array | float
    high: Array | float
    shape: tuple[int, ...] = field(metadata=_STATIC)
    dtype: Any = field(default=None, metadata=_STATIC)

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high)
        _check_position_shape(self.shape)
        object.__setattr__(self, "dtype", _floating_dtype(self.dtype))

    def __call__(self, rng_key: Array, label: Array) -> Array:
        """Returns one draw, of ``shape``; the label is ignored."""
        del label
        return _uniform(rng_key, self.shape, self.dtype, self.low, self.high)


@_pytree
@dataclass(frozen=True)
class NormalInitial:
    """Independent Gaussian noise N(0, s^2 I), from which matched energies lead to data; it ignores the label.

    Attributes:
      scale: s > 0, its standard deviation, ``()``.
      shape: shape of one position.
      dtype: floating-point type of one position; ``None`` is JAX's default, float32 (float64 under x64).

    Raises:
      ValueError: if the scale is not positive, or the shape holds negative numbers.
      TypeError: if the scale is no number, the shape no tuple of integers, or the dtype not floating-point.

    Example:
      >>> initial = NormalInitial(1.0, shape=(8, 8, 1))
      >>> initial(jax.random.key(0), jnp.array(3)).shape
      (8, 8, 1)
    """

    scale: Array | float
    shape: tuple[int, ...] = field(metadata=_STATIC)
    dtype: Any = field(default=None, metadata=_STATIC)

    def __post_init__(self) -> None:
        checks.array("scale", _stand_in(self.scale), (), "one number, shape (),")
        if not isinstance(self.scale, jax.ShapeDtypeStruct):
            checks.positive_number("scale", self.scale)
        _check_position_shape(self.shape)
        object.__setattr__(self, "dtype", _floating_dtype(self.dtype))

    def __call__(self, rng_key: Array, label: Array) -> Array:
        """Returns one draw, of ``shape``; the label is ignored."""
        del label
        checks.rng_key("rng_key", rng_key)
        dtype = jax.dtypes.canonicalize_dtype(float if self.dtype is None else self.dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        return (self.scale * jax.random.normal(rng_key, self.shape, wide)).astype(dtype)


@_pytree
@dataclass(frozen=True)
class GaussianInitial:
    r"""A Gaussian with full covariance, optionally clamped; it ignores the label.

    .. math:: x = \mathrm{clip}(\mu + L n, low, high), \qquad n \sim N(0, I), \quad L L^T = \Sigma

    Attributes:
      mean: mu, of the shape of one position, with d entries; any pytree of arrays, flattened in the order of
        ``jax.flatten_util.ravel_pytree``.
      factor: L, ``(d, d)``.
      low: lower clamp ``()``, or ``None``.
      high: upper clamp ``()``, or ``None``.

    Raises:
      ValueError: if the factor is not ``(d, d)``, or low is not below high.
      TypeError: if the mean is not floating-point, or the factor or an end not of real numbers.

    Example:
      >>> initial = GaussianInitial(jnp.zeros((2, 2)), 0.1 * jnp.eye(4))
      >>> initial(jax.random.key(0), jnp.array(0)).shape
      (2, 2)
    """

    mean: Position
    factor: Array
    low: Array | float | None = None
    high: Array | float | None = None

    def __post_init__(self) -> None:
        _check_filled("mean", self.mean)
        d = dimension(self.mean)
        checks.array("factor", _stand_in(self.factor), (d, d), f"({d}, {d}) for the {d} entries of mean")
        _check_clamps(self.low, self.high)

    def __call__(self, rng_key: Array, label: Array) -> Position:
        """Returns one draw, of the shape of the mean; the label is ignored."""
        del label
        checks.rng_key("rng_key", rng_key)
        noise = jax.random.normal(rng_key, (dimension(self.mean),), _common_dtype(self.mean))
        return _moved(self.mean, self.factor @ noise, self.low, self.high)


@_pytree
@dataclass(frozen=True)
class ClassGaussianInitial:
    """One Gaussian per class, with full covariance: the label selects the mean and the factor.

    Attributes:
      means: ``(num_classes, ...)``, each of the shape of one position, with d entries; or any pytree of such
        arrays.
      factors: ``(num_classes, d, d)``.
      low: lower clamp ``()``, or ``None``.
      high: upper clamp ``()``, or ``None``.

    Raises:
      ValueError: if the factors are not ``(num_classes, d, d)``, or low is not below high.
      TypeError: if the means are not floating-point, or the factors or an end not of real numbers.

    Example:
      >>> initial = ClassGaussianInitial(jnp.zeros((10, 2, 2)), jnp.stack([0.1 * jnp.eye(4)] * 10))
      >>> initial(jax.random.key(0), jnp.array(7)).shape
      (2, 2)
    """

    means: Position
    factors: Array
    low: Array | float | None = None
    high: Array | float | None = None

    def __post_init__(self) -> None:
        _check_filled("means", self.means)
        num_classes = checks.batch_length("means", _stand_in(self.means), "one mean a class")
        d = dimension(self.means) // num_classes
        wanted = f"({num_classes}, {d}, {d}) for the {num_classes} classes of means and its {d} entries"
        checks.array("factors", _stand_in(self.factors), (num_classes, d, d), wanted)
        _check_clamps(self.low, self.high)

    @property
    def num_classes(self) -> int:
        """The number of Gaussians."""
        return np.shape(self.factors)[0]

    def __call__(self, rng_key: Array, label: Array) -> Position:
        """Returns one draw from the Gaussian of class ``label``, an integer scalar (NaN of an unknown one).

        Raises:
          TypeError: if the label is no integer.
          ValueError: if it is not in 0..num_classes - 1.
        """
        checks.rng_key("rng_key", rng_key)
        checks.integer_labels("label", label, self.num_classes)
        mean = jax.tree.map(
            lambda leaf: leaf.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False),
            jax.tree.map(jnp.asarray, self.means),
        )
        noise = jax.random.normal(rng_key, (dimension(mean),), _common_dtype(mean))
        # The products of all classes, then selection: under vmap this is one matrix product, while selecting
        # the factor first would copy a (d, d) matrix for each chain (37 MB at 32x32x3).
        return _moved(mean, (self.factors @ noise)[label], self.low, self.high)


@_pytree
@dataclass(frozen=True)
class _UniformTree:
    """Uniform noise in every leaf of a pytree of positions."""

    low: Array | float
    high: Array | float
    shapes: tuple[tuple[int, ...], ...] = field(metadata=_STATIC)
    dtypes: tuple[Any, ...] = field(metadata=_STATIC)
    structure: Any = field(metadata=_STATIC)

    def __call__(self, rng_key: Array, label: Array) -> Position:
        del label
        checks.rng_key("rng_key", rng_key)
        keys = jax.random.split(rng_key, len(self.shapes))
        leaves = [
            _uniform(key, shape, dtype, self.low, self.high)
            for key, shape, dtype in zip(keys, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def uniform_like(example: Position, low: float = -1.0, high: float = 1.0) -> Initial:
    """Uniform noise on [low, high) in the shape of an example: the default initial distribution of chains.

    Args:
      example: one position, any pytree of arrays or of their shapes.
      low: lower end, finite.
      high: upper end, finite.

    Returns:
      The initial distribution, a pytree: `UniformInitial` where the example is one array. Draws have the
      floating-point types of the example, where its leaves are floating-point, else JAX's default.

    Raises:
      ValueError: if low is not below high, or the example has no array.
      TypeError: if an end is no number, or the example no array of real numbers.

    Example:
      >>> initial = uniform_like({"a": jnp.zeros(3), "b": jnp.zeros((2, 2))})
      >>> jax.tree.map(jnp.shape, initial(jax.random.key(0), jnp.array(0)))
      {'a': (3,), 'b': (2, 2)}
    """
    _check_ends(low, high)
    for leaf in jax.tree.leaves(example):
        if not hasattr(leaf, "shape"):
            checks.array("example", leaf)
        elif not jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"example has dtype {leaf.dtype}: real numbers are needed.")
    leaves, structure = jax.tree.flatten(example)
    shapes = tuple(tuple(jnp.shape(leaf)) for leaf in leaves)
    if not any(0 not in shape for shape in shapes):
        raise ValueError("example holds no array with an entry: chains need a shape to start from.")
    given = [getattr(leaf, "dtype", None) for leaf in leaves]
    dtypes = tuple(d if d is None or jnp.issubdtype(d, jnp.floating) else None for d in given)
    if structure == jax.tree.structure(0):
        return UniformInitial(low, high, shape=shapes[0], dtype=dtypes[0])
    return _UniformTree(low, high, shapes, tuple(map(_floating_dtype, dtypes)), structure)


def _check_ends(low: Any, high: Any) -> None:
    for name, end in (("low", low), ("high", high)):
        if not isinstance(end, jax.ShapeDtypeStruct):
            checks.number(name, end)
    _check_order(low, high)


def _check_clamps(low: Any, high: Any) -> None:
    for name, end in (("low", low), ("high", high)):
        if end is not None:
            checks.array(name, _stand_in(end), (), "one number, shape (), or None")
    _check_order(-np.inf if low is None else low, np.inf if high is None else high)


def _check_order(low: Any, high: Any) -> None:
    unknown = any(checks.is_traced(end) or isinstance(end, jax.ShapeDtypeStruct) for end in (low, high))
    if not unknown and not low < high:
        raise ValueError(f"low={low}, high={high}: low must be less than high.")


def _check_position_shape(shape: Any) -> None:
    checks.instance("shape", shape, (tuple, list), "Such as shape=(28, 28, 1).")
    for length in shape:
        checks.integer("shape", length, 0)


def _stand_in(tree: Any) -> Any:
    """The tree with an array, which takes no memory, for each ``jax.ShapeDtypeStruct`` in it."""
    return jax.tree.map(
        lambda leaf: (
            np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        tree,
    )


def _check_filled(name: str, tree: Any) -> None:
    checks.floating(name, _stand_in(tree))
    if not dimension(tree):
        raise ValueError(f"{name} holds no entry: chains need a shape to start from.")


def _floating_dtype(dtype: Any) -> Any:
    """A dtype that hashes and compares by value, as JAX computes with it; None for JAX's default."""
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.floating):
        raise TypeError(
            f"dtype={dtype!r}: dtype must be a floating-point type, such as jnp.float32, or None."
        )
    return known


def _common_dtype(tree: Any) -> Any:
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)


def _uniform(rng_key: Array, shape: tuple[int, ...], dtype: Any, low: Any, high: Any) -> Array:
    checks.rng_key("rng_key", rng_key)
    # Drawn in float32 or wider, and rounded: bfloat16 itself has 128 values in [0, 1).
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.random.uniform(rng_key, shape, wide, minval=low, maxval=high).astype(dtype)


def _moved(mean: Position, offset: Array, low: Any, high: Any) -> Position:
    """The mean plus an offset ``(d,)`` over all its leaves, clamped, in the dtypes of the mean."""
    leaves, structure = jax.tree.flatten(mean)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    parts = [offset] if len(leaves) == 1 else jnp.split(offset, ends[:-1])
    moved = [
        jnp.clip(leaf + part.reshape(leaf.shape), low, high).astype(jnp.result_type(leaf))
        for leaf, part in zip(leaves, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)
