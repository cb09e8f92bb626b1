"""Nested configurations: as plain JSON values and back, and with some settings replaced by dotted name."""

import dataclasses
import numbers
import types
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from jaxebm import checks

__all__ = ["as_json", "from_json", "replace_settings"]

Settings = TypeVar("Settings")


def as_json(settings: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as plain JSON values, groups as nested dictionaries.

    Args:
      settings: a dataclass; paths become text, tuples lists, numpy's numbers Python's.

    Returns:
      The dictionary.

    Example:
      >>> from jaxebm.recipes import Config
      >>> as_json(Config())["sampler"]["step_size"]
      0.2
    """
    _check_settings(settings)
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _check_settings(settings: Any) -> None:
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        raise TypeError(f"settings={settings!r}: a configuration, such as Config(), is needed.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[Settings], values: Mapping[str, Any], *, where: str = "") -> Settings:
    """Returns the configuration that `as_json` described; settings that are missing have their defaults.

    Args:
      kind: the dataclass.
      values: by name, groups as nested dictionaries.
      where: the name of the source in messages.

    Returns:
      An instance of ``kind``.

    Raises:
      TypeError: if ``kind`` is no dataclass.
      ValueError: for a name that ``kind`` does not have, or a value that its field does not accept.

    Example:
      >>> from jaxebm.recipes import Config
      >>> from_json(Config, {"seed": 3, "sampler": {"step_size": 0.5}}).sampler.step_size
      0.5
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"kind={kind!r}: the class of a configuration, such as Config, is needed.")
    checks.instance("where", where, str)
    return _read(kind, values, where, "")


def _read(kind: Any, values: Any, where: str, path: str) -> Any:
    prefix = f"{where}: " if where else ""
    if not isinstance(values, Mapping):
        said = path or "the configuration (values)"
        raise ValueError(f"{prefix}{said} is not a dictionary of settings by name.")
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        names = ", ".join(f"{path}.{name}" if path else name for name in unknown)
        raise ValueError(f"{prefix}there is no setting {names} in this version of jaxebm.")
    found = {}
    for name, value in values.items():
        at = f"{path}.{name}" if path else name
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            found[name] = _read(hint, value, where, at)
        else:
            found[name] = _checked(hint, value, prefix + at)
    return kind(**found)


def _checked(hint: Any, value: Any, name: str) -> Any:
    found = _value(hint, value)
    if found is _UNFIT:
        raise ValueError(f"{name}={value!r}: {_say(hint)} is needed.")
    return found


_UNFIT = object()


def _value(hint: Any, value: Any) -> Any:
    """The value converted to the type of its field, or `_UNFIT`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _UNFIT
    if origin in (Union, types.UnionType):
        fits = [found for part in arguments if (found := _value(part, value)) is not _UNFIT]
        return fits[0] if fits else _UNFIT
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _UNFIT
        entries = tuple(_value(arguments[0], entry) for entry in value)
        return _UNFIT if any(entry is _UNFIT for entry in entries) else entries
    if hint is type(None):
        return value if value is None else _UNFIT
    if hint is Path:
        # pathlib reads "" as the folder ".", in which nobody means to write.
        return Path(value) if isinstance(value, str | Path) and value != "" else _UNFIT
    if hint in (int, float):
        kind: Any = numbers.Integral if hint is int else numbers.Real
        fits = isinstance(value, kind) and not isinstance(value, bool)
        return hint(value) if fits else _UNFIT
    return value if isinstance(value, hint) else _UNFIT


def _say(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple:
        return f"a tuple of {_say(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_say(part) for part in arguments)
    if hint is Path:
        return "the path of a file or a folder"
    return "None" if hint is type(None) else hint.__name__


def replace_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns the configuration with settings replaced by dotted name.

    Args:
      settings: a dataclass, groups of which are dataclasses.
      changes: ``{"epochs": 7, "sampler.step_size": 0.5}``; a group as a whole, ``{"run": RunConfig()}``.

    Returns:
      A new configuration.

    Raises:
      TypeError: if ``settings`` is no configuration, or ``changes`` no dictionary.
      ValueError: for a name that it does not have, or a value that the setting does not accept.

    Example:
      >>> from jaxebm.recipes import Config
      >>> replace_settings(Config(), {"sampler.step_size": 0.5}).sampler.step_size
      0.5
    """
    _check_settings(settings)
    checks.instance("changes", changes, Mapping, "It has values by dotted name.")
    return _replaced(settings, changes, "")


def _all_names(kind: Any) -> list[str]:
    """The dotted names of all settings."""
    found = []
    for name, hint in get_type_hints(kind).items():
        found.append(name)
        if dataclasses.is_dataclass(hint):
            found += [f"{name}.{inner}" for inner in _all_names(hint)]
    return found


def _replaced(settings: Any, changes: Mapping[str, Any], path: str) -> Any:
    own: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    hints = get_type_hints(type(settings))
    for dotted, value in changes.items():
        name, dot, rest = dotted.partition(".")
        hint: Any = hints.get(name)
        if hint is None or (dot and not dataclasses.is_dataclass(hint)):
            near = get_close_matches(dotted.replace("-", "_"), _all_names(type(settings)), n=1)
            suggestion = f" Did you mean {path}{near[0]}?" if near else ""
            raise ValueError(
                f"{path}{dotted}: there is no such setting in {type(settings).__name__}.{suggestion}"
            )
        if dot:
            groups.setdefault(name, {})[rest] = value
        elif not dataclasses.is_dataclass(hint):
            own[name] = _checked(hint, value, path + name)
        elif isinstance(value, hint):  # type: ignore[arg-type]
            own[name] = value
        else:
            raise ValueError(
                f"{path}{name} is a group of settings: a {type(getattr(settings, name)).__name__} is needed."
            )
    for name, inner in groups.items():
        own[name] = _replaced(own.get(name, getattr(settings, name)), inner, f"{path}{name}.")
    return dataclasses.replace(settings, **own)
