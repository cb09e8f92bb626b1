"""Errors that name the argument, what was wrong and what is accepted, raised before anything compiles.

One function for each kind of argument: numbers, integers, choices, random keys, functions, kernels, pytrees,
labels. Traced values are not known and pass unchecked; shapes and dtypes are always checked. Numbers out of
range raise ``ValueError``, values of another type ``TypeError``.
"""

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = [
    "array",
    "arrays",
    "batch_length",
    "batch_of",
    "below_two",
    "boolean",
    "bound_kernel",
    "broadcasts",
    "finite",
    "floating",
    "fraction",
    "function",
    "function_name",
    "function_of_example",
    "in_range",
    "instance",
    "integer",
    "integer_labels",
    "interval",
    "is_traced",
    "kernel_constructor",
    "kernel_parameters",
    "non_negative",
    "non_negative_number",
    "number",
    "one_label_each",
    "one_number",
    "one_of",
    "positive",
    "positive_integer",
    "positive_number",
    "real_arrays",
    "rng_key",
    "rng_keys",
    "same_shapes",
    "scalar_energy",
    "seed",
    "sequence",
    "shapes_noted",
    "text",
]

_MAX_SEED = 2**32 - 1
"""``jax.random.key`` keeps 32 bits of a seed: a larger one repeats the numbers of a smaller one."""

_NOT_NUMBERS = tuple("OSUMm")
"""NumPy's kinds of dtypes for objects, text and times."""


def is_traced(value: Any) -> bool:
    """Returns whether ``value`` is abstract (in ``jit``, ``vmap``, ``grad``), its numbers unknown."""
    return isinstance(value, Tracer)


def _shown(value: Any) -> str:
    """``repr``, cut where it is long: an array of a million numbers is no message."""
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:160]}... ({type(value).__name__})"


def _fail(name: str, value: Any, accepted: str) -> None:
    raise ValueError(f"{name}={_shown(value)}: {name} must be {accepted}.")


def _numbers(name: str, value: Any) -> np.ndarray:
    # np.asarray makes an array of objects of None, a string array of a string; a ragged list raises.
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):
        numbers = np.empty(0, object)
    dtype = numbers.dtype
    # jnp.issubdtype, because NumPy does not count bfloat16 among its numbers.
    if not jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{name}={_shown(value)} is no real number: {name} must be a number or an array of numbers."
        )
    return numbers


def number(name: str, value: Any, reason: str = "") -> None:
    """Raises unless ``value`` is one finite real number, a Python or NumPy number or an array of shape ().

    Args:
      name: the argument's name, for the message.
      value: the argument.
      reason: ends the message about a wrong shape: what to do with several numbers.

    Raises:
      TypeError: if it is no real number.
      ValueError: if it has another shape, or is not finite.
    """
    if not is_traced(value) and not np.all(np.isfinite(_numbers(name, value).astype(float))):
        _fail(name, value, "finite")
    one_number(name, value, reason)


def one_number(name: str, value: Any, reason: str = "") -> None:
    """Raises ``ValueError`` unless ``value``, a number, has shape (). ``reason`` ends the message."""
    shape = np.shape(value)
    if shape != ():
        raise ValueError(
            f"{name} has shape {shape}: one number, shape (), is needed.{reason and ' '}{reason}"
        )


def positive(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and above zero."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        _fail(name, value, "finite and greater than 0")


def non_negative(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` is finite and at least zero."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all(np.isfinite(numbers) & (numbers >= 0)):
        _fail(name, value, "finite and at least 0")


def positive_number(name: str, value: Any, reason: str = "") -> None:
    """Raises unless ``value`` is one finite number above zero, shape (). ``reason`` is as in ``number``."""
    positive(name, value)
    one_number(name, value, reason)


def non_negative_number(name: str, value: Any, reason: str = "") -> None:
    """Raises unless ``value`` is one finite number of at least 0, shape (). ``reason`` as in ``number``."""
    non_negative(name, value)
    one_number(name, value, reason)


def interval(name: str, value: Any, reason: str = "") -> None:
    """Raises unless ``value`` is a pair (low, high) of numbers with low < high; infinite ends pass.

    ``reason`` ends the message about ends of several numbers.
    """
    accepted = f"{name} must be a pair (low, high) of numbers with low < high"
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{name}={_shown(value)}: {accepted}.")
    for end in value:
        if not is_traced(end):
            _numbers(name, end)
        one_number(name, end, reason)
    low, high = value
    if not (is_traced(low) or is_traced(high)) and not low < high:
        raise ValueError(f"{name}={_shown(value)}: {accepted}.")


def in_range(name: str, value: Any, low: float, high: float) -> None:
    """Raises ``ValueError`` unless every entry of ``value`` lies in [low, high]."""
    if is_traced(value):
        return
    numbers = _numbers(name, value)
    if not np.all((numbers >= low) & (numbers <= high)):
        _fail(name, value, f"between {low} and {high}")


def fraction(name: str, value: Any) -> None:
    """Raises unless ``value`` is one number strictly between 0 and 1, shape ()."""
    if not is_traced(value):
        numbers = _numbers(name, value)
        if not np.all((numbers > 0) & (numbers < 1)):
            _fail(name, value, "strictly between 0 and 1")
    one_number(name, value)


def below_two(name: str, value: Any, reason: str) -> None:
    """Raises unless ``value`` is one number above 0 and below 2, where a step of gradients is stable."""
    positive_number(name, value)
    if not is_traced(value) and not _numbers(name, value) < 2:
        _fail(name, value, f"above 0 and below 2: {reason}")


def integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises unless ``value`` is a concrete integer of at least ``low`` (and at most ``high``)."""
    accepted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        _fail(name, value, accepted)
    if value < low or (high is not None and value > high):
        _fail(name, value, accepted)


def positive_integer(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is a concrete integer of at least 1."""
    integer(name, value, 1)


def seed(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is an integer that ``jax.random.key`` tells from all others."""
    integer(name, value, 0, _MAX_SEED)


def boolean(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={_shown(value)}: {name} must be True or False.")


def one_of(name: str, value: Any, accepted: Collection[Any]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of the accepted ones."""
    try:
        known = value in accepted
    except (TypeError, ValueError):  # unhashable, or an array
        known = False
    if not known:
        names = ", ".join(repr(item) for item in accepted)
        raise ValueError(f"{name}={_shown(value)}: {name} must be one of {names}.")


def text(name: str, value: Any) -> None:
    """Raises unless ``value`` is a string with at least one character."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={_shown(value)}: {name} must be a string.")
    if not value:
        raise ValueError(f"{name}='': {name} must not be empty.")


def instance(name: str, value: Any, kind: type | tuple[type, ...], hint: str = "") -> None:
    """Raises ``TypeError`` unless ``value`` is an instance of ``kind``. ``hint`` says how to make one."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
        raise TypeError(
            f"{name} is of type {type(value).__name__}: {name} must be of type {names}.{hint and ' '}{hint}"
        )


def sequence(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raises ``TypeError`` unless ``value`` is a tuple or list of ``kind``. ``what`` names its entries."""
    if isinstance(value, tuple | list) and all(isinstance(entry, kind) for entry in value):
        return
    raise TypeError(f"{name}={_shown(value)}: {name} must be a tuple or list of {what}.")


def rng_key(name: str, value: Any) -> None:
    """Raises unless ``value`` is one typed key of ``jax.random``, shape (): the rule of the whole package."""
    _typed_key(name, value)
    if value.shape != ():
        raise ValueError(
            f"{name} has shape {value.shape}: one key, shape (), is needed; jax.random.split gives several."
        )


def rng_keys(name: str, value: Any, length: int, what: str) -> jax.Array:
    """Returns ``length`` keys: those of ``value``, or of its split if it is one key; or raises.

    ``what`` says in the message what each key is for, such as ``"chains in positions"``.
    """
    _typed_key(name, value)
    if value.ndim == 0:
        return jax.random.split(value, length)
    if value.shape != (length,):
        raise ValueError(
            f"{name} has shape {value.shape}: one key, or ({length},) keys, one for each of the {what}."
        )
    return value


def _typed_key(name: str, value: Any) -> None:
    dtype: Any = getattr(value, "dtype", None)
    if isinstance(value, jax.Array) and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return
    found = f"{name}={_shown(value)}" if dtype is None else f"{name} has dtype {dtype}"
    legacy = ""
    if dtype is not None and dtype == jnp.uint32 and np.shape(value)[-1:] == (2,):
        legacy = f" A key of jax.random.PRNGKey becomes one by jax.random.wrap_key_data({name})."
    raise TypeError(f"{found}: {name} must be a typed key, jax.random.key(seed).{legacy}")


def function(name: str, value: Any, *arguments: str) -> None:
    """Raises ``TypeError`` unless ``value`` can be called with these positional arguments.

    Functions without a readable signature pass.
    """
    called = f"{name}({', '.join(arguments)})"
    if not callable(value):
        raise TypeError(
            f"{name} is of type {type(value).__name__}: {name} must be a function, called as {called}."
        )
    refused = _refused(value, *arguments)
    if refused is not None:
        signature, error = refused
        raise TypeError(
            f"{name}={function_name(value)} takes {signature}: it is called as {called} ({error})."
        )


def function_of_example(name: str, value: Any, *arguments: str) -> None:
    """Raises ``TypeError`` unless it is a function of these arguments, and no module."""
    if hasattr(value, "apply") and hasattr(value, "init"):
        raise TypeError(
            f"{name} is the module {type(value).__name__}: give its function of one example, module.apply "
            "(or jaxebm.unbatched(module.apply) for a module that takes a batch)."
        )
    function(name, value, *arguments)


def _refused(value: Any, *arguments: Any, **keywords: Any) -> tuple[inspect.Signature, TypeError] | None:
    """Returns the signature that does not take these arguments and why, or None.

    A function that ``functools.wraps`` calls another shows the other's signature: its own counts too, unless
    it takes anything and hands it on.
    """
    refused = None
    for follow_wrapped in (True, False):
        try:
            signature = inspect.signature(value, follow_wrapped=follow_wrapped)
        except (TypeError, ValueError):
            continue
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        if not follow_wrapped and inspect.Parameter.VAR_POSITIONAL in kinds:
            continue
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            refused = refused or (signature, error)
        else:
            return None
    return refused


def function_name(value: Any) -> str:
    """Returns the name of a function, that of the function inside a ``functools.partial``."""
    while not hasattr(value, "__name__") and hasattr(value, "func"):  # functools.partial(energy, params)
        value = value.func
    return getattr(value, "__name__", type(value).__name__)


def scalar_energy(name: str, value: Any) -> None:
    """Raises unless ``value``, the output of the energy function ``name`` for one example, is a real scalar.

    Raises:
      TypeError: if it is no array, or an array of integers, booleans or complex numbers.
      ValueError: if its shape is not ().
    """
    if isinstance(value, float):
        return
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        kind = (
            "None, so a return statement may be missing"
            if value is None
            else f"a value of type {type(value).__name__}"
        )
        raise TypeError(f"The energy {name} returned {kind}: an energy maps one example to one real scalar.")
    shape = np.shape(value)
    if shape != ():
        raise ValueError(
            f"The energy {name} returned shape {shape} for one position: an energy maps one "
            f"example to one scalar, shape (). Reduce its output (jnp.sum, or [0] of a last layer of "
            f"width 1), and leave the batch to jax.vmap (run_chains and sample do so)."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"The energy {name} returned dtype {value.dtype}: an energy is a real number of a floating-point "
            f"dtype. Convert it, for example by .astype(jnp.float32) or jnp.real."
        )


def kernel_constructor(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is a function that binds a kernel to a target."""
    accepted = (
        f"{name} must be a function that binds a kernel to a target, such as "
        f"functools.partial(jaxebm.sgld, step_size=0.1)."
    )
    if isinstance(value, str):
        raise TypeError(f"{name}={value!r}: {accepted} The function itself is needed, not its name.")
    if hasattr(value, "init") and hasattr(value, "step"):
        raise TypeError(f"{name} is a kernel that is bound to its target already: {accepted}")
    if not callable(value):
        raise TypeError(f"{name} is of type {type(value).__name__}: {accepted}")


def kernel_parameters(name: str, value: Any, parameters: Mapping[str, Any]) -> None:
    """Raises ``TypeError`` unless a kernel's constructor takes a target and these keyword arguments."""
    refused = _refused(value, None, **parameters)
    if refused is not None:
        signature, error = refused
        raise TypeError(
            f"{name}={function_name(value)} has the parameters {list(signature.parameters)}: it is called "
            f"with a target and {sorted(parameters)} ({error})."
        )


def bound_kernel(name: str, value: Any) -> None:
    """Raises ``TypeError`` unless ``value`` is a kernel: it has the functions ``init`` and ``step``."""
    if callable(getattr(value, "init", None)) and callable(getattr(value, "step", None)):
        return
    accepted = f"{name} must be a kernel bound to its target, such as jaxebm.sgld(target, step_size=0.1)."
    if callable(value):
        raise TypeError(f"{name} is the function {function_name(value)}, not yet bound: {accepted}")
    raise TypeError(f"{name}={_shown(value)}: {accepted}")


def arrays(name: str, tree: Any) -> None:
    """Raises ``TypeError`` unless every leaf of ``tree`` is an number or an array of no text or objects."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            dtype = getattr(leaf, "dtype", None)
            if getattr(dtype, "kind", "") not in _NOT_NUMBERS:
                continue
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} has dtype {dtype}: numbers are needed in {name}."
            )
        raise TypeError(
            f"{name}{jax.tree_util.keystr(path)} is of type {type(leaf).__name__}: arrays are needed in "
            f"{name}."
        )


def array(name: str, value: Any, shape: tuple[int | None, ...] | None = None, accepted: str = "") -> None:
    """Raises unless ``value`` is one array of real numbers, or nested sequences of them, of that shape.

    Args:
      name: the argument's name, for the message.
      value: the argument.
      shape: the shape, None in it for any length; None for any shape.
      accepted: describes the shape in the message, such as ``"(n, d), one row a point,"``.

    Raises:
      TypeError: if it is no array of real numbers.
      ValueError: if it has another shape.
    """
    if not is_traced(value):
        dtype = getattr(value, "dtype", None)
        if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
            _numbers(name, value)
        elif jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{name} has dtype {dtype}: real numbers are needed.")
    if shape is None:
        return
    found = np.shape(value)
    if len(found) != len(shape) or any(s not in (None, f) for s, f in zip(shape, found, strict=True)):
        wanted = accepted or str(shape).replace("None", "any")
        raise ValueError(f"{name} has shape {found}: {wanted} is needed.")


def real_arrays(name: str, tree: Any) -> None:
    """Raises ``TypeError`` unless every leaf of ``tree`` is an array of real numbers, or a real number."""
    arrays(name, tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array(f"{name}{jax.tree_util.keystr(path)}", leaf)


@contextlib.contextmanager
def shapes_noted(**arguments: Any) -> Iterator[None]:
    """Adds the shapes of these arguments to an error that is raised inside, as a note.

    For shapes that only a user's own function can judge: those of parameters and of positions.
    """
    try:
        yield
    except Exception as error:
        shapes = (f"{name} of {_shown(jax.tree.map(np.shape, tree))}" for name, tree in arguments.items())
        error.add_note(f"The shapes were {', '.join(shapes)}.")
        raise


def broadcasts(name: str, value: Any, shape: tuple[int, ...], of: str) -> None:
    """Raises ``ValueError`` unless ``value`` broadcasts to ``shape``, the shape of what ``of`` names."""
    found = np.shape(value)
    wide = (1,) * (len(shape) - len(found)) + tuple(found)
    if len(wide) != len(shape) or any(mine not in (1, full) for mine, full in zip(wide, shape, strict=True)):
        raise ValueError(
            f"{name} has shape {found}: one that broadcasts to {shape}, that of {of}, is needed."
        )


def same_shapes(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises ``ValueError`` unless ``tree`` has the structure and the shapes of ``like``; both are named."""
    arrays(name, tree)
    structure, wanted = jax.tree.structure(tree), jax.tree.structure(like)
    if structure != wanted:
        raise ValueError(f"{name} has the structure {structure}: that of {like_name}, {wanted}, is needed.")
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, leaf), other in zip(leaves, jax.tree.leaves(like), strict=True):
        if np.shape(leaf) != np.shape(other):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}{where} has shape {np.shape(leaf)}: that of {like_name}{where}, {np.shape(other)}, "
                f"is needed."
            )


def floating(name: str, tree: Any) -> None:
    """Raises ``TypeError`` unless every leaf of ``tree`` has a floating-point dtype."""
    arrays(name, tree)
    for leaf in jax.tree.leaves(tree):
        # JAX makes no array of text, so the dtype of an array is read before.
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {dtype}: a floating-point array is needed, because the energy is "
                f"differentiated with respect to it. Convert it, for example {name}.astype(jnp.float32)."
            )


def batch_length(name: str, tree: Any, what: str = "a batch") -> int:
    """Returns the length of the leading axis that all leaves of ``tree`` share, at least 1, or raises.

    ``what`` says in the message what the tree should have been, such as ``"a batch of chains"``.
    """
    arrays(name, tree)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        found = f"leaves of shapes {shapes}" if shapes else "no arrays"
        raise ValueError(
            f"{name} has {found}: {what} is needed, one leading axis of at least 1 that all leaves share."
        )
    return shapes[0][0]


def batch_of(name: str, tree: Any, length: int, reason: str) -> None:
    """Raises ``ValueError`` unless all leaves of ``tree`` share a leading axis of that length.

    ``reason`` ends the message: where the length comes from.
    """
    found = batch_length(name, tree)
    if found != length:
        raise ValueError(f"{name} has a leading axis of {found}: {length} is needed, {reason}.")


def finite(name: str, tree: Any) -> None:
    """Raises ``ValueError`` unless every entry of every concrete leaf of ``tree`` is finite."""
    arrays(name, tree)
    for leaf in jax.tree.leaves(tree):
        if is_traced(leaf):
            continue
        values = np.asarray(leaf)
        if values.dtype.kind in "USO":  # text, of which NumPy cannot say whether it is finite
            _numbers(name, leaf)
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise ValueError(
                f"{name} holds {bad} non-finite entries (NaN or infinity) of {np.size(leaf)}: "
                f"drop or repair those examples first."
            )


def one_label_each(name: str, labels: Any, num_images: int) -> None:
    """Raises unless ``labels`` is an integer array ``(num_images,)``."""
    arrays(name, labels)
    labels = np.asarray(labels)
    if labels.shape != (num_images,):
        raise ValueError(
            f"{name} has shape {labels.shape}: {(num_images,)} is needed, one label for each of the images."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name} has dtype {labels.dtype}: integer class labels are needed.")


def integer_labels(name: str, labels: Any, num_classes: int) -> None:
    """Raises unless ``labels`` is an integer array with entries in 0..num_classes-1."""
    array(name, labels)
    dtype = jnp.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {dtype}: integer class labels 0..{num_classes - 1} are needed.")
    if is_traced(labels) or np.size(labels) == 0:
        return
    values = np.asarray(labels)  # np.min of a JAX array would be traced inside another trace
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} spans {low}..{high}: labels must lie in 0..{num_classes - 1} for {num_classes} classes."
        )
