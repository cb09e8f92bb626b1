"""The Flax layers: attention as Flax computes it, and retrieval as the papers write it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxebm.hopfield.layers import HopfieldAssociation, HopfieldLookup, HopfieldPooling

pytestmark = pytest.mark.usefixtures("cheap_compilation")

BATCH, QUERIES, MEMORIES, FEATURES, STORED, HEADS = 2, 3, 7, 8, 6, 2


def inputs(seed=0):
    generator = np.random.default_rng(seed)
    queries = generator.normal(size=(BATCH, QUERIES, FEATURES)).astype(np.float32)
    memories = generator.normal(size=(BATCH, MEMORIES, STORED)).astype(np.float32)
    return queries, memories


def initialise(layer, *arrays):
    """Random weights, biases included; not the layer's own, which would be one more program to compile."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), *arrays)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(0, 0.4, leaf.shape).astype(leaf.dtype), shapes)


def apply(layer, variables, *arrays, return_energy=False):
    return jax.jit(functools.partial(layer.apply, return_energy=return_energy))(variables, *arrays)


@functools.cache
def flax_attention(qkv_features=None, out_features=None, use_bias=True):
    """Flax's layer with random weights, biases included."""
    layer = nn.MultiHeadDotProductAttention(
        HEADS,
        qkv_features=qkv_features,
        out_features=out_features,
        use_bias=use_bias,
    )
    return layer, initialise(layer, *inputs())


@pytest.mark.parametrize("options", [(None, None, True), (12, 5, False)])
def test_one_step_is_flax_attention_with_the_same_weights(options):
    """Without a mask, with padding, and with a mask of its own for every head and query."""
    qkv_features, out_features, use_bias = options
    queries, memories = inputs()
    attention, variables = flax_attention(*options)
    padding = np.arange(MEMORIES) < np.array([[3], [7]])
    full = np.random.default_rng(1).uniform(size=(BATCH, HEADS, QUERIES, MEMORIES)) < 0.5
    full[..., 2] = True
    layer = HopfieldAssociation(
        num_heads=HEADS, qkv_features=qkv_features, out_features=out_features, use_bias=use_bias
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(layer.init, jax.random.key(0), queries, memories), variables
    )

    @jax.jit
    def both(variables, queries, memories, padding, full):
        masks = ((None, None), (padding, padding[:, None, None, :]), (full, full))
        return [
            (
                layer.apply(variables, queries, memories, mask),
                attention.apply(variables, queries, memories, mask=flax_mask),
            )
            for mask, flax_mask in masks
        ]

    for outputs, expected in both(variables, queries, memories, padding, full):
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_without_memories_it_is_self_attention():
    queries, _ = inputs()
    layer = HopfieldAssociation(num_heads=HEADS)
    attention = nn.MultiHeadDotProductAttention(HEADS)
    variables = initialise(attention, queries)
    expected = jax.jit(attention.apply)(variables, queries)
    np.testing.assert_allclose(apply(layer, variables, queries), expected, atol=1e-6)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_without_projections_it_iterates_the_raw_memories(num_heads):
    generator = np.random.default_rng(2)
    memories = generator.choice([-1.0, 1.0], size=(5, FEATURES)).astype(np.float32)
    queries = memories[:3] + 0.6 * generator.normal(size=(3, FEATURES)).astype(np.float32)
    layer = HopfieldAssociation(num_heads=num_heads, num_steps=4, beta=1.5, projections=False)
    variables = initialise(layer, queries, memories)
    assert not variables
    outputs, energies = apply(layer, variables, queries, memories, return_energy=True)
    width = FEATURES // num_heads
    for head in range(num_heads):
        stretch = slice(head * width, (head + 1) * width)
        stored, xi = memories[:, stretch], queries[:, stretch]
        for _ in range(4):
            weights = np.exp(1.5 * xi @ stored.T)
            xi = weights @ stored / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs[:, stretch], xi, atol=1e-5)
        scores = np.exp(1.5 * xi @ stored.T).mean(axis=1)
        np.testing.assert_allclose(
            energies[head], 0.5 * np.sum(xi**2, axis=1) - np.log(scores) / 1.5, atol=1e-5
        )
    if num_heads == 1:
        cold = apply(layer.clone(beta=8.0), {}, queries, memories)
        np.testing.assert_allclose(cold, memories[:3], atol=1e-3)


def test_energies_never_rise_with_more_steps():
    queries, memories = inputs()
    mask = np.arange(MEMORIES) < np.array([[4], [7]])
    layer = HopfieldAssociation(num_heads=HEADS, beta=4.0, alpha=1.5)
    variables = initialise(layer, queries, memories)
    energies = []

    @jax.jit
    def after(variables):
        clones = [layer.clone(num_steps=num_steps) for num_steps in (1, 2, 6)]
        return [each.apply(variables, queries, memories, mask, return_energy=True) for each in clones]

    for outputs, energy in after(variables):
        assert outputs.shape == queries.shape
        assert energy.shape == (BATCH, HEADS, QUERIES)
        energies.append(np.asarray(energy))
    assert np.all(np.diff(energies, axis=0) <= 1e-6)
    # Sparse recall may arrive in one step.
    assert np.mean(energies[-1] < energies[0] - 1e-4) > 0.3


def test_asking_for_the_energy_does_not_change_the_outputs():
    queries, memories = inputs()
    layer = HopfieldAssociation(num_heads=HEADS, num_steps=2)
    variables = initialise(layer, queries, memories)
    outputs, _ = apply(layer, variables, queries, memories, return_energy=True)
    np.testing.assert_allclose(outputs, apply(layer, variables, queries, memories), atol=1e-6)


def test_masked_memories_have_no_influence():
    queries, memories = inputs()
    mask = np.arange(MEMORIES) < np.array([[4], [6]])
    layer = HopfieldAssociation(num_heads=HEADS, num_steps=2, alpha=1.0)
    variables = initialise(layer, queries, memories)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(memories):
        parts = layer.apply(variables, queries, memories, mask, return_energy=True)
        return sum(part.sum() for part in parts), parts

    slope, parts = run(memories)
    chex.assert_trees_all_equal(parts, run(memories + 5.0 * ~mask[..., None])[1])
    slope = np.asarray(slope)
    assert not slope[~mask].any()
    assert np.any(slope[mask] != 0)


def test_pooling_ignores_the_order_and_the_padding():
    _, memories = inputs()
    mask = np.arange(MEMORIES) < np.array([[4], [7]])
    layer = HopfieldPooling(num_queries=3, num_heads=HEADS, num_steps=2)
    variables = initialise(layer, memories, mask)
    assert set(variables["params"]) == {"queries", "association"}
    pooled, energies = apply(layer, variables, memories, mask, return_energy=True)
    assert pooled.shape == (BATCH, 3, STORED)
    assert energies.shape == (BATCH, HEADS, 3)
    order = np.random.default_rng(0).permutation(MEMORIES)
    shuffled, _ = apply(layer, variables, memories[:, order], mask[:, order], return_energy=True)
    np.testing.assert_allclose(shuffled, pooled, atol=1e-6)
    short = apply(layer, variables, memories[0, :4])  # no batch axis, no padding
    np.testing.assert_allclose(short, pooled[0], atol=1e-6)
    association = HopfieldAssociation(num_heads=HEADS, num_steps=2)
    queries = jnp.broadcast_to(variables["params"]["queries"], (BATCH, 3, STORED))
    direct = apply(association, {"params": variables["params"]["association"]}, queries, memories, mask)
    chex.assert_trees_all_close(direct, pooled, atol=1e-6)


def test_padding_may_hold_anything():
    """NaN in masked memories changes neither outputs, energies nor the derivatives of weights.

    The last bag of the second batch is empty, as in a batch filled up to its size; the mask is traced.
    """
    queries, memories = inputs()
    mask = np.arange(MEMORIES) < np.array([[4], [0]])
    faulty = np.where(mask[..., None], memories, np.nan).astype(np.float32)
    layers = {
        "pooling": (HopfieldPooling(num_queries=2, num_heads=HEADS, num_steps=2), lambda stored: (stored,)),
        "association": (
            HopfieldAssociation(num_heads=HEADS, num_steps=2, alpha=1.5, learn_beta=True),
            lambda stored: (queries, stored),
        ),
        "alone": (HopfieldAssociation(num_heads=HEADS), lambda stored: (stored, None)),
    }
    trees = {name: initialise(layer, *arrays(memories)) for name, (layer, arrays) in layers.items()}

    @jax.jit
    def run(trees, stored, mask):
        def loss(trees):
            found = {
                name: layer.apply(trees[name], *arrays(stored), mask, return_energy=True)
                for name, (layer, arrays) in layers.items()
            }
            kept = jnp.sum(found["alone"][0] ** 2, where=mask[..., None])
            kept += jnp.sum(found["alone"][1], where=mask[:, None])
            return kept + sum(
                jnp.sum(part[0] ** 2) for name in ("pooling", "association") for part in found[name]
            ), found

        return jax.value_and_grad(loss, has_aux=True)(trees)

    (value, found), slopes = run(trees, memories, mask)
    (faulty_value, faulty_found), faulty_slopes = run(trees, faulty, mask)
    np.testing.assert_allclose(faulty_value, value, rtol=1e-6)
    chex.assert_trees_all_close(faulty_slopes, slopes, rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(faulty_found)
    for name in ("pooling", "association"):
        chex.assert_trees_all_close(
            [part[0] for part in faulty_found[name]], [part[0] for part in found[name]]
        )
    # A fault in a memory that is not masked is seen by all that may recall it, and nowhere else.
    (_, spoilt), _ = run(trees, np.where(np.arange(MEMORIES)[:, None] == 2, np.nan, memories), mask)
    for name in ("pooling", "association"):
        for part in spoilt[name]:
            assert np.all(np.isnan(part[0]))
            assert np.all(np.isfinite(part[1]))


def test_pooling_learns_to_find_the_marked_memory():
    """Multiple instances: the label is a feature of the one memory that carries a mark."""
    generator = np.random.default_rng(0)
    bags = generator.normal(size=(64, 10, 4)).astype(np.float32)
    marked = generator.integers(10, size=64)
    bags[..., 0] = np.arange(10) == marked[:, None]
    labels = bags[np.arange(64), marked, 1]
    layer = HopfieldPooling(out_features=1, learn_beta=True)
    variables = jax.jit(layer.init)(jax.random.key(0), bags)
    optimizer = optax.adam(0.05)

    def loss(variables):
        return jnp.mean((layer.apply(variables, bags)[:, 0, 0] - labels) ** 2)

    @jax.jit
    def train(variables):
        def step(carry, _):
            variables, state = carry
            value, gradient = jax.value_and_grad(loss)(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), None, 200)[1]

    losses = train(variables)
    assert float(losses[0]) > 0.5
    assert float(losses[-1]) < 0.02


def test_lookup_is_association_with_learnt_memories():
    queries, _ = inputs()
    layer = HopfieldLookup(5, num_heads=HEADS, num_steps=2, alpha=1.5)
    variables = initialise(layer, queries)
    memories = variables["params"]["memories"]
    assert memories.shape == (5, FEATURES)
    association = HopfieldAssociation(num_heads=HEADS, num_steps=2, alpha=1.5)
    tree = {"params": variables["params"]["association"]}
    shared = jnp.broadcast_to(memories, (BATCH, 5, FEATURES))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def looked_up(variables):
        found = layer.apply(variables, queries, return_energy=True)
        return found[0].sum(), (found, layer.apply(variables, queries[None], return_energy=True))

    slopes, ((outputs, energies), deeper) = looked_up(variables)
    expected = apply(association, tree, queries, shared, return_energy=True)
    chex.assert_trees_all_close((outputs, energies), expected, atol=2e-6)
    chex.assert_trees_all_close(deeper, (outputs[None], energies[None]), atol=1e-6)
    assert bool(jnp.any(slopes["params"]["memories"] != 0))


def test_beta_is_learnt_and_stays_positive():
    queries, memories = inputs()
    layer = HopfieldAssociation(num_heads=HEADS, num_steps=2, beta=0.5, learn_beta=True)
    variables = jax.jit(layer.init)(jax.random.key(0), queries, memories)
    np.testing.assert_allclose(jnp.exp(variables["params"]["log_beta"]), 0.5, rtol=1e-6)
    fixed = {"params": {k: v for k, v in variables["params"].items() if k != "log_beta"}}
    outputs = apply(layer, variables, queries, memories)
    static = apply(layer.clone(learn_beta=False), fixed, queries, memories)
    np.testing.assert_allclose(outputs, static, atol=1e-6)

    @jax.jit
    def descend(variables):
        slope = jax.grad(lambda tree: jnp.sum(layer.apply(tree, queries, memories) ** 2))(variables)
        step = jax.tree.map(lambda value, change: value - change, variables, slope)
        return slope["params"]["log_beta"], jnp.exp(step["params"]["log_beta"])

    slope, beta = descend(variables)
    assert float(slope) != 0
    assert float(beta) > 0


def test_bfloat16():
    queries, memories = inputs()
    layer = HopfieldAssociation(num_heads=HEADS, num_steps=2, learn_beta=True, alpha=1.0, dtype=jnp.bfloat16)
    variables = initialise(layer, queries, memories)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    outputs, energies = apply(layer, variables, queries, memories, return_energy=True)
    assert (outputs.dtype, energies.dtype) == (jnp.bfloat16, jnp.float32)
    wide, wide_energies = apply(layer.clone(dtype=None), variables, queries, memories, return_energy=True)
    np.testing.assert_allclose(outputs.astype(jnp.float32), wide, atol=0.06)
    np.testing.assert_allclose(energies, wide_energies, atol=0.06)
    raw = HopfieldAssociation(projections=False, alpha=1.5, dtype=jnp.bfloat16)
    assert jax.eval_shape(raw.apply, {}, queries, queries).dtype == jnp.bfloat16


def test_new_values_do_not_recompile():
    layer = HopfieldAssociation(num_heads=HEADS, num_steps=3, learn_beta=True, alpha=1.5)
    queries, memories = inputs()
    variables = initialise(layer, queries, memories)

    @jax.jit
    @chex.assert_max_traces(1)
    def run(variables, queries, memories, mask):
        return layer.apply(variables, queries, memories, mask, return_energy=True)

    mask = np.ones((BATCH, MEMORIES), bool)
    first, _ = run(variables, queries, memories, mask.copy())
    mask[:, 3] = False
    second, _ = run(jax.tree.map(lambda leaf: 0.5 * leaf, variables), *inputs(1), mask)
    assert not np.allclose(first, second)


def test_errors():
    queries, memories = inputs()
    key = jax.random.key(0)

    def init(*arrays, **options):
        return HopfieldAssociation(**options).init(key, *arrays)

    with pytest.raises(ValueError, match="8 features cannot be divided among num_heads=3"):
        init(queries, memories, num_heads=3)
    for name in ("num_heads", "num_steps"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            init(queries, memories, **{name: 0})
    for learn_beta in (False, True):
        with pytest.raises(ValueError, match=r"beta=-1.0"):
            init(queries, memories, beta=-1.0, learn_beta=learn_beta)
    with pytest.raises(ValueError, match=r"queries of shape \(2, 3, 8\) and memories of shape \(7, 6\)"):
        init(queries, memories[0])
    with pytest.raises(
        ValueError, match="projections=False with 8 features of the queries, 6 of the memories"
    ):
        init(queries, memories, projections=False)
    with pytest.raises(ValueError, match="out_features=4"):
        init(queries, queries, projections=False, out_features=4)
    mask = np.ones((BATCH, MEMORIES), bool)
    mask[1] = False
    with pytest.raises(ValueError, match="no memory to recall"):
        init(queries, memories, mask)
    with pytest.raises(ValueError, match=r"mask of shape \(1, 6\)"):
        init(queries, memories, mask[:1, 1:])
    with pytest.raises(ValueError, match="num_queries=0"):
        HopfieldPooling(num_queries=0).init(key, memories)
    with pytest.raises(ValueError, match="num_memories=0"):
        HopfieldLookup(num_memories=0).init(key, queries)
    for options in ({"learn_beta": 1}, {"projections": "no"}, {"dtype": "wide"}, {"param_dtype": jnp.int32}):
        with pytest.raises(TypeError, match=f"{next(iter(options))}="):
            HopfieldPooling(**options)
    for options in ({"alpha": 0.5}, {"implementation": "triton"}, {"qkv_features": 0}, {"out_features": 2.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            HopfieldPooling(**options)
    with pytest.raises(ValueError, match=r"memories of shape \(6,\)"):
        HopfieldPooling().init(key, memories[0, 0])
    with pytest.raises(ValueError, match=r"queries of shape \(8,\)"):
        HopfieldLookup(num_memories=4).init(key, queries[0, 0])
