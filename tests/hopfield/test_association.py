"""Store and retrieve against plain NumPy loops, and the energy that it descends."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.hopfield.association import associate, association_energy
from jaxebm.hopfield.tsallis import entmax

pytestmark = pytest.mark.usefixtures("cheap_compilation")

BATCH, QUERIES, MEMORIES, HEADS, FEATURES = 2, 3, 6, 2, 4
ALPHAS = [1.0, 1.5, 2.0]
recall = jax.jit(associate, static_argnames=("alpha", "num_steps", "implementation"))
energy = jax.jit(association_energy, static_argnames="alpha")


def inputs(seed=0):
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(BATCH, QUERIES, HEADS, FEATURES)).astype(np.float32)
    keys, values = generator.normal(size=(2, BATCH, MEMORIES, HEADS, FEATURES)).astype(np.float32)
    mask = generator.uniform(size=(BATCH, HEADS, QUERIES, MEMORIES)) < 0.6
    mask[..., 0] = True
    return states, keys, values, mask


def heads_of(states, keys, values, mask):
    """Every state with the memories that it may recall: index, xi (d,), K (n, d), V (n, d)."""
    for index in np.ndindex(BATCH, HEADS, QUERIES):
        batch, head, query = index
        kept = mask[index]
        yield index, states[batch, query, head], keys[batch, kept, head], values[batch, kept, head]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_recall_is_the_update_iterated(alpha):
    states, keys, values, mask = inputs()
    beta, num_steps = 1.3, 3
    recalled = np.asarray(
        recall(states, keys, values, beta=beta, mask=mask, alpha=alpha, num_steps=num_steps)
    )
    for (batch, head, query), xi, stored, read in heads_of(states, keys, values, mask):
        for step in range(num_steps):
            scores = beta * stored @ xi
            if alpha == 1:
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
            else:
                # Memories that are left out entirely: so the rows are padded by what can never be chosen.
                padded = np.full(MEMORIES, -1e9, np.float32)
                padded[: len(scores)] = scores
                weights = np.asarray(_probabilities(padded, alpha))[: len(scores)]
            xi = (read if step == num_steps - 1 else stored).T @ weights
        np.testing.assert_allclose(recalled[batch, query, head], xi, atol=2e-6)


_probabilities = jax.jit(entmax, static_argnums=1)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_energy_is_that_of_a_network_without_the_masked_memories(alpha):
    states, keys, values, mask = inputs()
    beta = 0.7
    found = np.asarray(energy(states, keys, beta=beta, mask=mask, alpha=alpha))
    assert found.shape == (BATCH, HEADS, QUERIES)
    alone = jax.jit(functools.partial(association_energy, beta=beta, alpha=alpha))
    for index, xi, stored, _ in heads_of(states, keys, values, mask):
        if alpha == 1:
            scores = beta * stored @ xi
            expected = 0.5 * xi @ xi - (np.log(np.exp(scores).sum()) - np.log(len(scores))) / beta
        else:
            expected = float(alone(xi[None, None], stored[:, None])[0, 0])
        assert found[index] == pytest.approx(expected, abs=2e-6)


def test_energy_of_one_memory_is_quadratic():
    states, keys, _, _ = inputs()
    found = np.asarray(energy(states, keys[:, :1], beta=2.0, alpha=1.5))
    distances = np.sum((states - keys[:, :1]) ** 2 - keys[:, :1] ** 2, axis=-1) / 2
    np.testing.assert_allclose(found, np.swapaxes(distances, 1, 2), atol=2e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_step_subtracts_the_gradient_of_the_energy(alpha):
    states, keys, _, mask = inputs()
    options = {"beta": 1.7, "mask": mask, "alpha": alpha}
    slope = jax.jit(jax.grad(lambda xi: association_energy(xi, keys, **options).sum()))(states)
    np.testing.assert_allclose(recall(states, keys, **options), states - slope, atol=2e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_every_step_descends(alpha):
    states, keys, _, mask = inputs(3)
    now = np.asarray(energy(states, keys, beta=3.0, mask=mask, alpha=alpha))
    start = now
    for _ in range(12):
        states = recall(states, keys, beta=3.0, mask=mask, alpha=alpha)
        before, now = now, np.asarray(energy(states, keys, beta=3.0, mask=mask, alpha=alpha))
        assert np.all(now <= before + 1e-6)
    assert np.all(now < start - 1e-3)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_masked_memories_have_no_influence(alpha):
    states, keys, values, _ = inputs()
    padding = np.array([[True] * 4 + [False] * 2, [False] * 3 + [True] * 3])

    def run(keys, values):
        options = {"beta": 1.0, "mask": padding, "alpha": alpha}
        return associate(states, keys, values, num_steps=2, **options), association_energy(
            states, keys, **options
        )

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run_and_slopes(pair):
        parts = run(*pair)
        return sum(part.sum() for part in parts), parts

    hidden = ~padding[:, :, None, None]
    slopes, parts = run_and_slopes((keys, values))
    _, other_parts = run_and_slopes((keys + 9.0 * hidden, values - 50.0 * hidden))
    chex.assert_trees_all_equal(parts, other_parts)
    for slope in map(np.asarray, slopes):
        assert np.all(np.isfinite(slope))
        assert not slope[~padding].any()
        assert np.mean(slope[padding] != 0) > 0.6  # sparse recall leaves some out of its own accord


def test_mask_of_either_rank_and_of_broadcast_axes():
    states, keys, values, mask = inputs()
    padding = mask[:, 0, 0]
    full = np.broadcast_to(padding[:, None, None], mask.shape)
    expected = recall(states, keys, values, mask=full)
    for other in (padding, padding[:, None, None], full[:, :1], full[:, :, :1]):
        np.testing.assert_allclose(recall(states, keys, values, mask=other), expected, atol=1e-7)
    shared = recall(states, keys, values, mask=mask[:1, :1])
    again = recall(states, keys, values, mask=np.broadcast_to(mask[:1, :1], mask.shape))
    np.testing.assert_allclose(shared, again, atol=1e-7)
    unbatched = recall(states[0], keys[0], values[0], mask=padding[0])
    np.testing.assert_allclose(unbatched, expected[0], atol=1e-6)
    two_axes = recall(states[None], keys[None], values[None], mask=mask[None])
    np.testing.assert_allclose(two_axes[0], recall(states, keys, values, mask=mask), atol=1e-6)


def test_sparse_recall_ignores_far_memories_exactly():
    keys = np.eye(4, dtype=np.float32)[:, None]
    states = np.array([[[1.0, 0.9, 0.0, 0.0]]], np.float32)

    def first(values, alpha):
        return associate(states, keys, values, beta=3.0, alpha=alpha).sum()

    slope = jax.jit(jax.grad(first), static_argnums=1)
    used = {alpha: np.asarray(slope(keys, alpha) != 0).any(axis=(1, 2)) for alpha in ALPHAS}
    assert used[1.0].tolist() == [True] * 4
    assert used[1.5].tolist() == used[2.0].tolist() == [True, True, False, False]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _fixed(states, keys, values, mask, beta, alpha):
    return associate(states, keys, values, beta=beta, mask=mask, num_steps=2, alpha=alpha)


def test_beta_may_be_traced_and_both_kernels_agree():
    states, keys, values, mask = inputs()

    @jax.jit
    @chex.assert_max_traces(1)
    def traced(beta):
        return associate(states, keys, values, beta=beta, mask=mask, num_steps=2)

    for beta in (0.3, 2.0):
        fixed = _fixed(states, keys, values, mask, beta, 1.0)
        np.testing.assert_allclose(traced(beta), fixed, atol=1e-6)
        # Next to 1, entmax takes the road without the fused kernel.
        nearly = _fixed(states, keys, values, mask, beta, 1 + 1e-9)
        np.testing.assert_allclose(nearly, fixed, atol=2e-6)
    default = recall(states, keys, values)
    np.testing.assert_allclose(default, recall(states, keys, values, beta=FEATURES**-0.5), atol=1e-6)
    np.testing.assert_allclose(default, recall(states, keys, values, implementation="xla"), atol=1e-7)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_nothing_to_recall_is_refused_or_harmless(alpha):
    states, keys, values, mask = inputs()
    mask[0, 1, 2] = False
    with pytest.raises(ValueError, match="no memory to recall"):
        associate(states, keys, values, mask=mask, alpha=alpha)

    @jax.jit
    def traced(mask, keys):
        options = {"mask": mask, "alpha": alpha}
        return associate(states, keys, values, **options), association_energy(states, keys, **options)

    recalled, energies = traced(mask, keys)
    np.testing.assert_allclose(recalled[0, 2, 1], values[0, :, 1].mean(axis=0), atol=1e-6)
    assert float(energies[0, 1, 2]) == pytest.approx(0.5 * np.sum(states[0, 2, 1] ** 2), abs=1e-6)
    slope = jax.jit(jax.grad(lambda keys, mask: sum(part.sum() for part in traced(mask, keys))))
    chex.assert_tree_all_finite(slope(keys, mask))


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_masked_faults_do_not_spread(alpha):
    """NaN and infinity in masked memories change neither values nor derivatives; others are seen as NaN.

    Memory 1 is masked for all; memory 2 for some queries of some heads; batch 1 has a query without any.
    """
    states, keys, values, mask = inputs()
    mask[..., 1] = False
    mask[0, 0, :, 2] = [True, False, False]
    mask[1, 1, 2] = False
    faulty_keys, faulty_values = keys.copy(), values.copy()
    faulty_keys[:, 1], faulty_values[:, 1, 0] = np.nan, np.inf
    weights = np.random.default_rng(5).normal(size=states.shape).astype(np.float32)

    # traced, because a concrete mask with an empty row is refused
    run = functools.partial(
        jax.jit(lambda mask, *args: _masked_run(mask, alpha, weights, states, *args)), mask
    )
    everywhere = np.ones(states.shape[:3], bool)
    everywhere[1, 2, 1] = False  # nothing to recall: the mean of all, which is another one without memory 1
    clean, faulty = run(keys, values, everywhere), run(faulty_keys, faulty_values, everywhere)
    (value, (recalled, energies)), slopes = clean
    (faulty_value, (faulty_recalled, faulty_energies)), faulty_slopes = faulty
    np.testing.assert_allclose(faulty_value, value, rtol=1e-6)
    np.testing.assert_allclose(faulty_recalled[everywhere], recalled[everywhere], rtol=1e-6)
    np.testing.assert_allclose(faulty_energies, energies, rtol=1e-6)
    chex.assert_trees_all_close(faulty_slopes, slopes, rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(faulty_recalled))
    # Memory 2 with a fault in head 0: NaN for the queries that may recall it, and only for these.
    faulty_keys[:, 2, 0, 0] = np.nan
    seen = np.swapaxes(mask[..., 2], 1, 2).copy()
    seen[:, :, 1] = False
    (_, (recalled_2, energies_2)), _ = run(faulty_keys, faulty_values, everywhere & ~seen)
    np.testing.assert_array_equal(np.all(np.isnan(recalled_2), axis=-1), seen)
    np.testing.assert_array_equal(np.isnan(np.swapaxes(energies_2, 1, 2)), seen)
    fine = everywhere & ~seen
    np.testing.assert_allclose(recalled_2[fine], recalled[fine], rtol=1e-6)


def _masked_run(mask, alpha, weights, states, keys, values, seen):
    def loss(states, keys, values):
        recalled = associate(states, keys, values, mask=mask, alpha=alpha, num_steps=2)
        energies = association_energy(states, keys, mask=mask, alpha=alpha)
        used = jnp.where(seen[..., None], weights * recalled, 0.0)
        heights = jnp.where(jnp.swapaxes(seen, 1, 2), energies, 0.0)
        return jnp.sum(used) + jnp.sum(heights), (recalled, energies)

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(states, keys, values)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_bfloat16(alpha):
    states, keys, values, mask = inputs()
    narrow = (jnp.asarray(array, jnp.bfloat16) for array in (states, keys, values))
    states16, keys16, values16 = narrow
    recalled = recall(states16, keys16, values16, mask=mask, alpha=alpha, num_steps=2)
    assert recalled.dtype == jnp.bfloat16
    wide = recall(states, keys, values, mask=mask, alpha=alpha, num_steps=2)
    np.testing.assert_allclose(recalled.astype(jnp.float32), wide, atol=0.06)
    energies = energy(states16, keys16, mask=mask, alpha=alpha)
    assert energies.dtype == jnp.float32
    np.testing.assert_allclose(energies, energy(states, keys, mask=mask, alpha=alpha), atol=0.05)


def test_errors():
    states, keys, values, mask = inputs()
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"beta=.*greater than 0"):
            associate(states, keys, beta=beta)
    with pytest.raises(ValueError, match=r"beta of shape \(2,\)"):
        associate(states, keys, beta=jnp.ones(2))
    with pytest.raises(ValueError, match=r"num_steps=0"):
        associate(states, keys, num_steps=0)
    with pytest.raises(ValueError, match=r"alpha=0.5"):
        associate(states, keys, alpha=0.5)
    with pytest.raises(ValueError, match="only alpha=1 has a fused kernel"):
        associate(states, keys, alpha=2.0, implementation="cudnn")
    with pytest.raises(ValueError, match="values of shape"):
        associate(states, keys, values[:, :2])
    for wrong in (keys[:1], keys[..., :1], keys[:, :, :1], keys[0], keys[0, 0]):
        with pytest.raises(ValueError, match=r"states of shape .* and keys of shape"):
            associate(states, wrong)
    with pytest.raises(ValueError, match="at least one memory"):
        associate(states, keys[:, :0])
    with pytest.raises(TypeError, match="mask has dtype float32"):
        associate(states, keys, mask=mask.astype(np.float32))
    for wrong_mask in (mask[:, 0], mask[..., :4], mask[0, 0, 0], np.ones((BATCH, MEMORIES + 1), bool)):
        with pytest.raises(ValueError, match=r"mask of shape .*is needed"):
            associate(states, keys, mask=wrong_mask)
