"""Powers of two near the largest number of arrays: exact, normal, and constants to derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.samples.scale import check_precision, extreme_unit, power_of_two

power = jax.jit(power_of_two)


@pytest.mark.parametrize("largest", [1.2e-38, 1e-19, 0.3, 1.0, 7.0, 1e18, 3.4e38])
def test_it_is_a_power_of_two_near_the_largest(largest):
    numbers = jnp.array([0.0, -largest, largest / 3], jnp.float32)
    found = float(power(numbers))
    assert np.frexp(found)[0] == 0.5
    assert 1 <= np.float32(largest) / found < 4
    scaled = jax.jit(lambda x: x / power_of_two(x))(numbers)
    assert float(scaled[1]) * found == float(numbers[1])  # no digit is lost


def test_nothing_is_scaled_where_nothing_can_be():
    for numbers in ([0.0, 0.0], [jnp.inf, 1.0], [jnp.nan, 1.0]):
        assert float(power(jnp.array(numbers))) == 1.0
    assert power_of_two(jnp.array([[1.0, 5.0], [2.0, 0.5]]), axis=(1,)).tolist() == [[4.0], [2.0]]
    assert float(power_of_two(jnp.array([1.0]), jnp.array([9.0]))) == 8.0


def test_it_is_a_constant_to_derivatives():
    assert jax.grad(lambda x: x / power_of_two(x))(5.0) == 0.25


def test_units_on_the_host():
    for largest in (1e-300, 5e-324, 1e200, 1.7e308):
        unit = extreme_unit(np.array([0.0, -largest]))
        assert np.frexp(unit)[0] == 0.5
        assert 1 <= largest / unit < 2
    assert extreme_unit(np.array([1e-20, 1e20])) == extreme_unit(np.zeros(2)) == 1.0
    assert extreme_unit(np.array([40.0]), ordinary=10.0) == 32.0


def test_the_range_of_float32():
    for largest in (1e39, 1e-40):
        with pytest.raises(ValueError, match="x has dtype float64"):
            check_precision("x", np.array([0.0, largest]))
        with jax.enable_x64(True):
            check_precision("x", np.array([0.0, largest]))
    for numbers in (
        np.array([np.inf, np.nan, 1.0]),
        np.zeros(3),
        np.array([1e-60, 1.0]),
        np.float32([1e-40]),
    ):
        check_precision("x", numbers)
