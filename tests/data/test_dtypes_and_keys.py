"""What augmentation, streams and densities share: dtypes in both modes, one rule for keys, far tails."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.data import (
    TOY_DENSITIES,
    init_stream,
    next_batch,
    random_blur,
    random_colour,
    random_crop,
    random_flip,
    random_translation,
    two_moons,
)

AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "translation": functools.partial(random_translation, max_shift=1.5),
    "crop": functools.partial(random_crop, padding=1),
    "flip": random_flip,
    "colour": functools.partial(random_colour, strength=0.3),
    "blur": functools.partial(random_blur, max_sigma=1.0),
}


@pytest.mark.parametrize("x64", [False, True])
def test_dtypes_are_kept(x64: bool) -> None:
    with jax.enable_x64(x64):
        key = jax.random.key(0)
        for dtype in ("float32", "bfloat16", "float16"):
            image = jnp.zeros((4, 4, 1), dtype)
            for augment in AUGMENTATIONS.values():
                assert jax.eval_shape(augment, key, image).dtype == dtype
            for density in TOY_DENSITIES.values():
                wide = jax.eval_shape(density.log_density, jnp.zeros(2, dtype))
                assert wide.dtype in (jnp.float32, dtype)
        for num_strata in (1, 2):
            stream = init_stream(key, 6, num_strata=num_strata)
            batch, after = next_batch(key, stream, {"x": np.zeros((6, 2), np.float32)}, 2)
            assert batch["x"].dtype == jnp.float32
            assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, stream)


STREAM = init_stream(jax.random.key(0), 4)
CALLS: dict[str, Callable[[Any], Any]] = {
    **{
        name: lambda key, augment=augment: augment(key, jnp.zeros((4, 4, 1)))
        for name, augment in AUGMENTATIONS.items()
    },
    "init_stream": lambda key: init_stream(key, 4),
    "next_batch": lambda key: next_batch(key, STREAM, jnp.zeros(4), 2),
    "toy": lambda key: two_moons().sample(key, 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_only_typed_keys_are_taken(name: str) -> None:
    for wrong in (0, None, "key", jax.random.PRNGKey(0), jnp.zeros(2)):
        with pytest.raises(TypeError, match=r"rng_key.*typed key, jax\.random\.key"):
            CALLS[name](wrong)
    with pytest.raises(ValueError, match="rng_key has shape"):
        CALLS[name](jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("name", TOY_DENSITIES)
def test_far_densities_have_gradients(name: str) -> None:
    points = jnp.array([[0.0, 0.0], [1e13, 1.0], [0.0, 1e20], [-1e30, 1e20], [1e30, -1e30]])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(TOY_DENSITIES[name].log_density)))(points)
    assert not np.isnan(values).any()
    assert not np.isposinf(values).any()
    assert not np.isnan(gradients).any()
    assert np.isneginf(values[2:]).all()
    if name != "checkerboard":  # which is flat
        assert np.all(np.sum(gradients[2:] * points[2:] / 1e20, axis=1) < 0)  # back to where the mass is
