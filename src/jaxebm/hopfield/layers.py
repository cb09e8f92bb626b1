r"""Associative memories as Flax layers: association, pooling with learnt queries, lookup in learnt memories.

A head stores keys K = (k_1, ..., k_M), and a state xi moves by the update of the modern network (softmax) or
of a sparse one (alpha > 1), which never raises the energy of ``association_energy``:

    xi <- K^T entmax(beta K xi),        E(xi) = |xi|^2 / 2 - Phi(beta K xi) / beta.

A layer projects queries, keys and values, takes num_steps - 1 such steps, and lets the last one read the
values in place of the keys. With one step and beta = 1 / sqrt(features of a head) that is
``flax.linen.MultiHeadDotProductAttention``, with the same tree of weights; with ``projections=False`` it is
plain store and retrieve, without any.

    layer = HopfieldAssociation(num_heads=8)               # queries and memories are given
    layer = HopfieldPooling(num_queries=1, num_heads=8)    # memories are given, queries learnt
    layer = HopfieldLookup(num_memories=64, num_heads=8)   # queries are given, memories learnt
    variables = layer.init(rng_key, ...)
    outputs, energies = layer.apply(variables, ..., return_energy=True)

As in Flax's attention, and unlike the energies of this package, inputs may have any leading batch axes.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jaxebm import checks
from jaxebm.hopfield.association import (
    Implementation,
    associate,
    association_energy,
    checked_mask,
    without_faults,
)
from jaxebm.hopfield.tsallis import checked_alpha
from jaxebm.hopfield.validation import floating_dtype
from jaxebm.types import Array

__all__ = ["HopfieldAssociation", "HopfieldLookup", "HopfieldPooling"]

# The projections expect features of unit variance, so learnt inputs are initialised with it.
_unit_normal = jax.nn.initializers.normal(1.0)


class _HopfieldLayer(nn.Module, kw_only=True):
    """The options that the three layers share; see ``HopfieldAssociation``."""

    num_heads: int = 1
    num_steps: int = 1
    beta: float | None = None
    learn_beta: bool = False
    alpha: float = 1.0
    projections: bool = True
    qkv_features: int | None = None
    out_features: int | None = None
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    implementation: Implementation = None

    def __post_init__(self) -> None:
        if self.name is not None:
            checks.text("name", self.name)
        checks.positive_integer("num_heads", self.num_heads)
        checks.positive_integer("num_steps", self.num_steps)
        if self.beta is not None:
            checks.array("beta", self.beta)
            checks.positive("beta", self.beta)
            checks.one_number("beta", self.beta)
        checked_alpha(self.alpha)
        for name in ("learn_beta", "projections", "use_bias"):
            checks.boolean(name, getattr(self, name))
        for name in ("qkv_features", "out_features"):
            if getattr(self, name) is not None:
                checks.positive_integer(name, getattr(self, name))
        if self.dtype is not None:
            floating_dtype("dtype", self.dtype)
        floating_dtype("param_dtype", self.param_dtype)
        checks.one_of("implementation", self.implementation, (None, "xla", "cudnn"))
        super().__post_init__()

    def _associate(self, queries: Array, memories: Array, mask: Array | None, return_energy: bool) -> Any:
        """Runs a ``HopfieldAssociation`` of the same options, as the submodule "association"."""
        names = {field.name for field in dataclasses.fields(_HopfieldLayer)} - {"parent", "name"}
        options = {name: getattr(self, name) for name in names}
        layer = HopfieldAssociation(**options, name="association")
        return layer(queries, memories, mask, return_energy=return_energy)


class HopfieldAssociation(_HopfieldLayer):
    r"""Associates given queries with given memories: attention as retrieval from a Hopfield network.

    .. math:: \xi \leftarrow K^T p(\beta K \xi) \;\text{(num_steps - 1 times)}, \qquad W_o V^T p(\beta K \xi)

    with xi = W_q queries, K = W_k memories, V = W_v memories, in every head.

    Attributes:
      num_heads: heads, each with its own projections and its own 1 / num_heads of the features.
      num_steps: updates of the state, at least 1; the last one reads the values.
      beta: inverse temperature, positive; ``None`` is 1 / sqrt(features of a head). Large recalls one memory,
        small a mean of many.
      learn_beta: learn ln(beta), the parameter "log_beta", from that value.
      alpha: 1 for softmax; above it sparse, as in ``entmax``: 1.5, or 2 for sparsemax.
      projections: ``False`` stores the memories and starts from the queries as they are, each head its own
        stretch of features: no weights, and the output is the state after num_steps updates.
      qkv_features: features of all heads together; ``None`` is those of the queries.
      out_features: features of the output; ``None`` is those of the queries.
      use_bias: whether the projections have biases.
      dtype: of the computation; ``None`` infers it from inputs and weights.
      param_dtype: of the weights.
      implementation: ``None``, "xla" or "cudnn" (on a GPU, bfloat16 or float16, alpha = 1), as in
        ``jax.nn.dot_product_attention``.

    Call with ``queries`` ``(..., queries, features)``, ``memories`` ``(..., memories, features)`` (``None``:
    the queries themselves), ``mask`` as in ``associate``, and ``return_energy``. It returns ``(..., queries,
    out_features)``; with ``return_energy=True`` also the energies ``(..., heads, queries)`` of the states
    after num_steps updates with the keys, as ``association_energy`` gives them: Phi is normalised over the
    memories that the mask leaves. What the mask leaves out has no influence, on derivatives neither: padding
    may hold NaN. Where the queries are the memories, NaN in masked ones counts as 0, in their own rows, too.

    Raises:
      ValueError: for shapes that do not fit, features that num_heads does not divide, beta not positive,
        num_steps below 1, or a query with nothing to recall (where the mask can be looked at).

    Example:
      >>> layer = HopfieldAssociation(num_heads=2, num_steps=3)
      >>> queries, memories = jnp.ones((5, 4, 8)), jnp.ones((5, 7, 6))
      >>> variables = layer.init(jax.random.key(0), queries, memories)
      >>> outputs, energies = layer.apply(variables, queries, memories, return_energy=True)
      >>> outputs.shape, energies.shape
      ((5, 4, 8), (5, 2, 4))

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), section 3 and eq. 10.
    """

    @nn.compact
    def __call__(
        self,
        queries: Array,
        memories: Array | None = None,
        mask: Array | None = None,
        *,
        return_energy: bool = False,
    ) -> Any:
        """Returns the outputs, or the pair of outputs and energies."""
        checks.array("queries", queries)
        queries = jnp.asarray(queries)
        if memories is not None:
            checks.array("memories", memories)
        alone = memories is None
        memories = queries if memories is None else jnp.asarray(memories)
        if min(queries.ndim, memories.ndim) < 2 or queries.shape[:-2] != memories.shape[:-2]:
            raise ValueError(
                f"queries of shape {queries.shape} and memories of shape {memories.shape}: (..., queries, "
                f"features) and (..., memories, features) with equal leading axes are needed."
            )
        features = self.qkv_features or queries.shape[-1]
        if features % self.num_heads:
            given = "the queries" if self.qkv_features is None else f"qkv_features={features}"
            raise ValueError(
                f"{features} features cannot be divided among num_heads={self.num_heads} heads ({given})."
            )
        full = (*queries.shape[:-2], self.num_heads, queries.shape[-2], memories.shape[-2])
        mask = checked_mask(mask, full)
        # Before the projections, whose weights would get NaN as derivative from a masked NaN. One "head".
        (kept,), fault = without_faults(mask, memories[..., None, :])
        memories = kept[..., 0, :]
        if alone and mask is not None:
            queries = jnp.where(jnp.any(mask, axis=(-3, -2))[..., None], queries, memories)
        head = (self.num_heads, features // self.num_heads)
        if self.projections:
            states, keys = self._dense(head, "query")(queries), self._dense(head, "key")(memories)
            values = self._dense(head, "value")(memories)
        else:
            states, keys = self._raw_heads(queries, memories, head)
            values = keys
        beta: Any = 1 / math.sqrt(head[1]) if self.beta is None else self.beta
        if self.learn_beta:
            start = jax.nn.initializers.constant(math.log(beta))
            beta = jnp.exp(self.param("log_beta", start, (), self.param_dtype))
        step = functools.partial(
            associate, beta=beta, mask=mask, alpha=self.alpha, implementation=self.implementation
        )
        if self.num_steps > 1:
            states = step(states, keys, num_steps=self.num_steps - 1)
        recalled = step(states, keys, values)
        if self.projections:
            outputs = self._dense(self.out_features or queries.shape[-1], "out", axis=(-2, -1))(recalled)
        else:
            outputs = recalled.reshape(queries.shape)
        if fault is not None:
            # A query is faulty if one of its heads is: NaN there, 1 elsewhere.
            outputs = outputs * jnp.prod(fault, axis=-2)[..., None].astype(outputs.dtype)
        if not return_energy:
            return outputs
        final = step(states, keys) if self.projections else recalled
        energies = association_energy(final, keys, beta=beta, mask=mask, alpha=self.alpha)
        return outputs, energies if fault is None else energies * fault.astype(energies.dtype)

    def _dense(self, features: int | tuple[int, int], name: str, axis: Any = -1) -> nn.DenseGeneral:
        return nn.DenseGeneral(
            features,
            axis=axis,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _raw_heads(self, queries: Array, memories: Array, head: tuple[int, int]) -> tuple[Array, Array]:
        if not (queries.shape[-1] == memories.shape[-1] == head[0] * head[1]) or self.out_features:
            raise ValueError(
                f"projections=False with {queries.shape[-1]} features of the queries, {memories.shape[-1]} "
                f"of the memories, qkv_features={self.qkv_features} and out_features={self.out_features}: "
                f"the first two must be equal, and the others None."
            )
        queries, memories = promote_dtype(queries, memories, dtype=self.dtype)
        return queries.reshape(*queries.shape[:-1], *head), memories.reshape(*memories.shape[:-1], *head)


class HopfieldPooling(_HopfieldLayer):
    """Pools a set of memories into a fixed number of vectors, with learnt queries.

    The order of the memories does not matter. Options are those of ``HopfieldAssociation``; the parameters
    are "queries" ``(num_queries, features)`` and, with projections, "association".

    Attributes:
      num_queries: how many vectors to pool into.

    Call with ``memories`` ``(..., memories, features)``, ``mask`` as in ``associate`` (``(..., memories)``
    for padded sets) and ``return_energy``. It returns ``(..., num_queries, out_features)``, and the energies
    ``(..., heads, num_queries)``.

    Example:
      >>> layer = HopfieldPooling(num_queries=1, num_heads=2)
      >>> bag, mask = jnp.ones((5, 7, 8)), jnp.arange(7) < jnp.array([7, 3, 1, 2, 5])[:, None]
      >>> variables = layer.init(jax.random.key(0), bag, mask)
      >>> layer.apply(variables, bag, mask).shape
      (5, 1, 8)

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), section 3, "HopfieldPooling".
    """

    num_queries: int = 1

    def __post_init__(self) -> None:
        checks.positive_integer("num_queries", self.num_queries)
        super().__post_init__()

    @nn.compact
    def __call__(self, memories: Array, mask: Array | None = None, *, return_energy: bool = False) -> Any:
        """Returns the outputs, or the pair of outputs and energies."""
        checks.array("memories", memories)
        memories = jnp.asarray(memories)
        if memories.ndim < 2:
            raise ValueError(f"memories of shape {memories.shape}: (..., memories, features) is needed.")
        shape = (self.num_queries, memories.shape[-1])
        queries = self.param("queries", _unit_normal, shape, self.param_dtype)
        queries = jnp.broadcast_to(queries, (*memories.shape[:-2], *shape))
        return self._associate(queries, memories, mask, return_energy)


class HopfieldLookup(_HopfieldLayer):
    """Looks up queries in learnt memories: a content-addressable table.

    Options are those of ``HopfieldAssociation``; the parameters are "memories" ``(num_memories, features)``
    and, with projections, "association".

    Attributes:
      num_memories: how many memories to learn.

    Call with ``queries`` ``(..., queries, features)`` and ``return_energy``. It returns ``(..., queries,
    out_features)``, and the energies ``(..., heads, queries)``.

    Example:
      >>> layer = HopfieldLookup(num_memories=16, num_heads=2)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((5, 4, 8)))
      >>> layer.apply(variables, jnp.ones((5, 4, 8))).shape
      (5, 4, 8)

    Reference:
      Ramsauer et al. 2020 (arXiv:2008.02217), section 3, "HopfieldLayer" (lookup).
    """

    num_memories: int

    def __post_init__(self) -> None:
        checks.positive_integer("num_memories", self.num_memories)
        super().__post_init__()

    @nn.compact
    def __call__(self, queries: Array, *, return_energy: bool = False) -> Any:
        """Returns the outputs, or the pair of outputs and energies."""
        checks.array("queries", queries)
        queries = jnp.asarray(queries)
        if queries.ndim < 2:
            raise ValueError(f"queries of shape {queries.shape}: (..., queries, features) is needed.")
        shape = (self.num_memories, queries.shape[-1])
        memories = self.param("memories", _unit_normal, shape, self.param_dtype)
        # All queries share the memories, so the batch is one long list of queries.
        flat = queries.reshape(-1, queries.shape[-1])
        result = self._associate(flat, memories, None, return_energy)
        outputs, energies = result if return_energy else (result, None)
        outputs = outputs.reshape(*queries.shape[:-1], outputs.shape[-1])
        if energies is None:
            return outputs
        return outputs, jnp.moveaxis(energies.reshape(-1, *queries.shape[:-1]), 0, -2)
