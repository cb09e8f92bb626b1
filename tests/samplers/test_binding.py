"""What of a kernel is compiled in and what is traced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.binding import StaticKernel, unbind
from jaxebm.samplers.langevin import sgld


def record(target, *arguments, **keywords):
    return target, arguments, keywords


def test_numbers_are_parted_from_what_sets_shapes():
    clamp = (-1.0, np.float32(1.0))
    static, numbers = unbind(
        functools.partial(
            record, "first", step_size=0.1, clamp=clamp, depth=5, name="x", mass=None, flag=True
        )
    )
    assert numbers == {"step_size": 0.1, "clamp": clamp}
    assert static == StaticKernel(
        record, ("first",), (("depth", 5), ("name", "x"), ("mass", None), ("flag", True))
    )
    assert hash(static) == hash(StaticKernel(*static))


def test_binding_puts_everything_back_and_later_numbers_win():
    static, numbers = unbind(functools.partial(record, "first", step_size=0.1, depth=5))
    target, arguments, keywords = static.bind("target", numbers, {"step_size": 0.2})
    assert (target, arguments, keywords) == ("target", ("first",), {"depth": 5, "step_size": 0.2})


def test_a_plain_function_is_compiled_in():
    assert unbind(sgld) == (StaticKernel(sgld, (), ()), {})


@pytest.mark.parametrize("value", [jnp.ones(2), np.float64(1.0), {"a": 1.0, "b": jnp.ones(())}])
def test_arrays_and_trees_of_numbers_are_traced(value):
    _, numbers = unbind(functools.partial(record, value=value))
    assert jax.tree.structure(numbers["value"]) == jax.tree.structure(value)
