"""Recall, energies, layers and stochastic kernels in every floating dtype, with and without x64."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm import hopfield

pytestmark = pytest.mark.usefixtures("cheap_compilation")

PATTERNS = np.array([[1, 1, 1, -1, -1, 1], [1, -1, 1, -1, 1, -1], [-1, 1, 1, 1, -1, -1]], np.float32)


def chain(kernel, x, rng_key):
    def step(state, step_key):
        return kernel.step(step_key, state)[0], None

    return jax.lax.scan(step, kernel.init(x), jax.random.split(rng_key, 2))[0]


def everything(patterns, number):
    """What each function returns; ``number`` is a step size, temperature and beta of any dtype."""
    x = patterns[0]
    classical, modern = hopfield.classical(patterns), hopfield.modern(patterns, number)
    coupled = hopfield.pairwise(hopfield.projection(patterns))
    graded = hopfield.graded(hopfield.storkey(patterns), gain=number)
    key = jax.random.key(0)
    pooling = hopfield.HopfieldPooling(num_heads=2, alpha=1.5, num_steps=2, projections=False)
    layers = {"visible": hopfield.Quadratic(), "hidden": hopfield.Softmax()}
    deep = hopfield.HierarchicalMemory(layers, [hopfield.DenseSynapse("hidden", "visible")])
    start = {"visible": x, "hidden": patterns[:, 0]}
    return {
        "energy": [hopfield.energy(memory, x) for memory in (classical, modern, coupled, graded)],
        "tangent": hopfield.retrieve(classical, x).state,
        "difference": hopfield.retrieve(hopfield.exponential(patterns), x, rule="difference").state,
        "fixed point": hopfield.retrieve(modern, x, step_size=number, max_steps=3).state,
        "graded": hopfield.trajectory(graded, x, 1, step_size=number)[0],
        "one by one": [hopfield.retrieve_asynchronously(memory, x).state for memory in (classical, coupled)],
        "glauber": chain(hopfield.glauber(classical, number), x, key),
        "block": chain(hopfield.block_gibbs(classical, number), x, key),
        "diffusion": hopfield.reverse_diffusion(key, patterns, x, [1.0, 0.0]),
        "layer": pooling.apply({"params": {"queries": x[None]}}, patterns, np.array([True, True, False])),
        "deep": deep.step([patterns], start, 0.5),
    }


@pytest.mark.parametrize(
    ("x64", "dtype"), [(False, "bfloat16"), (True, "float16"), (True, "float32"), (True, "float64")]
)
def test_the_dtype_of_the_patterns_is_kept(x64, dtype):
    """The number is of the widest dtype, as a schedule's or NumPy's is under x64: states do not widen."""
    with jax.enable_x64(x64):
        found = jax.jit(everything)(jnp.asarray(PATTERNS, dtype), jnp.asarray(np.float64(0.5)))
        wrong = {
            jax.tree_util.keystr(path): str(leaf.dtype)
            for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]
            if leaf.dtype != jnp.dtype(dtype)
        }
        assert not wrong
        np.testing.assert_array_equal(found["tangent"], PATTERNS[0])
        np.testing.assert_array_equal(found["difference"], PATTERNS[0])
        np.testing.assert_array_equal(found["one by one"], [PATTERNS[0], PATTERNS[0]])
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


def test_rules_of_storage_keep_the_dtype():
    """Projections and line searches have no 16-bit form: they are computed in 32 bits and rounded."""
    for dtype in (jnp.bfloat16, jnp.float16):
        patterns = jnp.asarray(PATTERNS, dtype)
        wide = hopfield.projection(jnp.asarray(PATTERNS))
        narrow = hopfield.projection(patterns)
        assert narrow.dtype == dtype
        np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=float(jnp.finfo(dtype).eps))
    weights, bias = hopfield.minimum_probability_flow(patterns, num_steps=2)
    assert (weights.dtype, bias.dtype) == (jnp.float16, jnp.float16)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ring:
    """A memory whose state goes round a ring of 300 spins for ever."""

    patterns: jax.Array
    states: str = field(default="spins", metadata={"static": True})
    dimension: int = field(default=300, metadata={"static": True})

    def energy(self, x):
        return jnp.zeros((), x.dtype)

    def update(self, x):
        return jnp.roll(x, 1)


def test_steps_are_counted_exactly_in_16_bits():
    """bfloat16 has the integers up to 256, then every second one."""
    x = jnp.full(300, -1, jnp.bfloat16).at[0].set(1)
    assert int(hopfield.retrieve(Ring(x[None]), x, max_steps=291).steps) == 291
