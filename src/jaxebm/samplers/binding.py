"""Binding a kernel for its checks; taking it apart, so that its numbers do not decide what is compiled."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxebm import checks
from jaxebm.types import Kernel, Target

__all__ = ["StaticKernel", "bind_once", "check_kernel_schedule", "unbind"]


class StaticKernel(NamedTuple):
    """What is compiled in of a ``make_kernel``; it hashes, so it may be a static argument of ``jax.jit``.

    Attributes:
      function: ``function(target, *arguments, **keywords, **numbers) -> Kernel``.
      arguments: the positional arguments after the target.
      keywords: ``(name, value)`` pairs of the keywords that are no numbers.
    """

    function: Callable[..., Kernel]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def bind(self, target: Target, *numbers: Mapping[str, Any]) -> Kernel:
        """Returns the kernel of a target, later mappings of numbers before earlier ones."""
        keywords = dict(self.keywords)
        for mapping in numbers:
            keywords |= mapping
        return self.function(target, *self.arguments, **keywords)


def unbind(make_kernel: Callable[..., Kernel]) -> tuple[StaticKernel, dict[str, Any]]:
    """Parts a ``functools.partial`` into what is compiled in and what is traced.

    Args:
      make_kernel: ``make_kernel(target) -> Kernel``.

    Returns:
      ``(static, numbers)``: of a partial, the keywords whose leaves are all floats or arrays are numbers.
      Integers, booleans and strings are compiled in, as they may set shapes. Anything but a partial is
      compiled in whole and recognised by identity.

    Example:
      >>> from jaxebm.samplers.metropolis import nuts
      >>> static, numbers = unbind(functools.partial(nuts, step_size=0.1, max_num_doublings=5))
      >>> static.keywords, numbers
      ((('max_num_doublings', 5),), {'step_size': 0.1})
    """
    if not isinstance(make_kernel, functools.partial):
        return StaticKernel(make_kernel, (), ()), {}
    numbers = {name: value for name, value in make_kernel.keywords.items() if _holds_numbers(value)}
    rest = tuple(item for item in make_kernel.keywords.items() if item[0] not in numbers)
    return StaticKernel(make_kernel.func, make_kernel.args, rest), numbers


def _holds_numbers(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(
        isinstance(leaf, float | np.ndarray | np.generic | jax.Array) for leaf in leaves
    )


def bind_once(make_kernel: Callable[..., Kernel], target: Target, numbers: Mapping[str, Any]) -> None:
    """Binds a kernel outside of any program, for its own checks, while the numbers can be seen."""
    try:
        kernel = make_kernel(target, **numbers)
    except Exception as error:
        given = ", ".join(["target", *(f"{name}=..." for name in numbers)])
        error.add_note(
            f"make_kernel={checks.function_name(make_kernel)} was called as make_kernel({given}), where "
            f"target is a function of one position. A kernel of something else, as glauber is of a memory, "
            f"is given by make_kernel=lambda target, temperature: glauber(memory, temperature), with the "
            f"temperature 1 / b among the arguments that change with b."
        )
        raise
    checks.bound_kernel("make_kernel(target)", kernel)


def check_kernel_schedule(kernel_schedule: Any, length: int, source: str) -> dict[str, Any]:
    """Returns keyword arguments that change along a path as a dictionary, empty for None, or raises.

    ``source`` names the argument whose length their leaves must have.
    """
    checks.instance("kernel_schedule", kernel_schedule, (Mapping, type(None)))
    varying = dict(kernel_schedule or {})
    for name, value in varying.items():
        checks.text("a name in kernel_schedule", name)
        checks.real_arrays(f"kernel_schedule[{name!r}]", value)
        checks.batch_of(f"kernel_schedule[{name!r}]", value, length, f"as in {source}")
    return varying
