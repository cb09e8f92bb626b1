"""The noise written out is ``jax.random``'s, bit for bit, and is no loop on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.cpu.noise import fold_in, standard_normal, threefry

pytestmark = pytest.mark.usefixtures("cheap_compilation")


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_random123(key, counter, expected):
    words = threefry(
        tuple(map(np.uint32, key)), (np.array([counter[0]], "uint32"), np.array([counter[1]], "uint32"))
    )
    assert tuple(int(word[0]) for word in words) == expected


@pytest.mark.parametrize("shape", [(), (2,), (5, 3), (0,), (200,)])
def test_normals_are_those_of_jax_random(shape):
    rng_keys = jax.random.split(jax.random.key(3), 50)
    ours = jax.jit(jax.vmap(lambda rng_key: standard_normal(rng_key, shape)))(rng_keys)
    expected = jax.vmap(lambda rng_key: jax.random.normal(rng_key, shape))(rng_keys)
    assert ours.dtype == expected.dtype
    np.testing.assert_array_equal(ours, expected)


def test_many_normals_are_those_of_jax_random_and_finite():
    rng_keys = jax.random.split(jax.random.key(4), 10_000)
    draw, draw_by_jax = (
        jax.jit(jax.vmap(lambda rng_key, normal=normal: normal(rng_key, (100,))))
        for normal in (standard_normal, jax.random.normal)
    )
    ours = draw(rng_keys)
    np.testing.assert_array_equal(ours, draw_by_jax(rng_keys))
    assert np.isfinite(ours).all()
    assert np.abs(ours).max() > 4.5  # fails for true normals with probability 0.001


def test_keys_are_those_of_jax_random():
    rng_keys = jax.random.split(jax.random.key(5), 20)
    indices = jnp.array([0, 1, 2, 1000, 2**31 - 1])
    table = (jax.vmap(jax.vmap(fold, (None, 0)), (0, None)) for fold in (fold_in, jax.random.fold_in))
    ours, expected = (jax.random.key_data(fold(rng_keys, indices)) for fold in table)
    np.testing.assert_array_equal(ours, expected)
    assert fold_in(rng_keys[0], 2**32 - 1) == jax.random.fold_in(rng_keys[0], 2**32 - 1)


def test_other_generators_and_dtypes_are_left_to_jax_random():
    rng_key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(standard_normal(rng_key, (3,)), jax.random.normal(rng_key, (3,)))
    assert fold_in(rng_key, 3) == jax.random.fold_in(rng_key, 3)
    narrow = standard_normal(rng_key, (3,), jnp.bfloat16)
    np.testing.assert_array_equal(narrow, jax.random.normal(rng_key, (3,), jnp.bfloat16))


def test_nothing_loops_on_a_cpu():
    def draw(rng_key):
        return standard_normal(fold_in(rng_key, 1), (4,))

    def draw_by_jax(rng_key):
        return jax.random.normal(jax.random.fold_in(rng_key, 1), (4,))

    loops = [
        jax.jit(function).lower(jax.random.key(0)).as_text().count("stablehlo.while")
        for function in (draw, draw_by_jax)
    ]
    assert loops[0] == 0 < loops[1]


@pytest.mark.parametrize("key", [3, None, np.zeros(2, np.uint32), jax.random.PRNGKey(0)], ids=str)
def test_only_typed_keys_are_taken(key):
    for draw in (lambda key: standard_normal(key, (3,)), lambda key: fold_in(key, 1)):
        with pytest.raises(TypeError, match=r"rng_key.* must be a typed key, jax\.random\.key\(seed\)"):
            draw(key)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_normals_keep_their_dtype_under_x64(dtype):
    plain = standard_normal(jax.random.key(1), (4,))
    with jax.enable_x64(True):
        found = jax.jit(lambda key: standard_normal(key, (4,), dtype))(jax.random.key(1))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, jax.random.normal(jax.random.key(1), (4,), dtype))
        if dtype == "float32":
            np.testing.assert_array_equal(found, plain)
        assert fold_in(jax.random.key(1), jnp.arange(3)[2]) == jax.random.fold_in(jax.random.key(1), 2)
