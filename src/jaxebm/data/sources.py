"""The names of a user's own data: ``npz:PATH``, ``folder:PATH`` and ``tfds:NAME``, with options."""

import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

__all__ = ["SOURCES", "Source", "as_source", "suggested_source"]

_OPTIONS = {
    "npz": ("value_range",),
    "folder": ("size", "channels", "value_range"),
    "tfds": ("size", "channels"),
}
SOURCES = "npz:PATH, folder:PATH or tfds:NAME"
"""The forms of such a name, for messages."""


class Source(NamedTuple):
    """What such a name says: its kind, the path or the name of a set, and the options by their names."""

    kind: str
    path: str
    options: dict[str, Any]


def as_source(name: str) -> Source | None:
    """Returns the parts of a name such as ``folder:PATH?size=28&channels=1``; None of any other name.

    Args:
      name: The name.

    Returns:
      The parts; ``size`` is a pair (H, W), ``channels`` an integer, ``value_range`` a pair of numbers.

    Raises:
      ValueError: If an option is unknown, or its value is not of its kind.
    """
    kind, _, rest = name.partition(":")
    if kind not in _OPTIONS or not rest:
        return None
    path, _, query = rest.rpartition("?")
    if not path or "=" not in query:  # a question mark in the path itself
        return Source(kind, rest, {})
    options: dict[str, Any] = {}
    for option in query.split("&"):
        key, _, value = option.partition("=")
        if key not in _OPTIONS[kind]:
            _fail(name, f"{key!r} is no option", f"{kind}: takes {' and '.join(_OPTIONS[kind])}")
        if key in options:
            _fail(name, f"{key} is there twice", "give it once")
        options[key] = _value(name, key, value)
    return Source(kind, path, options)


def _value(name: str, key: str, value: str) -> Any:
    if key == "size":
        if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", value)):
            _fail(name, f"size={value} is no size", "write size=28, or size=28x32, height x width")
        return int(found[1]), int(found[2] or found[1])
    if key == "channels":
        if value not in ("1", "3"):
            _fail(
                name,
                f"channels={value} is neither 1 nor 3",
                "write channels=1 for grey, channels=3 for colour",
            )
        return int(value)
    number = r"(-?\d+(?:\.\d*)?)"
    if not (found := re.fullmatch(f"{number},{number}", value)):
        _fail(name, f"value_range={value} is no range", "write value_range=0,255")
    return float(found[1]), float(found[2])


def suggested_source(name: str) -> str:
    """Returns a question about what was perhaps meant by a name of another kind, or an empty string."""
    if name.endswith(".npz"):
        return f" Did you mean npz:{name}?"
    is_folder = "/" in name or (name != "" and Path(name).is_dir())
    return f" Did you mean folder:{name}?" if is_folder else ""


def _fail(name: str, what: str, remedy: str) -> NoReturn:
    raise ValueError(f"name={name!r}: {what}; {remedy}.")
