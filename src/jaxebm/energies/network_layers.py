"""What the networks have in common: options and their checks, layers in a computation dtype, norms, outputs.

**Precision.** A network's ``dtype`` is what it computes in; ``None`` is the dtype of its inputs and
parameters, float32. Parameters are stored in float32 and cast where they are read, so that the gradients of a
network in bfloat16 are float32 arrays, too. Statistics of norms are taken in float32, and the last layer is
computed in it: what matters of energies is their differences, and everything that follows (logsumexp, losses,
log Z) sees float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxebm import checks
from jaxebm.cpu.convolution import Convolution
from jaxebm.trees import widened
from jaxebm.types import BATCH_AXIS, Array

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "CastConvolution",
    "apply_layer",
    "check_image",
    "check_options",
    "check_statistics_axis",
    "flatten",
    "he_normal",
    "in_dtype",
    "normalize",
    "out_of_dtype",
    "output_layer",
]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swish": jax.nn.swish,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
}
"""Activations by name; all but ``leaky_relu`` (slope 0.2, as in JEM), ``relu`` and ``elu`` are smooth."""

NORMS: tuple[str | None, ...] = (None, "group", "batch")
"""Normalisations by name."""

# Variance 2 / fan-in keeps the scale of rectifier-like activations.
he_normal = nn.initializers.he_normal()


def check_options(network: Any, features: dict[str, Sequence[int]]) -> None:
    """Raises an error that names the attribute of a network, or of ``features``, that no network has."""
    if network.name is not None:
        checks.text("name", network.name)
    if network.num_outputs is not None:
        checks.positive_integer("num_outputs", network.num_outputs)
    for name, values in features.items():
        checks.instance(name, values, (tuple, list), "One number a layer.")
        for value in values:
            checks.positive_integer(name, value)
    checks.one_of("activation", network.activation, ACTIVATIONS)
    checks.one_of("norm", getattr(network, "norm", None), NORMS)
    for name in ("spectral_norm", "remat"):
        checks.boolean(name, getattr(network, name, False))
    _check_dtype(network.dtype)


def _check_dtype(dtype: Any) -> None:
    try:
        known = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:  # of NumPy, for what is no type
        known = False
    if not known:
        raise ValueError(f"dtype={dtype!r}: dtype must be None or a floating-point type, as jnp.bfloat16.")


def check_image(x: Array, smallest: int) -> None:
    """Raises ``ValueError`` unless x is one image with at least this number of pixels per side."""
    shape = jnp.shape(x)
    if len(shape) != 3:
        raise ValueError(
            f"x has shape {shape}: one image (height, width, channels) without a batch axis is needed; "
            f"batch with jax.vmap(module.apply, (None, 0))."
        )
    if min(shape[:2]) < smallest:
        raise ValueError(f"x has shape {shape}: at least {smallest} x {smallest} pixels are needed.")


def check_statistics_axis(norm: str | None, train: bool, initializing: bool) -> None:
    """Raises if batch statistics are used outside of the ``vmap`` that names the batch."""
    if norm != "batch" or not train or initializing:
        return
    try:
        jax.lax.axis_size(BATCH_AXIS)
    except NameError as error:
        raise ValueError(
            f"train=True with norm='batch' averages over the axis {BATCH_AXIS!r}: "
            f"call inside jax.vmap(..., axis_name=BATCH_AXIS), or use refresh_statistics."
        ) from error


class CastConvolution(Convolution):
    """``Convolution`` that casts its parameters where they are read; they are stored as initialised.

    Attributes:
      dtype: Of kernel and bias in the computation; ``None`` leaves them as they are.
    """

    dtype: Any = None

    @nn.nowrap
    def param(self, *args: Any, **keywords: Any) -> Any:
        """Returns the parameter in ``dtype``."""
        return in_dtype(super().param(*args, **keywords), self.dtype)


def in_dtype(x: Array, dtype: Any) -> Array:
    """Casts to the computation dtype, where there is one."""
    return x if dtype is None else jnp.asarray(x, dtype)


def out_of_dtype(x: Array, dtype: Any) -> Array:
    """Casts from the computation dtype, where there is one, to float32 or wider, for sums of many entries."""
    return x if dtype is None else widened(x)


def apply_layer(layer: nn.Module, x: Array, spectral_norm: bool, train: bool) -> Array:
    """Applies a layer, its kernel divided by its largest singular value where asked (arXiv 1802.05957)."""
    if spectral_norm:
        return nn.SpectralNorm(layer)(x, update_stats=train)
    return layer(x)  # type: ignore[operator]


def normalize(x: Array, norm: str | None, train: bool, dtype: Any) -> Array:
    """Normalises by statistics in float32, and returns the computation dtype."""
    if norm == "group":
        # Groups of several channels, so that a 1x1 image still has something to average over.
        groups = math.gcd(x.shape[-1], 8)
        return nn.GroupNorm(num_groups=groups, reduction_axes=(0, 1, 2), dtype=dtype)(x)
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, axis_name=BATCH_AXIS, dtype=dtype)(x)
    return x


def output_layer(x: Array, num_outputs: int | None, spectral_norm: bool, train: bool, dtype: Any) -> Array:
    """Maps features (F,) to logits (K,), or to a scalar energy, in float32 for any dtype of the features."""
    y = apply_layer(nn.Dense(num_outputs or 1, name="output"), out_of_dtype(x, dtype), spectral_norm, train)
    return y[0] if num_outputs is None else y


def flatten(module: nn.Module, x: Array, first_dense: str) -> Array:
    """Flattens x for the named dense layer; raises a clear error if x has not the shape at initialisation."""
    flat = jnp.reshape(x, (-1,))
    initialised = module.get_variable("params", first_dense)
    if initialised is not None and initialised["kernel"].shape[0] != flat.size:
        raise ValueError(
            f"x of shape {jnp.shape(x)} has {flat.size} entries where the network was initialised for "
            f"{initialised['kernel'].shape[0]}: x must be one example, without a batch axis; batch with "
            f"jax.vmap(module.apply, (None, 0))."
        )
    return flat
