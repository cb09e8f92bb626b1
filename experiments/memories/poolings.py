"""Classifiers of bags that differ in their pooling, and their training, for hopfield_mil.py."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxebm.hopfield import HopfieldPooling, entmax
from jaxebm.types import Array, Params
from memories.bags import Bags

__all__ = ["BagClassifier", "Pooling", "Trial", "instance_weights", "make_trial"]

Pooling: TypeAlias = Literal["hopfield", "hopfield_sparse", "attention", "max", "mean"]
Trial: TypeAlias = Callable[..., tuple[Params, Array]]
ALPHA = {"hopfield": 1.0, "hopfield_sparse": 1.5}


class BagClassifier(nn.Module):
    """Encoder, pooling and linear head: the logit that a bag is positive.

    Every pooling maps the encoded images h to values W_v h, and what it pooled by W_o, as the Hopfield layer
    does. Mean and gated attention pool by softmax(scores), their scores being 0 and w . (tanh(C h) sigmoid(G
    h)); max takes the greatest entries.

    Attributes:
      pooling: which.
      widths: of the encoder's layers.
      num_heads: of the Hopfield poolings.
      beta: inverse temperature of the Hopfield poolings.

    Reference:
      Ilse, Tomczak & Welling 2018 (arXiv 1802.04712), eq. 9; Ramsauer et al. 2020 (arXiv 2008.02217).
    """

    pooling: str
    widths: tuple[int, ...]
    num_heads: int
    beta: float

    @nn.compact
    def __call__(self, image: Array, mask: Array) -> Array:
        """Returns logits ``(B,)`` for images ``(B, N, H, W, C)`` and mask ``(B, N)``."""
        hidden = image.reshape(*mask.shape, -1)
        for level, width in enumerate(self.widths):
            hidden = nn.relu(nn.Dense(width, name=f"hidden_{level}")(hidden))
        hidden = nn.LayerNorm(name="norm")(hidden)
        if self.pooling in ALPHA:
            alpha = ALPHA[self.pooling]
            layer = HopfieldPooling(num_heads=self.num_heads, beta=self.beta, alpha=alpha, name="pooling")
            pooled = layer(hidden, mask)[:, 0]
        else:
            features = self.widths[-1]
            values = nn.Dense(features, name="value")(hidden)
            if self.pooling == "max":
                pooled = jnp.max(jnp.where(mask[..., None], values, -jnp.inf), axis=1)
            else:
                scores = jnp.zeros(mask.shape)
                if self.pooling == "attention":
                    gate = nn.sigmoid(nn.Dense(features, name="gate")(hidden))
                    gated = jnp.tanh(nn.Dense(features, name="content")(hidden)) * gate
                    scores = nn.Dense(1, use_bias=False, name="score")(gated)[..., 0]
                weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
                pooled = jnp.einsum("bn,bnd->bd", weights, values)
            pooled = nn.Dense(features, name="out")(pooled)
        return nn.Dense(1, name="head")(pooled)[:, 0]


def instance_weights(model: BagClassifier, params: Params, bags: Bags) -> Array | None:
    """Returns what each image weighs, ``(B, N)``, the mean over heads; None where a pooling learns none."""
    if model.pooling in ("mean", "max"):
        return None
    _, state = model.apply(
        params,
        bags.image[bags.member],
        bags.mask,
        capture_intermediates=lambda module, _: module.name in ("query", "key", "score"),
        mutable=["intermediates"],
    )
    seen: Any = state["intermediates"]
    if model.pooling == "attention":
        scores = seen["score"]["__call__"][0][:, None, :, 0]
    else:
        projected = seen["pooling"]["association"]
        query, key = (projected[name]["__call__"][0] for name in ("query", "key"))
        scores = model.beta * jnp.einsum("bqhd,bnhd->bhn", query, key)  # of the one query
    scores = jnp.where(bags.mask[:, None], scores, -jnp.inf)
    return jnp.mean(entmax(scores, ALPHA.get(model.pooling, 1.0)), axis=1)


def _kernels(params: Params) -> Any:
    """Tells which leaves decay: neither biases, scales nor learnt queries, which would fade from use."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_trial(model: BagClassifier, *, updates: int, stops: int, batch_size: int) -> Trial:
    """Returns ``trial(seed, train, validation, learning_rate, weight_decay)``, compiled once.

    A trial trains by AdamW on the cross-entropy of bags and returns the parameters after each of ``stops``
    equal parts of the updates, with a leading axis, and the accuracies there on the validation bags,
    ``(stops,)``. The seed fixes initial weights and batches, the same for all poolings as far as they go.
    """

    @jax.jit
    def trial(seed: Array, train: Bags, validation: Bags, learning_rate: Array, weight_decay: Array) -> Any:
        key_init, key_batches = jax.random.split(jax.random.key(seed))
        optimizer = optax.adamw(learning_rate, weight_decay=weight_decay, mask=_kernels)
        params = model.init(key_init, train.image[train.member[:1]], train.mask[:1])

        def loss(params: Params, batch: Array) -> Array:
            logits: Any = model.apply(params, train.image[train.member[batch]], train.mask[batch])
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, train.label[batch]))

        def update(carry: Any, rng_key: Array) -> tuple[Any, None]:
            params, state = carry
            batch = jax.random.choice(rng_key, len(train.label), (batch_size,), replace=False)
            changes, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
            return (optax.apply_updates(params, changes), state), None

        def to_next_stop(carry: Any, keys: Array) -> tuple[Any, Any]:
            carry, _ = jax.lax.scan(update, carry, keys)
            logits: Any = model.apply(carry[0], validation.image[validation.member], validation.mask)
            return carry, (carry[0], jnp.mean((logits > 0) == validation.label))

        keys = jax.random.split(key_batches, (stops, updates // stops))
        return jax.lax.scan(to_next_stop, (params, optimizer.init(params)), keys)[1]

    return trial
