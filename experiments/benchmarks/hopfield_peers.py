"""The other implementations of `benchmarks.hopfield`: the same mathematics in NumPy, PyTorch and hamux.

Packages are imported where they are needed, so that a missing one only leaves out its own rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["loop_over_flips", "loop_over_spins", "update_in_hamux", "update_in_numpy", "update_in_torch"]

Run = Callable[[], Any]


def update_in_numpy(patterns: np.ndarray, queries: np.ndarray, beta: float) -> np.ndarray:
    """Returns softmax(beta Q Xi^T) Xi by BLAS, the exponentials in place."""
    weights = (np.float32(beta) * queries) @ patterns.T
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ patterns


def update_in_torch(patterns: np.ndarray, queries: np.ndarray, beta: float | None) -> Run:
    """Makes the core step of hopfield-layers, without its projections and normalisations.

    Args:
      patterns: Xi, (K, D).
      queries: Q, (B, D).
      beta: inverse temperature; None leaves the softmax out, which leaves the two products.

    Returns:
      A function without arguments that computes the step, (B, D).
    """
    import torch  # pyright: ignore[reportMissingImports]

    keys, states = torch.from_numpy(patterns), torch.from_numpy(queries)

    def run() -> np.ndarray:
        with torch.inference_mode():
            if beta is None:
                return ((states @ keys.T) @ keys).numpy()
            return (torch.softmax((beta * states) @ keys.T, dim=-1) @ keys).numpy()

    return run


def update_in_hamux(patterns: np.ndarray, queries: np.ndarray, beta: float, *, layers: int) -> Run:
    """Makes the step as descent of hamux's energy, batched by its ``vectorize`` and compiled as a whole.

    With two layers, quadratic visible and softmax hidden neurons are joined by its ``LinearSynapse``. The
    hidden ones make a step of size 1 first, which is to their fixed point, then the visible ones do. With one
    layer the hidden neurons are summed out, into a synapse whose energy is -logsumexp(beta Xi v) / beta, and
    there is one step of size 1.

    Args:
      patterns: Xi, (K, D).
      queries: Q, (B, D).
      beta: inverse temperature.
      layers: 1 or 2.

    Returns:
      A function without arguments that computes the step, (B, D).
    """
    import equinox  # pyright: ignore[reportMissingImports]
    import hamux  # pyright: ignore[reportMissingImports]

    class SummedOut(equinox.Module):
        weights: jax.Array

        def __call__(self, visible: jax.Array) -> jax.Array:
            return -hamux.lagr_softmax(visible @ self.weights, beta=beta)

    weights = jnp.asarray(patterns.T)
    neurons = {"visible": hamux.NeuronLayer(hamux.lagr_identity, (patterns.shape[1],))}
    synapse: Any = SummedOut(weights)
    if layers == 2:
        softmax = partial(hamux.lagr_softmax, beta=beta)
        neurons["hidden"] = hamux.NeuronLayer(softmax, (patterns.shape[0],))
        synapse = hamux.LinearSynapse(weights)
    network = hamux.HAM(neurons, {"synapse": synapse}, [(tuple(neurons), "synapse")]).vectorize()

    def descend(network: Any, states: dict[str, jax.Array], name: str) -> dict[str, jax.Array]:
        slopes = network.dEdact(network.activations(states), states)
        return {**states, name: states[name] - slopes[name]}

    def step(network: Any, visible: jax.Array) -> jax.Array:
        states = {**network.init_states(len(visible)), "visible": visible}
        for name in reversed(neurons):  # hidden, then visible; what is not used is not computed
            states = descend(network, states, name)
        return states["visible"]

    return partial(equinox.filter_jit(step), network, jnp.asarray(queries))


def loop_over_spins(weights: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The textbook algorithm of recall: x_i <- sign(W_i.x), spin after spin, until a sweep changes none.

    Args:
      weights: W, (N, N), its diagonal zero.
      query: spins, (N,).

    Returns:
      The final state, (N,).
    """
    x, moved = query.copy(), True
    while moved:
        moved = False
        for i in range(len(x)):
            field = weights[i] @ x
            if field * x[i] < 0:
                x[i] = -x[i]
                moved = True
    return x


def loop_over_flips(weights: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Makes the same flips without the visits between them: the method of jaxebm, in NumPy."""
    x, place = query.copy(), 0
    fields = weights @ x
    while (discontented := np.flatnonzero(fields * x < 0)).size:
        ahead = np.searchsorted(discontented, place)
        i = discontented[ahead % discontented.size]
        x[i] = -x[i]
        fields += 2 * x[i] * weights[i]
        place = i + 1
    return x
