"""Networks of a user as functions of one example: a batched apply, a Flax NNX module.

The package needs ``apply(params, x)`` on one example, as logits (K,) or as an energy (). The returned
functions compare and hash by their network, so they may be static arguments of ``jax.jit`` and are not traced
again when they are made again from the same network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Params, Position

__all__ = ["from_nnx", "unbatched"]

Apply: TypeAlias = Callable[[Params, Position], Any]


@dataclass(frozen=True)
class _Unbatched:
    apply: Apply

    def __call__(self, params: Params, x: Position, /) -> Any:
        outputs = self.apply(params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x))
        shape = jnp.shape(outputs)
        if shape[:1] != (1,):
            raise ValueError(
                f"apply(params, xs) has shape {shape} for a batch of one example: a leading axis of 1 is "
                f"needed. If apply takes one example without a batch axis, use it as it is."
            )
        return outputs[0]


def unbatched(apply: Apply) -> Apply:
    """Turns a function of a batch into one of a single example.

    apply_1(params, x) = apply(params, x[None])[0].

    ``jax.vmap`` over x then gives back the batched function, at its cost. The function must treat the
    examples of a batch independently: batch normalisation must use its running averages.

    Args:
      apply: ``apply(params, xs)``, for instance the ``apply`` of a Flax module that takes a batch axis. xs is
        a pytree of arrays (B, ...), the output an array (B, ...).

    Returns:
      ``(params, x)`` to the output for one example, x a pytree of arrays without the batch axis. Outputs of
      shape (B, K) become logits (K,), those of shape (B,) an energy (). A network with one output, (B, 1),
      becomes logits (1,), of which `marginal_energy` makes an energy. It raises ``ValueError`` where the
      output has no leading axis of 1.

    Raises:
      TypeError: If ``apply`` is no function of two arguments.

    Example:
      >>> dense = lambda params, xs: jnp.einsum("bd,dk->bk", xs, params)
      >>> logits = unbatched(dense)
      >>> logits(jnp.eye(3), jnp.array([1.0, 2.0, 3.0])).tolist()
      [1.0, 2.0, 3.0]
      >>> unbatched(dense) == logits
      True
    """
    checks.function("apply", apply, "params", "xs")
    return _Unbatched(apply)


class _Held:
    """Arrays that a function holds; two are equal if they hold the same arrays, not only equal ones."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self._identity = tuple(id(leaf) for leaf in jax.tree.leaves(state))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


@dataclass(frozen=True)
class _FromNNX:
    graphdef: Any
    held: _Held

    def __call__(self, params: Params, x: Position, /) -> Any:
        from flax import nnx

        module: Any = nnx.merge(self.graphdef, params, self.held.state)
        module.eval()
        return module(x)


def from_nnx(model: Any, *, batched: bool = True) -> tuple[Apply, Params]:
    """Splits a Flax NNX module into a pure function of one example and its parameters.

    The function runs the module in evaluation mode (``model.eval()`` on a copy): dropout is off and batch
    normalisation uses its running averages, because an energy is a function of x alone. Variables that are
    not ``nnx.Param``, such as those averages, are stored in the function and do not change.
    ``nnx.update(model, params)`` writes trained parameters back into the module.

    Args:
      model: A ``flax.nnx.Module`` that is called as ``model(x)``.
      batched: Whether the module takes a leading batch axis; False for one that takes a single example.

    Returns:
      ``(apply, params)``: ``apply(params, x)`` on one example, and the module's parameters, an ``nnx.State``
      of its ``nnx.Param``. The function compares equal for modules of the same structure that hold the same
      other variables.

    Raises:
      TypeError: If ``model`` is not an NNX module, or ``batched`` no boolean.

    Example:
      >>> from flax import nnx
      >>> logits, params = from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
      >>> logits(params, jnp.ones(4)).shape
      (3,)
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: a flax.nnx.Module is needed. The apply of a flax.linen "
            f"module already is a function; use unbatched(module.apply) for one that takes a batch axis."
        )
    checks.boolean("batched", batched)
    graphdef, params, held = nnx.split(model, nnx.Param, ...)
    apply = _FromNNX(graphdef, _Held(held))
    return (unbatched(apply) if batched else apply), params
