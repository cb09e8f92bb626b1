"""Inner updates through the first layer: their loop by hand, and the one step that they amount to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.energies import MLP, ConvNet, split_energy
from jaxebm.samplers import first_layer_sgld, run_chain, run_chains, sample, sgld

pytestmark = pytest.mark.usefixtures("cheap_compilation")

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class InTwo:
    """A target of functions: E(x) = rest(x, first(x))."""

    def __init__(self, first, rest):
        self.first, self.rest = first, rest

    def __call__(self, x):
        return self.rest(x, self.first(x))


CURVED = InTwo(lambda x: jnp.tanh(x @ WEIGHTS), lambda x, h: 0.5 * jnp.sum((h - 0.9) ** 2))
NO_ENERGY = InTwo(lambda x: x, lambda x, h: jnp.sum(0 * h))


def one_step(kernel, position, seed=0):
    return kernel.step(jax.random.key(seed), kernel.init(position))


# --- the papers' algorithm, by hand ---


@pytest.mark.parametrize(
    ("num_inner_steps", "full_step_size", "clip", "clamp"),
    [(1, 0.0, None, None), (5, 0.0, None, None), (4, 0.0, 0.3, (-0.5, 0.6)), (3, 0.7, 0.3, (-0.5, 0.6))],
)
def test_one_step_is_the_algorithm_written_in_numpy(num_inner_steps, full_step_size, clip, clamp):
    start = np.array([0.3, -0.4, 0.1, 0.5], np.float32)

    def inner_gradient(x, p):  # of p . tanh(x W)
        return WEIGHTS @ (p * (1 - np.tanh(x @ WEIGHTS) ** 2))

    x = start.astype(np.float64)
    p = np.tanh(x @ WEIGHTS) - 0.9
    full = inner_gradient(x, p)
    x = x - full_step_size * full
    for _ in range(num_inner_steps):
        slope = inner_gradient(x, p)
        if clip:
            slope = np.clip(slope, -clip, clip)
        x = x - 0.2 * slope
        if clamp:
            x = np.clip(x, *clamp)

    kernel = first_layer_sgld(
        CURVED,
        0.2,
        num_inner_steps=num_inner_steps,
        full_step_size=full_step_size,
        gradient_clip=clip,
        state_clamp=clamp,
    )
    state, info = one_step(kernel, jnp.asarray(start))
    np.testing.assert_allclose(state.position, x, rtol=1e-5, atol=1e-6)
    # Info speaks of where the step started from.
    assert float(info.energy) == pytest.approx(0.5 * np.sum((np.tanh(start @ WEIGHTS) - 0.9) ** 2), rel=1e-5)
    assert float(info.gradient_norm) == pytest.approx(np.linalg.norm(full), rel=1e-5)


def test_one_inner_update_is_sgld():
    start = jnp.array([0.3, -0.4, 0.1, 0.5])
    ours, our_info = one_step(first_layer_sgld(CURVED, 0.2, num_inner_steps=1), start)
    theirs, their_info = one_step(sgld(CURVED, 0.2, 0.0), start)
    np.testing.assert_allclose(ours.position, theirs.position, rtol=1e-6)
    np.testing.assert_allclose(our_info, their_info, rtol=1e-6)


# --- what it amounts to ---


@pytest.fixture(scope="module")
def network():
    """The target of a small convolutional network as a function of its variables and a class, and images."""
    module = ConvNet(num_outputs=3, channels=(4, 3))
    images = jax.random.uniform(jax.random.key(0), (5, 8, 8, 1), minval=-1.0)
    variables = jax.jit(module.init)(jax.random.key(1), images[0])
    # Slopes of the order of the clip, so that some entries of the gradient meet it and some do not.
    variables = jax.tree.map(lambda leaf: 2.0 * leaf, variables)
    return functools.partial(split_energy(module, "level_0", "joint").bind, variables), images


def test_through_an_affine_layer_inner_updates_are_one_step(network):
    # W^T p is the same at every x, and a coordinate that walks one way until it meets a wall ends where one
    # long step, cut at the wall, ends.
    bind, images = network
    rate, number, clips = 0.2, 5, {"gradient_clip": 0.05, "state_clamp": (-1.0, 1.0)}

    def run(make_kernel, num_steps, xs):
        def chain(x, label):
            collect = lambda state, info: (state.position, info.gradient_norm)  # noqa: E731
            return run_chain(jax.random.key(0), make_kernel(bind(label)), x, num_steps, collect=collect)[1]

        return jax.vmap(chain)(xs, jnp.arange(5) % 3)

    inner = functools.partial(first_layer_sgld, step_size=rate, num_inner_steps=number, **clips)
    once = functools.partial(sgld, step_size=number * rate, noise_scale=0.0, **clips)
    (paths, norms), (expected, expected_norms) = jax.jit(lambda xs: (run(inner, 3, xs), run(once, 3, xs)))(
        images
    )
    np.testing.assert_allclose(paths, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3)
    # The case is not empty: walls and clips were met, by some entries and not by others.
    moved = np.abs(np.asarray(expected)[:, 0] - np.asarray(images))
    assert 0.02 < np.mean(np.abs(expected) == 1) < 0.98
    assert 0.02 < np.mean(np.isclose(moved, number * rate * 0.05, atol=1e-6)) < 0.98


def test_from_beyond_a_wall_they_are_not():
    # From 2 with slope 1: 2 -> 1 (the wall) -> 0.5, where the long step ends at the wall.
    affine = InTwo(lambda x: x, lambda x, h: jnp.sum(h))
    kernel = first_layer_sgld(affine, 0.5, num_inner_steps=2, state_clamp=(-1.0, 1.0))
    state, _ = one_step(kernel, jnp.array([2.0]))
    assert float(state.position[0]) == 0.5
    once, _ = one_step(sgld(affine, 1.0, 0.0, state_clamp=(-1.0, 1.0)), jnp.array([2.0]))
    assert float(once.position[0]) == 1.0


def test_through_a_curved_layer_they_are_not():
    start = jnp.array([0.3, -0.4, 0.1, 0.5])
    ours, _ = one_step(first_layer_sgld(CURVED, 0.2, num_inner_steps=5), start)
    once, _ = one_step(sgld(CURVED, 1.0, 0.0), start)
    assert np.abs(ours.position - once.position).max() > 0.05
    # But to first order in the step: half the step, a quarter of the difference.
    ours, _ = one_step(first_layer_sgld(CURVED, 5e-3, num_inner_steps=5), start)
    once, _ = one_step(sgld(CURVED, 2.5e-2, 0.0), start)
    fine = np.abs(ours.position - once.position).max()
    ours, _ = one_step(first_layer_sgld(CURVED, 1e-2, num_inner_steps=5), start)
    once, _ = one_step(sgld(CURVED, 5e-2, 0.0), start)
    assert np.abs(ours.position - once.position).max() / fine == pytest.approx(4, rel=0.1)


def test_what_passes_the_first_layer_by_is_no_part_of_the_gradient():
    target = InTwo(lambda x: x**2, lambda x, h: jnp.sum(h) + 100 * jnp.sum(x))
    state, info = one_step(first_layer_sgld(target, 0.1, num_inner_steps=1), jnp.array([1.0]))
    assert float(state.position[0]) == pytest.approx(0.8)
    assert (float(info.energy), float(info.gradient_norm)) == (101.0, 2.0)


# --- noise and precision ---


def test_noise_is_added_by_every_inner_update_anew():
    kernel = first_layer_sgld(NO_ENERGY, 1.0, 0.5, num_inner_steps=4)
    state, _ = one_step(kernel, jnp.zeros(20_000))
    x = np.asarray(state.position, np.float64)
    assert abs(x.mean()) < 5 * 1.0 / np.sqrt(x.size)
    assert abs(x.var() - 4 * 0.25) < 5 * np.sqrt(2 / x.size)  # were they the same draw: 16 * 0.25


def test_no_noise_is_no_noise_whether_seen_or_traced():
    step = jax.jit(lambda noise: one_step(first_layer_sgld(CURVED, 0.2, noise), jnp.ones(4))[0].position)
    expected, _ = one_step(first_layer_sgld(CURVED, 0.2), jnp.ones(4))
    np.testing.assert_allclose(step(0.0), expected.position, rtol=1e-6)
    assert np.abs(step(0.1) - expected.position).max() > 0.01


def test_small_inner_updates_are_not_lost_in_bfloat16():
    # Of the five steps of 0.001 from 1, each by itself is rounded away: half a unit is .002.
    sloped = InTwo(lambda x: x, lambda x, h: jnp.sum(h))
    state, _ = one_step(first_layer_sgld(sloped, 1e-3, num_inner_steps=5), jnp.ones(3, jnp.bfloat16))
    assert state.position.dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.position.astype(jnp.float32), jnp.bfloat16(0.995).astype(jnp.float32))
    assert float(state.position[0]) < 1


def test_a_position_of_several_leaves():
    target = InTwo(
        lambda x: {"h": jnp.tanh(x["a"]), "k": x["b"] ** 2},
        lambda x, h: 0.5 * jnp.sum(h["h"] ** 2) + jnp.sum(h["k"]),
    )
    start = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[2.0]])}
    state, _ = one_step(first_layer_sgld(target, 0.1, num_inner_steps=2), start)
    assert float(state.position["b"][0, 0]) == pytest.approx(2 * 0.8 * 0.8, rel=1e-6)
    assert state.position["a"].shape == (2,)


# --- as a kernel of networks ---


def test_sample_and_run_chains_agree():
    module = MLP(3, widths=(5,))
    variables = module.init(jax.random.key(0), jnp.ones(4))
    starts = jax.random.normal(jax.random.key(1), (6, 4))
    energy = split_energy(module, "hidden_0")
    found = sample(
        jax.random.key(2),
        energy,
        variables,
        starts,
        3,
        kernel=first_layer_sgld,
        step_size=0.1,
        noise_scale=0.05,
        num_inner_steps=2,
    )
    kernel = first_layer_sgld(energy.bind(variables), 0.1, 0.05, num_inner_steps=2)
    expected = jax.jit(lambda key: run_chains(key, kernel, starts, 3)[0].position)(jax.random.key(2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_its_step_can_be_differentiated():
    # E = k x^2 / 2 split at x^2: p = k / 2, the inner updates x <- x (1 - eps k): known, and so is its slope.
    def moved(k):
        target = InTwo(lambda x: x**2, lambda x, h: 0.5 * k * jnp.sum(h))
        return one_step(first_layer_sgld(target, 0.1, num_inner_steps=3), jnp.array([2.0]))[0].position[0]

    value, slope = jax.value_and_grad(moved)(0.5)
    assert float(value) == pytest.approx(2 * 0.95**3, rel=1e-6)
    assert float(slope) == pytest.approx(-0.1 * 3 * 2 * 0.95**2, rel=1e-5)


@pytest.mark.parametrize(
    "target", [jnp.sum, lambda x: jnp.sum(x), functools.partial(lambda params, x: jnp.sum(x), 1.0)]
)
def test_a_target_in_one_piece_is_refused(target):
    with pytest.raises(TypeError, match=r"target.*first and rest.*split_energy"):
        first_layer_sgld(target, 0.1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"noise_scale": -0.1}, "noise_scale"),
        ({"num_inner_steps": 0}, "num_inner_steps"),
        ({"num_inner_steps": 2.0}, "num_inner_steps"),
        ({"full_step_size": -1.0}, "full_step_size"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"state_clamp": (1.0, -1.0)}, "state_clamp"),
    ],
)
def test_bad_parameters_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        first_layer_sgld(CURVED, **{"step_size": 0.1} | arguments)
