r"""Store and retrieve, for many states, many heads and any leading batch axes: the mathematics of the layers.

A head stores keys k_1..k_M, and a state xi has the energy of the modern (or, with alpha > 1, sparse) network

    E(xi) = |xi|^2 / 2 - Phi(beta K xi) / beta,       Phi = entmax_conjugate, at alpha = 1 logsumexp - ln M.

Its concave-convex step xi <- K^T entmax(beta K xi) never raises E, and is attention from xi to the keys.
"""

import math
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.hopfield.tsallis import checked_alpha, entmax, entmax_conjugate, uniform_negentropy
from jaxebm.trees import wide_dtype
from jaxebm.types import Array

__all__ = ["Implementation", "associate", "association_energy", "checked_mask", "without_faults"]

Implementation: TypeAlias = Literal["xla", "cudnn"] | None
"""Implementation of ``jax.nn.dot_product_attention``; ``None`` leaves the choice to JAX."""


def associate(
    states: Array,
    keys: Array,
    values: Array | None = None,
    *,
    beta: Array | float | None = None,
    mask: Array | None = None,
    alpha: float = 1.0,
    num_steps: int = 1,
    implementation: Implementation = None,
) -> Array:
    r"""Recalls from every state, by the update of the modern network; there are no weights.

    .. math:: \xi \leftarrow K^T p(\beta K \xi) \;\text{(num_steps - 1 times)}, \qquad V^T p(\beta K \xi)

    Args:
      states: xi, ``(..., queries, heads, features)``.
      keys: K, ``(..., memories, heads, features)``, with the same leading axes.
      values: V, shaped like ``keys``: what the last step reads. ``None`` reads the keys.
      beta: inverse temperature, ``()``, positive; ``None`` is 1 / sqrt(features).
      mask: boolean, True where a memory may be recalled: ``(..., memories)``, or ``(..., heads, queries,
        memories)`` with 1 for axes to be broadcast. The rank tells which.
      alpha: 1 for softmax, above it ``entmax`` (1.5, or 2 for sparsemax): far memories weigh exactly 0.
      num_steps: at least 1.
      implementation: of ``jax.nn.dot_product_attention``, which computes the steps where alpha = 1.

    Returns:
      What was recalled, in the shape of ``states``. What is masked has no influence, on derivatives neither,
      be it NaN or infinite. A query that may recall a memory with such an entry gets NaN. A query that a
      traced mask leaves nothing to recall gets the plain mean of all memories, as in Flax; those with NaN or
      infinite entries count as 0 there.

    Raises:
      ValueError: for shapes that do not fit, beta not positive, alpha below 1, num_steps below 1, a query
        with nothing to recall (where the mask can be looked at), or cuDNN with alpha > 1.
      TypeError: if an argument is no array of real numbers, or the mask is not boolean.

    Example:
      >>> memories = jnp.array([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])[:, None]  # one head
      >>> broken = jnp.array([[1.0, 1.0, -1.0, 0.0]])[:, None]
      >>> recalled = associate(broken, memories, beta=4.0, num_steps=3)
      >>> print(jnp.round(recalled[0, 0], 2))
      [ 1.  1. -1. -1.]

    Reference:
      Ramsauer et al. 2020, Hopfield networks is all you need (arXiv:2008.02217), eq. 3 and 10; Hu et al. 2023
      (arXiv:2309.12673) and Santos et al. 2024 (arXiv:2402.13725) for alpha > 1.
    """
    checks.positive_integer("num_steps", num_steps)
    checks.one_of("implementation", implementation, (None, "xla", "cudnn"))
    alpha = checked_alpha(alpha)
    if implementation == "cudnn" and alpha != 1:
        raise ValueError(f"implementation='cudnn' with alpha={alpha!r}: only alpha=1 has a fused kernel.")
    states, keys, beta, mask = _checked(states, keys, beta, mask)
    if values is not None:
        checks.array("values", values)
        values = jnp.asarray(values)
        if values.shape != keys.shape:
            raise ValueError(
                f"values of shape {values.shape} for keys of shape {keys.shape}: they must be equal."
            )
    memories = (keys,) if values is None else (keys, values)
    dtype = jnp.result_type(states, *memories, float)
    memories, fault = without_faults(mask, *(each.astype(dtype) for each in memories))
    states, keys, values = states.astype(dtype), memories[0], memories[-1]
    batch = states.shape[:-3]
    flat_keys, flat_values = _flatten(keys, batch), _flatten(values, batch)
    if mask is not None:
        mask = _flatten(jnp.broadcast_to(mask, (*batch, *mask.shape[-3:])), batch)
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], states.shape[-3], keys.shape[-3]))

    def read(flat_states: Array, read_from: Array) -> Array:
        if alpha != 1:
            weights = entmax(_logits(flat_states, flat_keys, beta, mask), alpha)
            return jnp.einsum("bhqm,bmhd->bqhd", weights.astype(read_from.dtype), read_from)
        scale = 1.0
        if isinstance(beta, float):
            scale = beta
        else:  # The scale of the kernel is static; a learnt beta scales the states instead.
            flat_states = (flat_states.astype(wide_dtype(flat_states)) * beta).astype(dtype)
        return jax.nn.dot_product_attention(
            flat_states, flat_keys, read_from, mask=mask, scale=scale, implementation=implementation
        )

    final = jax.lax.fori_loop(
        0, num_steps - 1, lambda _, state: read(state, flat_keys), _flatten(states, batch)
    )
    recalled = read(final, flat_values).reshape(states.shape)
    return recalled if fault is None else recalled * jnp.swapaxes(fault, -1, -2)[..., None].astype(dtype)


def without_faults(mask: Array | None, *memories: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Returns memories with those that hold NaN or infinity set to 0, and a factor for what is recalled.

    A weight of 0 times NaN is NaN, and so is its derivative: a masked memory has no influence only if its
    numbers are finite before anything is computed of them.

    Args:
      mask: from `checked_mask`, or None: then nothing is set to 0, and there is no factor.
      *memories: arrays ``(..., memories, heads, features)``; what is a fault in one of them is one in all.

    Returns:
      The arrays, and the factor ``(..., heads, queries)``: NaN for queries that may recall a memory with a
      fault, 1 for all others.
    """
    if mask is None:
        return memories, None
    wrong = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(each), axis=-1) for each in memories]), axis=0)
    kept = tuple(jnp.where(wrong[..., None], 0.0, each) for each in memories)
    seen = jnp.any(mask & jnp.swapaxes(wrong, -1, -2)[..., None, :], axis=-1)
    return kept, jnp.where(seen, jnp.nan, 1.0)


def association_energy(
    states: Array,
    keys: Array,
    *,
    beta: Array | float | None = None,
    mask: Array | None = None,
    alpha: float = 1.0,
) -> Array:
    r"""Energy of every state in every head's memory.

    .. math:: E(\xi) = |\xi|^2 / 2 - \Phi(\beta K \xi) / \beta

    Masked memories are left out altogether, of the normalisation of Phi too: with alpha = 1 and n memories to
    recall, Phi = logsumexp - ln n, so that the energy is that of a network which never stored the others.

    Args:
      states: xi, ``(..., queries, heads, features)``.
      keys: K, ``(..., memories, heads, features)``.
      beta: as in ``associate``.
      mask: as in ``associate``.
      alpha: as in ``associate``.

    Returns:
      Energies, ``(..., heads, queries)``, float32 or wider. What is masked has no influence, and NaN or
      infinity in a memory that is not makes the energy NaN. A query that a traced mask leaves nothing to
      recall gets |xi|^2 / 2.

    Raises:
      ValueError: as in ``associate``.
      TypeError: as in ``associate``.

    Example:
      One memory at distance 2 from the state, and |k|^2 = 4: E = |xi - k|^2 / 2 - |k|^2 / 2.

      >>> association_energy(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 2.0)).shape
      (1, 1)
      >>> float(association_energy(jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), 2.0))[0, 0])
      -1.5

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), eq. 2, without its constant M^2 / 2.
    """
    alpha = checked_alpha(alpha)
    states, keys, beta, mask = _checked(states, keys, beta, mask)
    dtype = jnp.result_type(states, keys, float)
    states, keys = states.astype(dtype), keys.astype(dtype)
    (keys,), fault = without_faults(mask, keys)
    logits = _logits(states, keys, beta, mask)
    phi = entmax_conjugate(logits, alpha)
    if mask is not None:
        num_memories = keys.shape[-3]
        mask = jnp.broadcast_to(mask, (*mask.shape[:-1], num_memories))
        count = jnp.sum(mask, axis=-1)
        count = jnp.where(count > 0, count, num_memories)
        phi = phi + uniform_negentropy(count, alpha).astype(phi.dtype)
        phi = phi - uniform_negentropy(num_memories, alpha).astype(phi.dtype)
    squares = jnp.sum(jnp.square(states.astype(wide_dtype(states))), axis=-1)
    energies = 0.5 * jnp.swapaxes(squares, -1, -2) - phi / beta
    return energies if fault is None else energies * fault.astype(energies.dtype)


def _flatten(array: Array, batch: tuple[int, ...]) -> Array:
    return array.reshape(math.prod(batch), *array.shape[len(batch) :])


def _logits(states: Array, keys: Array, beta: Array | float, mask: Array | None) -> Array:
    """beta K xi, ``(..., heads, queries, memories)``, -inf where masked and 0 where everything is."""
    logits = beta * jnp.einsum(
        "...qhd,...mhd->...hqm", states, keys, preferred_element_type=wide_dtype(states)
    )
    if mask is None:
        return logits
    return jnp.where(jnp.any(mask, axis=-1, keepdims=True), jnp.where(mask, logits, -jnp.inf), 0.0)


def _checked(
    states: Array, keys: Array, beta: Array | float | None, mask: Array | None
) -> tuple[Array, Array, Array | float, Array | None]:
    """Returns arrays, beta, and the mask as ``(..., heads, queries, memories)``, 1 for axes to broadcast."""
    checks.array("states", states)
    checks.array("keys", keys)
    states, keys = jnp.asarray(states), jnp.asarray(keys)
    if min(states.ndim, keys.ndim) < 3 or (states.shape[:-3], states.shape[-2:]) != (
        keys.shape[:-3],
        keys.shape[-2:],
    ):
        raise ValueError(
            f"states of shape {states.shape} and keys of shape {keys.shape}: (..., queries, heads, features) "
            f"and (..., memories, heads, features) are needed, equal but for queries and memories."
        )
    if keys.shape[-3] == 0:
        raise ValueError(f"keys of shape {keys.shape}: at least one memory is needed.")
    if 0 in states.shape:
        raise ValueError(f"states of shape {states.shape}: no length may be 0.")
    if beta is None:
        beta = 1 / math.sqrt(keys.shape[-1])
    checks.array("beta", beta)
    checks.positive("beta", beta)
    if jnp.shape(beta) != ():
        raise ValueError(f"beta of shape {jnp.shape(beta)}: beta must be one number, of shape ().")
    full = (*keys.shape[:-3], keys.shape[-2], states.shape[-3], keys.shape[-3])
    return states, keys, beta if isinstance(beta, jax.Array) else float(beta), checked_mask(mask, full)


def checked_mask(mask: Array | None, full: tuple[int, ...]) -> Array | None:
    """Returns the mask with the axes of ``full``, (..., heads, queries, memories), or 1; or raises."""
    if mask is None:
        return None
    checks.array("mask", mask)
    if jnp.asarray(mask).dtype != jnp.bool_:
        raise TypeError(
            f"mask has dtype {jnp.asarray(mask).dtype}: a boolean mask is needed, True = may be recalled."
        )
    if not checks.is_traced(mask) and not np.all(np.any(np.asarray(mask), axis=-1)):
        raise ValueError("mask leaves some query no memory to recall: each needs at least one True.")
    padding = (*full[:-3], full[-1])
    mask = jnp.asarray(mask)
    shape = mask.shape
    if mask.ndim == len(padding):
        mask = mask[..., None, None, :]
    if mask.ndim != len(full) or any(
        size not in (1, wanted) for size, wanted in zip(mask.shape, full, strict=True)
    ):
        raise ValueError(
            f"mask of shape {shape}: {padding} (memories) or {full} (heads, queries, memories) is needed, "
            f"with 1 for axes to be broadcast."
        )
    return mask
