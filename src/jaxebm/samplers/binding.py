"""Taking a bound kernel apart, so that the numbers in it do not decide what is compiled."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxebm.types import Kernel, Target

__all__ = ["StaticKernel", "unbind"]


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
