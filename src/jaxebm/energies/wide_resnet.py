"""The wide residual network of JEM, with optional rematerialisation to save memory."""

from functools import partial
from typing import Any

from flax import linen as nn

from jaxebm import checks
from jaxebm.energies.network_layers import (
    ACTIVATIONS,
    CastConvolution,
    apply_layer,
    check_image,
    check_options,
    check_statistics_axis,
    he_normal,
    in_dtype,
    normalize,
    out_of_dtype,
    output_layer,
)
from jaxebm.types import Array

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """Wide residual network with pre-activation blocks, as JEM uses it: no normalisation and no dropout.

    Three groups of n = (depth - 4) / 6 blocks with 16 w, 32 w and 64 w channels; the second and the third
    group begin with stride 2. A block is x + conv(act(norm(conv(act(norm(x)))))), with a 1x1 convolution on
    the shortcut where shapes change. Then act, mean over pixels, outputs. Each block's second kernel starts
    with variance 2 / (fan-in x number of blocks), which keeps the scale of activations at any depth without
    normalisation.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      depth: Number of layers, 6n + 4.
      width: w, the widening factor.
      activation: A name in ``ACTIVATIONS``; JEM's is ``"leaky_relu"`` with slope 0.2.
      norm: ``None``, ``"group"`` (per example) or ``"batch"``, before each activation.
      spectral_norm: Whether each kernel, as a matrix, is divided by its largest singular value.
      dtype: Data type of the computation, such as ``jnp.bfloat16``; ``None`` for that of inputs and
        parameters. Parameters, the mean over pixels, the last layer and its outputs are always float32.
      remat: Whether gradients keep only each block's input and compute its inside again: about a sixth more
        work, and memory for 3n blocks instead of every layer in them. Same values. For GPU and TPU: on a CPU
        XLA finds the repeated work and keeps it as before.

    Raises:
      ValueError: If depth is not 6n + 4; if x is not one image of at least 4 x 4 pixels; if an integer is
        below 1; if the activation or the norm is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = WideResNet(num_outputs=10, depth=10, width=1)
      >>> jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((8, 8, 3)))[0].shape
      (10,)

    Reference:
      Zagoruyko & Komodakis, Wide Residual Networks (arXiv 1605.07146); Grathwohl et al. (arXiv 1912.03263),
      appendix.
    """

    num_outputs: int | None
    depth: int = 28
    width: int = 10
    activation: str = "leaky_relu"
    norm: str | None = None
    spectral_norm: bool = False
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one image (H, W, C)."""
        check_options(self, {"width": (self.width,)})
        checks.positive_integer("depth", self.depth)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth}: depth must be 6n + 4: 10, 16, 22, 28, ...")
        check_image(x, smallest=4)
        check_statistics_axis(self.norm, train, self.is_initializing())
        blocks_per_group = (self.depth - 4) // 6
        x = _convolution(self, in_dtype(x, self.dtype), 16, "stem", train)
        for group in range(3):
            for block in range(blocks_per_group):
                apply_block = partial(
                    _residual_block,
                    features=16 * self.width * 2**group,
                    stride=2 if group > 0 and block == 0 else 1,
                    variance=2.0 / (3 * blocks_per_group),
                    name=f"group_{group}_block_{block}",
                    train=train,
                )
                if self.remat and not self.is_initializing():
                    apply_block = nn.remat(apply_block)
                x = apply_block(self, x)
        x = ACTIVATIONS[self.activation](normalize(x, self.norm, train, self.dtype))
        x = out_of_dtype(x, self.dtype).mean((0, 1))
        return output_layer(x, self.num_outputs, self.spectral_norm, train, self.dtype)


def _convolution(
    module: WideResNet,
    x: Array,
    features: int,
    name: str,
    train: bool,
    *,
    stride: int = 1,
    size: int = 3,
    init: nn.initializers.Initializer = he_normal,
) -> Array:
    options = {"kernel_init": init, "dtype": module.dtype, "name": name}
    layer = CastConvolution(features, (size, size), (stride, stride), **options)
    return apply_layer(layer, x, module.spectral_norm, train)


def _residual_block(
    module: WideResNet, x: Array, *, features: int, stride: int, variance: float, name: str, train: bool
) -> Array:
    """x + conv(act(norm(conv(act(norm(x)))))), as a function of the module for rematerialisation."""
    act = ACTIVATIONS[module.activation]
    last_init = nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
    h = act(normalize(x, module.norm, train, module.dtype))
    h = _convolution(module, h, features, f"{name}_first", train, stride=stride)
    h = act(normalize(h, module.norm, train, module.dtype))
    h = _convolution(module, h, features, f"{name}_second", train, init=last_init)
    if stride > 1 or x.shape[-1] != features:
        lecun = nn.initializers.lecun_normal()
        x = _convolution(module, x, features, f"{name}_shortcut", train, stride=stride, size=1, init=lecun)
    return x + h
