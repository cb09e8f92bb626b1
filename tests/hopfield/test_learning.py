"""Memories learnt through recall: gradients through the steps, at the fixed point, and by differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxebm.hopfield.learning import learn_patterns, recall_loss
from jaxebm.hopfield.memories import classical, epanechnikov, modern, sparse
from jaxebm.hopfield.pairwise import graded, pairwise
from jaxebm.hopfield.retrieval import retrieve, trajectory

pytestmark = pytest.mark.usefixtures("cheap_compilation")

RNG = np.random.default_rng(0)
PATTERNS, QUERIES, TARGETS = RNG.normal(size=(4, 6)), RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
COUPLINGS = 0.1 * (RNG.normal(size=(6, 6)) + np.eye(6))
MEMORIES = {
    "modern": lambda: modern(PATTERNS, 0.7, bias=0.1 * PATTERNS[0]),
    "equal_weights": lambda: modern(PATTERNS, 0.5, equal_weights=True),
    "sparse": lambda: sparse(PATTERNS, 0.3, 1.5),
    "graded": lambda: graded(COUPLINGS + COUPLINGS.T, 0.3 * PATTERNS[0], gain=0.9),
}


@pytest.mark.parametrize(
    ("name", "num_steps"), [*((name, None) for name in MEMORIES), ("modern", 3), ("graded", 3)]
)
def test_the_gradient_is_that_of_finite_differences(name, num_steps):
    """Of every array of the memory, in float64; and None, the fixed point, as 300 steps towards it."""
    with jax.enable_x64(True):
        memory = MEMORIES[name]()
        queries, targets = jnp.asarray(QUERIES), jnp.asarray(TARGETS)

        @jax.jit
        def gradients(memory):
            flat, unflatten = ravel_pytree(memory)

            def loss(flat, num_steps):
                return recall_loss(unflatten(flat), queries, targets, num_steps=num_steps)

            many = 300 if num_steps is None else num_steps
            steps = 1e-5 * jnp.eye(flat.size)
            sides = jax.vmap(loss, (0, None))
            forward, backward = sides(flat[None, :] + steps, many), sides(flat[None, :] - steps, many)
            rests = jnp.all(jax.vmap(retrieve, (None, 0))(memory, queries).converged)
            exact = jax.grad(loss)(flat, num_steps)
            return exact, jax.grad(loss)(flat, many), (forward - backward) / 2e-5, rests

        exact, unrolled, quotients, rests = gradients(memory)
    assert bool(rests)
    assert np.max(np.abs(quotients)) > 0.01
    np.testing.assert_allclose(unrolled, quotients, atol=1e-7)
    # The implicit gradient is taken where retrieval stopped, within its tolerance of the fixed point.
    np.testing.assert_allclose(exact, quotients, atol=1e-3 if num_steps is None else 1e-7)


def test_the_loss_is_the_mean_square_of_what_recall_misses():
    memory, queries, targets = modern(PATTERNS, 0.7), jnp.asarray(QUERIES), jnp.asarray(TARGETS)
    for num_steps in (1, 4):
        ends = jax.vmap(lambda query: trajectory(memory, query, num_steps)[0][-1])(queries)  # noqa: B023
        loss = recall_loss(memory, queries, targets, num_steps=num_steps)
        assert float(loss) == pytest.approx(np.mean((np.asarray(ends) - TARGETS) ** 2), rel=1e-5)
    ends = jax.vmap(retrieve, (None, 0))(memory, queries).state
    loss = recall_loss(memory, queries, targets, num_steps=None)
    assert float(loss) == pytest.approx(np.mean((np.asarray(ends) - TARGETS) ** 2), rel=1e-5)


make_modern = partial(modern, beta=4.0, equal_weights=True)
make_sparse = partial(sparse, beta=1.0, alpha=1.5)


@pytest.mark.parametrize(
    ("make_memory", "num_steps"),
    [(make_modern, 1), (make_modern, None), (make_sparse, 1)],
    ids=["modern", "modern_at_the_fixed_point", "sparse"],
)
def test_learnt_patterns_recall_what_is_wanted(make_memory, num_steps):
    """From 8 weak hints in 16 dimensions to the 8 targets, judged by queries that were not learnt from."""
    rng = np.random.default_rng(1)
    targets = rng.choice([-1.0, 1.0], (8, 16)).astype(np.float32)
    repeated = jnp.asarray(np.tile(targets, (8, 1)))
    learnt_from, judged_by = (repeated + 0.4 * rng.normal(size=(64, 16)).astype(np.float32) for _ in range(2))
    start = 0.3 * targets + 0.3 * rng.normal(size=(8, 16))
    patterns, losses = learn_patterns(
        make_memory,
        start,
        learnt_from,
        repeated,
        optimizer=optax.adam(0.05),
        num_updates=150,
        num_steps=num_steps,
    )
    judge = jax.jit(
        lambda patterns, queries: recall_loss(make_memory(patterns), queries, repeated, num_steps=num_steps)
    )
    first, last = (
        float(judge(jnp.asarray(memories, jnp.float32), judged_by)) for memories in (start, patterns)
    )
    assert float(judge(jnp.asarray(start, jnp.float32), learnt_from)) == pytest.approx(
        float(losses[0]), rel=1e-4
    )
    assert losses.shape == (150,)
    assert float(losses[-1]) < 0.05 * float(losses[0])
    assert last < 0.1 * first
    np.testing.assert_array_equal(np.sign(patterns), targets)


def test_memories_of_discrete_states_have_no_gradient():
    for memory in (classical([[1, -1]]), pairwise(np.eye(2)), pairwise(np.eye(2), states="bits")):
        with pytest.raises(ValueError, match="recall has a gradient only for real states"):
            recall_loss(memory, jnp.ones((1, 2)), jnp.ones((1, 2)))


def test_shapes_and_counts_are_checked():
    memory = modern(np.eye(2), 1.0)
    with pytest.raises(ValueError, match=r"queries has shape \(3, 2\) and targets \(2, 2\)"):
        recall_loss(memory, jnp.ones((3, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\(n, D\) is needed"):
        recall_loss(memory, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"query has shape \(3,\): \(2,\)"):
        recall_loss(memory, jnp.ones((1, 3)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="num_steps"):
        recall_loss(memory, jnp.ones((1, 2)), jnp.ones((1, 2)), num_steps=0)

    def learn(patterns=((1, 0), (0, 1)), queries=((1, 0), (0, 1)), num_updates=1, make_memory=make_modern):
        learn_patterns(
            make_memory,
            patterns,
            jnp.asarray(queries, float),
            jnp.eye(2),
            optimizer=optax.sgd(0.1),
            num_updates=num_updates,
        )

    with pytest.raises(ValueError, match="num_updates"):
        learn(num_updates=0)
    with pytest.raises(ValueError, match="non-finite"):
        learn(patterns=[[np.nan, 1.0]])
    with pytest.raises(ValueError, match=r"patterns has shape \(2,\)"):
        learn(patterns=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"queries has shape \(3, 2\)"):
        learn(queries=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="no spins"):
        learn(patterns=[[0.5, 1.0]], make_memory=classical)


def test_epanechnikov_learns_where_balls_overlap_queries():
    """A memory moves onto its target through the step, where the weights of two memories trade off."""
    targets = jnp.array([[0.0, 0.0], [3.0, 0.0]])
    make_memory = partial(epanechnikov, beta=0.5)
    patterns, losses = learn_patterns(
        make_memory, [[0.5, 0.4], [2.4, -0.3]], targets, targets, optimizer=optax.adam(0.05), num_updates=200
    )
    np.testing.assert_allclose(patterns, targets, atol=0.02)
    assert float(losses[-1]) < 1e-3
