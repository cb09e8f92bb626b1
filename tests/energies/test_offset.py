"""An offset of its own: values, gradients, equality, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import joint_energy, offset_params, with_offset
from jaxebm.objectives.objective import is_conditional

pytestmark = pytest.mark.usefixtures("cheap_compilation")


def energy(params, x):
    return 0.5 * jnp.sum((x - params["mean"]) ** 2)


def logits(params, x):
    return params @ x


PARAMS = {"mean": jnp.array([1.0, 2.0])}
X = jnp.array([3.0, -1.0])


def test_the_offset_is_added_and_learnt():
    params = offset_params(PARAMS, 2.5)
    value, slopes = jax.value_and_grad(with_offset(energy))(params, X)
    assert float(value) == float(energy(PARAMS, X)) + 2.5
    assert float(slopes["offset"]) == 1.0
    np.testing.assert_array_equal(slopes["energy"]["mean"], PARAMS["mean"] - X)
    np.testing.assert_array_equal(jax.grad(with_offset(energy), argnums=1)(params, X), X - PARAMS["mean"])


def test_equal_energies_give_equal_energies():
    assert with_offset(energy) == with_offset(energy)
    assert hash(with_offset(energy)) == hash(with_offset(energy))
    assert with_offset(energy) != with_offset(logits)


def test_an_energy_of_classes_stays_one():
    joint = with_offset(joint_energy(logits))
    assert is_conditional(joint)
    assert not is_conditional(with_offset(energy))
    params = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    assert float(joint(offset_params(params, 1.0), X, 0)) == -2.0


@pytest.mark.parametrize(("offset", "dtype"), [(1, jnp.float32), (np.float16(0.5), jnp.float32)])
def test_the_offset_is_float32_or_wider(offset, dtype):
    assert offset_params(PARAMS, offset)["offset"].dtype == dtype
    with jax.enable_x64(True):
        assert offset_params(PARAMS, np.float64(offset))["offset"].dtype == jnp.float64


def test_what_is_no_energy_or_not_its_parameters_is_refused():
    with pytest.raises(ValueError, match=r"offset_params\(params\)"):
        with_offset(energy)(PARAMS, X)
    with pytest.raises(TypeError, match="energy must be a function"):
        with_offset(3)
    with pytest.raises(ValueError, match="energy returned shape"):
        with_offset(logits)(offset_params(jnp.eye(2)), X)
    with pytest.raises(ValueError, match="offset"):
        offset_params(PARAMS, np.inf)
