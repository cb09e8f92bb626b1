"""Bad calls of the public functions, generated from their signatures, and what becomes of each.

A valid call of a function is the first call in its docstring's example. A bad call replaces one argument by a
value of another kind than its annotation says: text for a number, an integer for a function, an energy that
returns a pair. Each must end in an error that names the argument, raised by this package. This prints those
that do not, of some rooms or functions::

    python tests/bad_calls.py samplers hopfield.energy

``tests/let_through/<room>.txt`` lists the bad calls that are accepted on purpose, a line each: a pattern with
``*`` for any text, two spaces, ``# `` and the reason.

Some functions check an argument only where it is used (a kernel in its first step): where the call returns,
the rest of the example runs with its result.
"""

import argparse
import collections
import contextlib
import dataclasses
import doctest
import fnmatch
import functools
import importlib
import inspect
import io
import os
import random
import re
import tempfile
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxebm

ROOMS = (
    "energies",
    "samplers",
    "data",
    "hopfield",
    "objectives",
    "evaluation",
    "training",
    "report",
    "recipes",
)
NO_CALL = "no call in its example"
"""In place of a kind of wrong value: for a function that no short example can call."""
PACKAGE = str(Path(jaxebm.__file__).parent)


@dataclasses.dataclass(frozen=True)
class BadValue:
    """One kind of wrong value: ``make(random, valid)`` gives one."""

    kind: str
    make: Callable[[random.Random, Any], Any]


@dataclasses.dataclass(frozen=True)
class Call:
    """A public function and the arguments of a valid call."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    parameters: dict[str, inspect.Parameter]
    example: doctest.DocTest


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a bad call: ``named``, ``unnamed`` (an error without the argument) or ``passed``."""

    verdict: str
    message: str


class _Recorded(Exception):
    pass


def public_functions(rooms: tuple[str, ...] = ROOMS) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields (room.name, function) of all that a user calls: no record, no protocol, no error."""
    for room in rooms:
        module = importlib.import_module(f"jaxebm.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or typing.get_origin(value) is not None:
                continue
            if inspect.isclass(value):
                is_record = issubclass(value, tuple) or getattr(value, "_is_protocol", False)
                if is_record or issubclass(value, BaseException):
                    continue
            yield f"{room}.{name}", value


@functools.cache
def valid_call(name: str) -> Call | None:
    """Returns the first call in the docstring's example of ``room.name``; None if it has none."""
    function = dict(public_functions((name.split(".")[0],)))[name]
    example = _example(function)
    if example is None:
        return None
    signature = inspect.signature(function)
    found: dict[str, Any] = {}

    def record(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        found.update(bound.arguments)
        raise _Recorded

    _run(example, function.__name__, _like(function, record))
    if not found and signature.parameters:
        return None
    return Call(name, function, found, dict(signature.parameters), example)


def _example(function: Callable[..., Any]) -> doctest.DocTest | None:
    own = function.__doc__ or ""
    if ">>> " not in own:
        return None
    module = importlib.import_module(function.__module__)
    return doctest.DocTestParser().get_doctest(own, dict(vars(module)), function.__name__, None, None)


def _like(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    if not inspect.isclass(function):
        return functools.wraps(function)(wrapper)

    class Recorder(type(function)):  # a class that still passes isinstance and issubclass
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return wrapper(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, function)

    class Stand(metaclass=Recorder):
        pass

    return Stand


def _run(example: doctest.DocTest, name: str, replacement: Callable[..., Any]) -> BaseException | None:
    """Runs an example with a function replaced, in an empty folder; returns the error that ended it."""
    space = dict(example.globs)
    space[name] = replacement
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for part in example.examples:
                if re.match(r"(from jaxebm\S* import .*|import .*)\b" + name + r"\b", part.source):
                    exec(compile(part.source, "<example>", "exec"), space)
                    space[name] = replacement
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(compile(part.source, "<example>", "single"), space)
        except (Exception, SystemExit) as error:
            return error
        finally:
            os.chdir(before)
    return None


# Kinds of wrong values ------------------------------------------------------------------------------------


def _constant(kind: str, *values: Any) -> BadValue:
    return BadValue(kind, lambda rng, valid: rng.choice(values))


TEXT = BadValue("text", lambda rng, valid: rng.choice(["sgld", "0.1", "no such thing", "é"]))
NONE = _constant("None", None)
OBJECT = BadValue("object", lambda rng, valid: object())
FRACTION = BadValue("fraction", lambda rng, valid: rng.randrange(1, 9) + 0.5)
NEGATIVE_INTEGER = BadValue("negative integer", lambda rng, valid: -rng.randrange(2, 99))
ZERO = _constant("zero", 0)
NEGATIVE = BadValue("negative number", lambda rng, valid: -rng.uniform(1.1, 9))
NOT_A_NUMBER = _constant("NaN", float("nan"), np.float32("nan"))
INFINITE = _constant("infinite", float("inf"))
COMPLEX = _constant("complex", 1j, 2 + 1j)
SEVERAL = BadValue("several numbers", lambda rng, valid: np.full(rng.choice([2, 3, 7]), 0.3, np.float32))
INTEGER = BadValue("integer", lambda rng, valid: rng.randrange(2, 9))
NUMBER = BadValue("number", lambda rng, valid: rng.uniform(1, 9))
MAPPING = _constant("mapping", {"a": 1})

KEYS = (
    INTEGER,
    NONE,
    TEXT,
    NUMBER,
    BadValue("legacy key", lambda rng, valid: jax.random.PRNGKey(rng.randrange(99))),
    BadValue("key array", lambda rng, valid: jax.random.split(jax.random.key(rng.randrange(99)), (13, 2))),
    BadValue("float array", lambda rng, valid: jnp.zeros(2)),
)


def _returns(what: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: what


def _energy_with(change: Callable[[Any], Any]) -> Callable[[random.Random, Any], Any]:
    return lambda rng, valid: lambda *args: change(valid(*args))


ENERGIES = (
    NONE,
    INTEGER,
    TEXT,
    BadValue("no argument", lambda rng, valid: lambda: jnp.zeros(())),
    BadValue("one argument too many", lambda rng, valid: lambda a, b, c, d, e: jnp.zeros(())),
    BadValue("returns a pair", _energy_with(lambda energy: (energy, energy))),
    BadValue("returns None", lambda rng, valid: _returns(None)),
    BadValue("returns an integer", _energy_with(lambda energy: jnp.sum(energy).astype(int))),
    BadValue("returns a complex number", _energy_with(lambda energy: jnp.asarray(energy) + 1j)),
    BadValue("returns a vector", _energy_with(lambda energy: jnp.stack([energy, energy]))),
)
FUNCTIONS = (NONE, INTEGER, TEXT, BadValue("no argument", lambda rng, valid: lambda: jnp.zeros(())))


def _bound_kernel(rng: random.Random, valid: Any) -> Any:
    return jaxebm.samplers.sgld(lambda x: jnp.sum(jnp.square(x)), 0.1)


KERNEL_CONSTRUCTORS = (NONE, INTEGER, TEXT, BadValue("bound kernel", _bound_kernel))
KERNELS = (NONE, INTEGER, TEXT, BadValue("constructor", lambda rng, valid: jaxebm.samplers.sgld))


def _tree(change: Callable[[Any], Any]) -> Callable[[random.Random, Any], Any]:
    return lambda rng, valid: jax.tree.map(change, valid)


def _ragged(rng: random.Random, valid: Any) -> Any:
    leaf = np.asarray(jax.tree.leaves(valid)[0])
    return {"a": leaf, "b": leaf[:1] if leaf.ndim and leaf.shape[0] > 1 else np.zeros((1, 5))}


ARRAYS = (
    TEXT,
    NONE,
    OBJECT,
    BadValue("complex array", _tree(lambda leaf: np.asarray(leaf) * 1j)),
    BadValue("text array", _tree(lambda leaf: np.asarray(leaf).astype(str))),
    BadValue("one more axis", _tree(lambda leaf: np.asarray(leaf)[None])),
    BadValue("no axis", _tree(lambda leaf: np.asarray(leaf).ravel()[0])),
    BadValue("one entry more", _tree(lambda leaf: np.pad(leaf, [(0, 1)] * np.ndim(leaf), mode="edge"))),
    BadValue("empty", _tree(lambda leaf: np.asarray(leaf)[:0] if np.ndim(leaf) else np.zeros(0))),
    BadValue("ragged", _ragged),
)
LABELS = (
    TEXT,
    NONE,
    BadValue("fractions", _tree(lambda leaf: np.asarray(leaf) + 0.5)),
    BadValue("negative", _tree(lambda leaf: np.asarray(leaf) - 100)),
    BadValue("beyond the classes", _tree(lambda leaf: np.asarray(leaf) + 100)),
    BadValue("one-hot", _tree(lambda leaf: np.eye(3, dtype=int)[np.asarray(leaf) % 3])),
    BadValue("one entry more", _tree(lambda leaf: np.pad(leaf, [(0, 1)] * np.ndim(leaf), mode="edge"))),
)
PARAMS = (
    TEXT,
    OBJECT,
    BadValue("other shapes", _tree(lambda leaf: np.ones((*np.shape(leaf), 7), np.float32))),
)
SEQUENCES = (NONE, TEXT, NUMBER, OBJECT, BadValue("holds text", lambda rng, valid: ["a", "b", "c"]))

_BY_NAME: dict[str, tuple[BadValue, ...]] = {
    "rng_key": KEYS,
    "make_kernel": KERNEL_CONSTRUCTORS,
    "labels": LABELS,
    "label": LABELS,
    "params": PARAMS,
    "reference_params": PARAMS,
}


def bad_values(name: str, parameter: inspect.Parameter, valid: Any) -> tuple[BadValue, ...]:
    """Returns the kinds of wrong values for one argument, by its annotation, its name and a valid value."""
    annotation = parameter.annotation
    shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    optional = "None" in shown or parameter.default is None
    kinds = _kinds(name, shown, valid)
    if optional:
        kinds = tuple(kind for kind in kinds if kind is not NONE)
    return kinds


def _kinds(name: str, shown: str, valid: Any) -> tuple[BadValue, ...]:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name == "kernel" and hasattr(valid, "step"):
        return KERNELS
    if "EnergyFn" in shown or (name in ("target", "energy", "reference") and callable(valid)):
        return ENERGIES
    if "Callable" in shown or "Fn" in shown or (callable(valid) and not hasattr(valid, "shape")):
        return FUNCTIONS
    if isinstance(valid, bool) or shown == "bool":
        return (TEXT, NONE, OBJECT, INTEGER)
    if isinstance(valid, str) or "Literal" in shown:
        return (TEXT, NONE, INTEGER, OBJECT)
    if isinstance(valid, Path):
        return (NONE, INTEGER, OBJECT)
    if isinstance(valid, int | np.integer) and "float" not in shown:
        return (FRACTION, TEXT, NONE, NEGATIVE_INTEGER, ZERO, NOT_A_NUMBER, SEVERAL, OBJECT)
    if isinstance(valid, int | float | np.floating) or ("float" in shown and np.shape(valid) == ()):
        return (TEXT, NONE, NOT_A_NUMBER, INFINITE, COMPLEX, SEVERAL, NEGATIVE, OBJECT)
    if isinstance(valid, tuple | list) and not hasattr(valid, "_fields"):
        return SEQUENCES
    if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(valid)) and jax.tree.leaves(
        valid
    ):
        return ARRAYS
    return (TEXT, NONE, INTEGER, OBJECT)


# What becomes of a bad call ---------------------------------------------------------------------------------


def bad_arguments(call: Call) -> Iterator[tuple[str, BadValue]]:
    """Yields (argument, kind of wrong value) for each argument that has a valid value."""
    for name, parameter in call.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        valid = call.arguments.get(name, parameter.default)
        if valid is parameter.empty or name in ("parent",):
            continue
        for bad in bad_values(name, parameter, valid):
            yield name, bad


def outcome(call: Call, argument: str, bad: BadValue, rng: random.Random) -> Outcome:
    """Makes the bad call and judges what happens."""
    valid = call.arguments.get(argument, call.parameters[argument].default)
    try:
        value = bad.make(rng, valid)
    except Exception:  # this valid value has no such wrong neighbour
        return Outcome("named", "not applicable")
    first = True

    def replaced(*args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if not first:
            return call.function(*args, **kwargs)
        first = False
        bound = inspect.signature(call.function).bind(*args, **kwargs)
        bound.arguments[argument] = value
        return call.function(*bound.args, **bound.kwargs)

    output = io.StringIO()
    error: BaseException | None = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        error = _run(call.example, call.function.__name__, _like(call.function, replaced))
    if error is None:
        return Outcome("passed", f"{argument}={value!r:.80} was accepted")
    return Outcome("named" if _names(error, argument) else "unnamed", f"{type(error).__name__}: {error}")


def _names(error: BaseException, argument: str) -> bool:
    word = re.compile(rf"(?<![A-Za-z]){re.escape(argument)}(?![A-Za-z])")
    if any(word.search(note) for note in getattr(error, "__notes__", ())):
        return True
    if not word.search(str(error)) or not isinstance(error, ValueError | TypeError | OSError | LookupError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(PACKAGE)


@functools.cache
def let_through(room: str) -> dict[str, str]:
    """Returns pattern -> reason of the bad calls of a room that are accepted on purpose."""
    file = Path(__file__).parent / "let_through" / f"{room}.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    parts = [line.split("  # ", 1) for line in lines if line.strip()]
    return {pattern.strip(): reason.strip() for pattern, reason in parts}


def matches(described: str, pattern: str) -> bool:
    """Returns whether ``room.function(argument: kind)`` matches a pattern, in which * is any text."""
    return fnmatch.fnmatchcase(described, pattern.replace("[", "[[]"))


def reason_to_pass(name: str, argument: str, kind: str) -> str | None:
    """Returns why a bad call is let through, or None if it must end in an error."""
    described = f"{name}({argument}: {kind})"
    for pattern, reason in let_through(name.split(".")[0]).items():
        if matches(described, pattern):
            return reason
    return None


def main() -> None:
    """Prints every bad call that does not end in an error that names its argument."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", default=list(ROOMS), help="rooms, or room.function")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    for room in dict.fromkeys(name.split(".")[0] for name in arguments.names):
        for name, _ in public_functions((room,)):
            if room not in arguments.names and name not in arguments.names:
                continue
            call = valid_call(name)
            if call is None:
                if not reason_to_pass(name, "any", NO_CALL):
                    print(f"{name}: no call in its example")
                total["without a call"] += 1
                continue
            for argument, bad in bad_arguments(call):
                found = outcome(call, argument, bad, random.Random(f"{arguments.seed} {name} {argument}"))
                if found.verdict == "passed" and reason_to_pass(name, argument, bad.kind):
                    found = Outcome("let through", found.message)
                total[found.verdict] += 1
                if found.verdict not in ("named", "let through"):
                    message = " ".join(found.message.split())
                    print(f"{found.verdict:8} {name}({argument}: {bad.kind}): {message:.160}", flush=True)
    print(dict(total))


if __name__ == "__main__":
    main()
