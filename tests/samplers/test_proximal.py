"""Proximal Langevin dynamics: the maps by their definition, and the laws by closed form and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from jaxebm.samplers.chains import run_chain, run_chains
from jaxebm.samplers.langevin import sgld
from jaxebm.samplers.proximal import box, projected, proximal_sgld, ridge, soft_threshold

pytestmark = pytest.mark.usefixtures("cheap_compilation")

NUM_CHAINS = 10_000


# --- the maps ---


@pytest.mark.parametrize(
    ("proximal", "penalty"),
    [
        (soft_threshold(0.7), lambda v: 0.7 * np.abs(v)),
        (ridge(0.7), lambda v: 0.35 * v**2),
        (box(-0.5, 0.8), lambda v: np.where((v < -0.5) | (v > 0.8), np.inf, 0.0)),
    ],
    ids=["soft_threshold", "ridge", "box"],
)
def test_a_map_minimises_what_it_says(proximal, penalty):
    v = np.linspace(-4.0, 4.0, 80_001)
    x = np.array([-2.5, -0.6, -0.1, 0.0, 0.3, 0.9, 3.0])
    for step_size in (0.2, 1.5):
        best = [v[np.argmin(penalty(v) + (v - start) ** 2 / (2 * step_size))] for start in x]
        np.testing.assert_allclose(proximal(jnp.asarray(x), step_size), best, atol=1.1e-4)


def test_one_step_is_a_gradient_step_and_a_map():
    start = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.05])}
    kernel = proximal_sgld(
        lambda x: sum(jnp.sum(leaf**4) / 4 for leaf in jax.tree.leaves(x)), soft_threshold(2.0), 0.1, 0.0
    )
    state, info = kernel.step(jax.random.key(0), kernel.init(start))
    np.testing.assert_allclose(state.position["a"], [1 - 0.1 - 0.2, -(2 - 0.8 - 0.2)], rtol=1e-5)
    assert float(state.position["b"][0]) == 0.0
    assert float(info.energy) == pytest.approx(17 / 4, rel=1e-5)
    assert float(info.gradient_norm) == pytest.approx(np.sqrt(65), rel=1e-5)


def test_a_box_is_sglds_clamp():
    start = jnp.linspace(-0.9, 0.9, 50)

    def energy(x):
        return jnp.sum(jnp.cosh(x))

    ours, _ = run_chain(jax.random.key(0), proximal_sgld(energy, box(-1.0, 0.5), 0.2), start, 5)
    clamped, _ = run_chain(jax.random.key(0), sgld(energy, 0.2, state_clamp=(-1.0, 0.5)), start, 5)
    np.testing.assert_allclose(ours.position, clamped.position, rtol=1e-6)


def test_a_projection_of_optax_keeps_the_chain_in_its_set():
    kernel = proximal_sgld(lambda x: jnp.sum(x**2), projected(optax.projections.projection_simplex), 0.05)
    _, path = run_chain(
        jax.random.key(1), kernel, jnp.full(4, 0.25), 30, collect=lambda state, info: state.position
    )
    np.testing.assert_allclose(path.sum(axis=1), 1.0, atol=1e-5)
    assert float(path.min()) == 0.0


# --- the laws ---

# stiffness of the energy, of the ridge, step size, noise over sqrt(2 step): one program
GAUSSIANS = np.array(
    [
        [1.0, 1.0, 0.5, 1.0],
        [1.0, 3.0, 0.5, 1.0],
        [3.0, 1.0, 0.4, 1.0],
        [0.5, 50.0, 0.2, 1.0],
        [1.0, 2.0, 0.3, 0.4],
    ]
)


@pytest.fixture(scope="module")
def gaussian_positions():
    @jax.jit
    @jax.vmap
    def run(rng_key, case):
        stiffness, strength, step_size, noise = case
        kernel = proximal_sgld(
            lambda x: 0.5 * stiffness * x**2, ridge(strength), step_size, noise * jnp.sqrt(2 * step_size)
        )
        states, _ = run_chains(rng_key, kernel, jnp.full(NUM_CHAINS, 3.0), 50)
        return states.position

    keys = jax.random.split(jax.random.key(0), len(GAUSSIANS))
    return np.asarray(run(keys, jnp.asarray(GAUSSIANS, jnp.float32)), np.float64)


@pytest.mark.parametrize("case", range(len(GAUSSIANS)))
def test_two_quadratics_make_a_known_autoregression(gaussian_positions, case):
    stiffness, strength, step_size, noise = GAUSSIANS[case]
    variance = noise**2 / ((stiffness + strength) * (1 + step_size * (strength - stiffness) / 2))
    coefficient = (1 - step_size * stiffness) / (1 + step_size * strength)
    by_hand = 2 * step_size * noise**2 / (1 + step_size * strength) ** 2 / (1 - coefficient**2)
    assert by_hand == pytest.approx(variance)
    x = gaussian_positions[case]
    assert abs(x.mean()) < 5 * np.sqrt(variance / NUM_CHAINS)
    assert abs(np.mean(x**2) / variance - 1) < 5 * np.sqrt(2 / NUM_CHAINS)


def mapped_law(mean, step_size, low, high, threshold, *, num_points=401):
    """Stationary law of x <- map(N(mean(x), 2 step)) in cells: masses, their centres, the one at 0 included.

    ``low`` and ``high`` are where the map's walls are, ``threshold`` what it takes off towards 0: where it is
    not 0, the walls are symmetric and num_points odd, so that 0 is the centre of the middle cell.
    """
    edges = np.linspace(low, high, num_points + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    states = np.concatenate([[low, 0.0, high], centres])
    # The noisy point that is mapped to v is v + threshold sign(v); all of [-threshold, threshold] goes to 0.
    outer = edges + threshold * np.sign(edges)
    scale = np.sqrt(2 * step_size)
    cumulative = norm.cdf((outer[None, :] - mean(states)[:, None]) / scale)
    cells = np.diff(cumulative, axis=1)
    at_zero = np.zeros(states.size)
    if threshold:
        upper, lower = (norm.cdf((side * threshold - mean(states)) / scale) for side in (1, -1))
        at_zero = upper - lower
        middle = num_points // 2  # the cell around 0: the rest of it is continuous
        cells[:, middle] -= at_zero
    transition = np.column_stack([cumulative[:, 0], at_zero, 1 - cumulative[:, -1], cells])
    matrix = np.vstack([transition.T - np.eye(states.size), np.ones(states.size)])
    law = np.linalg.lstsq(matrix, np.append(np.zeros(states.size), 1.0), rcond=None)[0]
    return states, law


def skewed(x):
    return np.exp(x) - 2.0  # the gradient of exp(x) - 2 x


def test_the_law_between_walls():
    step_size, low, high = 0.1, -0.5, 1.2
    states, law = mapped_law(lambda x: x - step_size * skewed(x), step_size, low, high, 0.0)
    kernel = proximal_sgld(lambda x: jnp.exp(x) - 2 * x, box(low, high), step_size)
    run = jax.jit(lambda key: run_chains(key, kernel, jnp.zeros(NUM_CHAINS), 60)[0].position)
    x = np.asarray(run(jax.random.key(1)), np.float64)
    _expect(x, states, law)
    # On either wall with a probability that the docstring tells of, and more of it on the right.
    for wall, mass in ((low, law[0]), (high, law[2])):
        share = np.mean(x == np.float32(wall))
        assert abs(share - mass) < 5 * np.sqrt(mass * (1 - mass) / NUM_CHAINS)
    assert law[2] > law[0] > 0.05


def test_the_law_under_a_laplace_prior():
    step_size, strength = 0.05, 1.5
    states, law = mapped_law(
        lambda x: x - step_size * skewed(x), step_size, -4.0, 4.0, step_size * strength, num_points=601
    )
    kernel = proximal_sgld(lambda x: jnp.exp(x) - 2 * x, soft_threshold(strength), step_size)
    run = jax.jit(lambda key: run_chains(key, kernel, jnp.zeros(NUM_CHAINS), 120)[0].position)
    x = np.asarray(run(jax.random.key(2)), np.float64)
    _expect(x, states, law)
    share = np.mean(x == 0)
    assert abs(share - law[1]) < 5 * np.sqrt(law[1] * (1 - law[1]) / NUM_CHAINS)


def _expect(x, states, law):
    mean = law @ states
    for power in (1, 2, 3):
        term = (x - mean) ** power
        assert abs(term.mean() - law @ (states - mean) ** power) < 5 * term.std() / np.sqrt(x.size), power


def test_the_bias_falls_with_the_root_of_the_step():
    # Against exp(-E - r) between the same walls: the mass on the walls halves where the step falls fourfold.
    x = np.linspace(-0.5, 1.2, 4001)
    density = np.exp(-(np.exp(x) - 2 * x))
    exact = np.sum(x * density) / np.sum(density)
    walls, errors = [], []
    for step_size in (0.04, 0.01):
        states, law = mapped_law(lambda x, h=step_size: x - h * skewed(x), step_size, -0.5, 1.2, 0.0)
        walls.append(law[0] + law[2])
        errors.append(abs(law @ states - exact))
    assert walls[0] / walls[1] == pytest.approx(2, rel=0.15)
    assert errors[1] < errors[0] < 0.02


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: proximal_sgld(jnp.sum, ridge(1.0), 0.0), "step_size"),
        (lambda: proximal_sgld(jnp.sum, ridge(1.0), 0.1, -1.0), "noise_scale"),
        (lambda: soft_threshold(-1.0), "strength"),
        (lambda: ridge(-1.0), "strength"),
        (lambda: box(1.0, 1.0), "low"),
        (lambda: ridge(jnp.ones(2)), r"strength has shape \(2,\)"),
        (lambda: soft_threshold(jnp.ones(2)), r"strength has shape \(2,\)"),
        (lambda: proximal_sgld(jnp.sum, ridge(1.0), 0.1, jnp.ones(2)), r"noise_scale has shape \(2,\)"),
        (lambda: box(jnp.zeros(2), 1.0)(jnp.ones(3), 0.1), r"low has shape \(2,\).*\(3,\)"),
        (lambda: box(0.0, jnp.ones((1, 3)))(jnp.ones(3), 0.1), r"high has shape \(1, 3\).*\(3,\)"),
    ],
)
def test_bad_parameters_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_map_that_loses_the_shape_is_refused():
    kernel = proximal_sgld(jnp.sum, lambda position, step_size: position[:2], 0.1)
    with pytest.raises(ValueError, match=r"proximal.*\(2,\).*\(3,\)"):
        run_chain(jax.random.key(0), kernel, jnp.ones(3), 1)


def test_bfloat16_is_mapped_in_float32():
    seen = []

    def proximal(position, step_size):
        seen.append(position.dtype)
        return position

    kernel = proximal_sgld(lambda x: 0.5 * jnp.sum(x**2), proximal, 0.1)
    state, _ = run_chain(jax.random.key(0), kernel, jnp.ones(3, jnp.bfloat16), 2)
    assert state.position.dtype == jnp.bfloat16
    assert set(seen) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: proximal_sgld(jnp.sum, "ridge", 0.1), "proximal"),
        (lambda: proximal_sgld(jnp.sum, lambda x: x, 0.1), r"proximal\(position, step_size\)"),
        (lambda: projected(None), "projection"),
        (lambda: box(None, 1.0), "low=None"),
        (lambda: box(0.0, 1j), "high=1j"),
    ],
)
def test_what_is_no_map_or_wall_is_named(call, named):
    with pytest.raises(TypeError, match=named):
        call()


def test_a_wall_for_each_entry_broadcasts_to_the_position():
    walls = box(jnp.array([-1.0, 0.0, 1.0]), 2.0)
    moved = walls({"a": jnp.full((2, 3), -5.0), "b": jnp.full(3, 5.0)}, 0.1)
    np.testing.assert_array_equal(moved["a"], [[-1.0, 0.0, 1.0]] * 2)
    np.testing.assert_array_equal(moved["b"], [2.0, 2.0, 2.0])
