"""The shortest command that trains a run again."""

import dataclasses
import shlex
from typing import Any

from jaxebm.recipes.config import UNCOMPARED, Config
from jaxebm.recipes.published import base_config

__all__ = ["command_for"]

CHOOSING = ("recipe", "network", "dataset", "task")
"""Settings that choose the defaults of the others."""


def command_for(config: Config) -> str:
    """Returns the command that trains a run: the settings that differ from the defaults of its recipe.

    Args:
      config: the configuration of the run.

    Example:
      >>> from jaxebm.recipes import replace_settings
      >>> command_for(replace_settings(base_config("jem", network="convnet"), {"sampler.step_size": 0.5}))
      'jaxebm train --recipe jem --network convnet --sampler.step-size 0.5'
    """
    standard, chosen = Config(), {name: getattr(config, name) for name in CHOOSING}
    base = base_config(chosen.pop("recipe"), **chosen)
    parts = [
        part
        for name in CHOOSING
        if getattr(config, name) != getattr(standard, name)
        for part in _flag(name, getattr(config, name))
    ]
    for name, value, default in _differences(config, base):
        said = name == "output" or (name not in UNCOMPARED and name not in CHOOSING)
        if said and value != default:
            parts += _flag(name, value)
    return shlex.join(["jaxebm", "train", *parts])


def _differences(config: Any, base: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(base, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(value):
            found += _differences(value, default, f"{name}.")
        else:
            found.append((name, value, default))
    return found


def _flag(name: str, value: Any) -> list[str]:
    *groups, setting = name.replace("_", "-").split(".")
    prefix = "".join(f"{group}." for group in groups)
    if isinstance(value, bool):
        return [f"--{prefix}{setting}" if value else f"--{prefix}no-{setting}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{prefix}{setting}", *(str(one) for one in values)]
