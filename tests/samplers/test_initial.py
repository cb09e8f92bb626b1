"""Initial distributions: their moments, and that they travel through jit as arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.samplers.gaussian_fits import fit_class_gaussians, fit_gaussian
from jaxebm.samplers.initial import ClassGaussianInitial, GaussianInitial, UniformInitial, uniform_like

NUM_DRAWS = 20_000


@jax.jit
def _draws(initial, labels):
    return jax.vmap(initial)(jax.random.split(jax.random.key(0), NUM_DRAWS), labels)


def _many(initial, label=0):
    draws = np.asarray(_draws(initial, jnp.full(NUM_DRAWS, label)), np.float64)
    return draws.reshape(NUM_DRAWS, -1)


def _assert_moments(draws, mean, covariance):
    """Within 5 standard errors, entry by entry, of a Gaussian's mean and covariance."""
    variances = np.diag(covariance)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variances / len(draws)))
    centred = draws - mean
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(draws))
    assert np.all(np.abs(centred.T @ centred / len(draws) - covariance) < 5 * error)


def _data(seed=0, num_images=200):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(6, 6))
    return (random.normal(size=(num_images, 6)) @ mixing + random.normal(size=6)).reshape(num_images, 2, 3)


def _exact(images, regularisation=1e-4):
    flat = images.reshape(len(images), -1)
    return flat.mean(0), np.cov(flat, rowvar=False, bias=True) + regularisation * np.eye(flat.shape[1])


def test_uniform_fills_its_interval_and_ignores_the_label():
    initial = UniformInitial(-1.0, 3.0, shape=(2, 3))
    draws = _many(initial)
    assert draws.shape == (NUM_DRAWS, 6)
    assert draws.min() >= -1
    assert draws.max() < 3
    assert np.all(np.abs(draws.mean(0) - 1) < 5 * np.sqrt(16 / 12 / NUM_DRAWS))
    # The variance of the square of a centred uniform of width w is w^4 / 180.
    assert np.all(np.abs(((draws - 1) ** 2).mean(0) - 16 / 12) < 5 * np.sqrt(256 / 180 / NUM_DRAWS))
    np.testing.assert_array_equal(draws, _many(initial, label=4))


def test_a_fitted_gaussian_has_the_datas_mean_and_covariance():
    images = _data()
    initial = fit_gaussian(images)
    mean, covariance = _exact(images)
    np.testing.assert_allclose(
        np.asarray(initial.factor @ initial.factor.T), covariance, rtol=1e-4, atol=1e-4
    )
    _assert_moments(_many(initial), mean, covariance)
    np.testing.assert_array_equal(_many(initial, label=0), _many(initial, label=1))


def test_more_dimensions_than_images():
    images = np.random.default_rng(1).normal(size=(5, 4, 4))
    initial = fit_gaussian(images, regularisation=1e-2)
    assert initial.mean.shape == (4, 4)
    mean, covariance = _exact(images, 1e-2)
    _assert_moments(_many(initial), mean.ravel(), covariance)


def test_one_image_is_a_mean_and_the_regularisation():
    initial = fit_gaussian(np.full((1, 3), 0.5), regularisation=0.04)
    np.testing.assert_allclose(initial.factor, 0.2 * np.eye(3), atol=1e-7)


def test_the_clamp_holds():
    draws = _many(fit_gaussian(_data(), clamp=(-0.5, 1.0)))
    assert draws.min() == -0.5
    assert draws.max() == 1.0


def test_each_class_has_its_own_mean_and_covariance():
    images = np.concatenate([_data(seed, 50) for seed in range(3)])
    labels = np.repeat(np.arange(3), 50)
    order = np.random.default_rng(0).permutation(150)
    initial = fit_class_gaussians(images[order], labels[order], 3)
    for label in range(3):
        _assert_moments(_many(initial, label), *_exact(images[labels == label]))


def test_a_class_gaussian_of_one_class_is_a_gaussian():
    images = _data()
    one = fit_gaussian(images)
    classes = fit_class_gaussians(images, np.zeros(len(images), int), 1)
    np.testing.assert_allclose(_many(one), _many(classes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (UniformInitial(-1.0, 1.0, shape=(3,)), UniformInitial(0.0, 5.0, shape=(3,))),
        (fit_gaussian(_data(0), clamp=(-1.0, 1.0)), fit_gaussian(_data(1), clamp=(-2.0, 2.0))),
        (
            ClassGaussianInitial(jnp.zeros((2, 3)), jnp.zeros((2, 3, 3))),
            ClassGaussianInitial(jnp.ones((2, 3)), jnp.ones((2, 3, 3))),
        ),
        (uniform_like((jnp.zeros(3), jnp.zeros(3))), uniform_like((jnp.zeros(3), jnp.zeros(3)), 0.0, 5.0)),
    ],
    ids=["uniform", "gaussian", "class gaussian", "uniform tree"],
)
def test_they_are_arguments_of_jit_not_constants(first, second):
    chex.clear_trace_counter()  # it knows a function by its code, which is the same for every case

    @jax.jit
    @chex.assert_max_traces(n=1)
    def once(initial):
        return initial(jax.random.key(0), jnp.array(1))

    assert not np.array_equal(once(first), once(second))
    assert jax.tree.structure(first) == jax.tree.structure(jax.tree.map(lambda leaf: leaf, first))


def test_uniform_in_the_shape_of_an_array_is_the_uniform_of_that_shape():
    for example, dtype in ((jnp.zeros((2, 3)), "float32"), (jax.ShapeDtypeStruct((2, 3), jnp.uint8), None)):
        assert uniform_like(example, -2.0, 0.5) == UniformInitial(-2.0, 0.5, shape=(2, 3), dtype=dtype)
    assert uniform_like(jnp.zeros(())).shape == ()


def test_uniform_in_the_shape_of_a_pytree_has_noise_of_its_own_in_every_leaf():
    example = {"a": jnp.zeros((2, 2)), "b": (jnp.zeros(2), jnp.zeros(()))}
    draws = jax.jit(jax.vmap(uniform_like(example, -1.0, 3.0)))(
        jax.random.split(jax.random.key(0), NUM_DRAWS), jnp.zeros(NUM_DRAWS, int)
    )
    assert jax.tree.structure(draws) == jax.tree.structure(example)
    flat = np.concatenate([np.reshape(leaf, (NUM_DRAWS, -1)) for leaf in jax.tree.leaves(draws)], axis=1)
    assert flat.shape == (NUM_DRAWS, 7)
    assert flat.min() >= -1
    assert flat.max() < 3
    error = 5 / np.sqrt(NUM_DRAWS)
    assert np.all(np.abs(flat.mean(0) - 1) < error * np.sqrt(16 / 12))
    assert np.all(np.abs(np.corrcoef(flat, rowvar=False) - np.eye(7)) < error)


def test_a_gaussian_of_given_mean_and_factor():
    factor = jnp.array([[2.0, 0.0], [1.0, 0.5]])
    _assert_moments(
        _many(GaussianInitial(jnp.array([1.0, -1.0]), factor)),
        np.array([1.0, -1.0]),
        np.asarray(factor @ factor.T),
    )


def _tree_data():
    """Images as a pytree of two leaves, and the same numbers as one array."""
    flat = _data().reshape(200, 6).astype(np.float32)
    return {"a": flat[:, :2], "b": flat[:, 2:].reshape(200, 2, 2)}, flat


def test_a_gaussian_of_a_pytree_is_the_gaussian_of_its_numbers():
    tree, flat = _tree_data()
    labels = np.arange(200) % 2
    for fit, arguments in ((fit_gaussian, ()), (fit_class_gaussians, (labels, 2))):
        of_tree, of_array = (fit(images, *arguments, clamp=(-2.0, 2.0)) for images in (tree, flat))
        draws = of_tree(jax.random.key(2), jnp.array(1))
        assert jax.tree.map(jnp.shape, draws) == {"a": (2,), "b": (2, 2)}
        expected = of_array(jax.random.key(2), jnp.array(1))
        np.testing.assert_array_equal(np.concatenate([draws["a"], draws["b"].ravel()]), expected)


def test_one_number_an_example_is_a_position_in_a_pytree():
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    draw = fit_gaussian({"mean": values[:, 0], "scale": values[:, 1]})(jax.random.key(0), jnp.array(0))
    assert jax.tree.map(jnp.shape, draw) == {"mean": (), "scale": ()}


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_chains_start_in_the_dtype_of_the_data(x64):
    with jax.enable_x64(x64):
        for dtype in ("bfloat16", "float16", "float32", "float64"):
            data = np.random.default_rng(0).normal(size=(20, 3)).astype(jnp.dtype(dtype))
            kept = "float32" if dtype == "float64" and not x64 else dtype
            for initial in (
                uniform_like(data[0]),
                uniform_like({"a": data[0], "b": data[0, 0]}),
                fit_gaussian(data, clamp=(-1.0, 1.0)),
                fit_class_gaussians(data, np.arange(20) % 2, 2, clamp=(-1.0, 1.0)),
            ):
                draws = jax.eval_shape(initial, jax.random.key(0), jnp.array(0))
                assert {leaf.dtype.name for leaf in jax.tree.leaves(draws)} == {kept}
        draw = uniform_like(jnp.zeros(500, jnp.bfloat16))(jax.random.key(0), jnp.array(0))
        # Drawn in float32 and rounded: 500 draws from 128 values would hardly give more than 125.
        assert len(set(draw.tolist())) > 250


def test_a_float32_start_is_the_same_under_x64():
    plain = uniform_like(jnp.zeros(4, jnp.float32))(jax.random.key(0), jnp.array(0))
    gaussian = fit_gaussian(_tree_data()[1])
    draw = gaussian(jax.random.key(0), jnp.array(0))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(
            uniform_like(jnp.zeros(4, jnp.float32))(jax.random.key(0), jnp.array(0)), plain
        )
        np.testing.assert_array_equal(gaussian(jax.random.key(0), jnp.array(0)), draw)


def test_they_are_rebuilt_of_whatever_jax_puts_in_their_place():
    # in_axes, shardings, shapes and placeholders: checked where a user makes one, not where JAX does.
    for initial in (
        UniformInitial(-1.0, 1.0, shape=(3,)),
        GaussianInitial(jnp.zeros(3), jnp.eye(3), -1.0),
        ClassGaussianInitial(jnp.zeros((2, 3)), jnp.zeros((2, 3, 3))),
    ):
        leaves, structure = jax.tree.flatten(initial)
        for placeholder in (None, object(), "text"):
            rebuilt = structure.unflatten([placeholder] * len(leaves))
            assert type(rebuilt) is type(initial)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(initial)[0]]
        assert paths[0] in (".low", ".mean", ".means")
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    assert UniformInitial(shape, shape, shape=(3,)).low is shape
    jax.jit(lambda low: UniformInitial(low, 1.0, shape=(3,)))(2.0)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: UniformInitial(0.0, np.inf, shape=(2,)), ValueError, "high=inf"),
        (lambda: UniformInitial("a", 1.0, shape=(2,)), TypeError, "low='a'"),
        (lambda: UniformInitial(0.0, 1.0, shape=3), TypeError, "shape is"),
        (lambda: UniformInitial(0.0, 1.0, shape=(2.5,)), ValueError, "shape=2.5"),
        (lambda: UniformInitial(0.0, 1.0, shape=(2,), dtype="int8"), TypeError, "dtype='int8'"),
        (lambda: UniformInitial(0.0, 1.0, shape=(2,))(3, jnp.array(0)), TypeError, "rng_key=3"),
        (
            lambda: GaussianInitial(jnp.zeros(3), jnp.eye(2)),
            ValueError,
            r"factor has shape \(2, 2\): \(3, 3\)",
        ),
        (lambda: GaussianInitial(jnp.zeros(2), jnp.eye(2), 1.0, 0.0), ValueError, "low=1.0, high=0.0"),
        (lambda: GaussianInitial(jnp.zeros(2), jnp.eye(2), np.nan), ValueError, "low=nan"),
        (lambda: ClassGaussianInitial(jnp.zeros((2, 3)), jnp.eye(3)), ValueError, r"factors.*\(2, 3, 3\)"),
        (lambda: uniform_like("text"), TypeError, "example='text'"),
        (lambda: fit_gaussian(np.zeros((3, 2)), clamp=0.5), ValueError, "clamp=0.5"),
        (lambda: fit_gaussian({"a": np.zeros((3, 2)), "b": np.zeros((2, 2))}), ValueError, "images"),
        (lambda: UniformInitial(1.0, -1.0, shape=(2,)), ValueError, "low"),
        (lambda: uniform_like(jnp.zeros(2), 1.0, 1.0), ValueError, "low=1.0, high=1.0"),
        (lambda: uniform_like({"a": jnp.zeros(2)}, 1.0, 0.0), ValueError, "low=1.0, high=0.0"),
        (lambda: uniform_like({}), ValueError, "example holds no array"),
        (lambda: fit_gaussian(np.zeros((3, 2), np.uint8)), TypeError, "images has dtype uint8"),
        (lambda: fit_gaussian(np.zeros((0, 2))), ValueError, r"images has shape \(0, 2\)"),
        (lambda: fit_gaussian(np.full((3, 2), np.nan)), ValueError, "images holds 6 non-finite"),
        (lambda: fit_gaussian(np.zeros((3, 2)), regularisation=0.0), ValueError, "regularisation"),
        (lambda: fit_gaussian(np.zeros((3, 2)), clamp=(1.0, 0.0)), ValueError, "clamp"),
        (
            lambda: fit_class_gaussians(np.zeros((3, 2)), np.array([0, 0, 2]), 4),
            ValueError,
            r"classes \[1, 3\]",
        ),
        (lambda: fit_class_gaussians(np.zeros((3, 2)), np.array([0, 0, 2]), 2), ValueError, "labels spans"),
        (
            lambda: fit_class_gaussians(np.zeros((3, 2)), np.array([0, 1]), 2),
            ValueError,
            r"labels has shape \(2,\)",
        ),
        (
            lambda: fit_class_gaussians(np.zeros((2, 2)), np.array([0.0, 1.0]), 2),
            TypeError,
            "labels has dtype",
        ),
    ],
)
def test_bad_input_is_named(call, error, named):
    with pytest.raises(error, match=named):
        call()


def test_a_class_without_a_gaussian_is_refused_or_nan():
    initial = ClassGaussianInitial(jnp.zeros((2, 3)), jnp.stack([jnp.eye(3)] * 2))
    for label in (2, -1):
        with pytest.raises(ValueError, match=rf"label spans {label}\.\.{label}: labels must lie in 0\.\.1"):
            initial(jax.random.key(0), label)
    with pytest.raises(TypeError, match="label has dtype float32"):
        initial(jax.random.key(0), 1.5)
    drawn = jax.vmap(lambda label: initial(jax.random.key(0), label))(jnp.array([0, 1, 2, -1]))
    np.testing.assert_array_equal(jnp.isnan(drawn).all(axis=1), [False, False, True, True])
