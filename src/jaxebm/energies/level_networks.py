"""Networks in Flax that are told a noise level, and a U-Net whose output has the shape of the example.

Each is a ``flax.linen`` module on ONE example: ``module.apply`` is ``energy_at(params, x, level)`` with
``num_outputs=None`` and ``logits_at(params, x, level)`` with ``num_outputs=K``; batch with ``jax.vmap``.

A network sees sines and cosines of log sigma (`level_features`), from which an embedding is learnt. In each
layer the embedding scales and shifts every feature (FiLM): h <- act(h (1 + a(e)) + b(e)).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxebm import checks
from jaxebm.energies.network_layers import (
    ACTIVATIONS,
    CastConvolution,
    check_image,
    check_options,
    flatten,
    he_normal,
    in_dtype,
    output_layer,
)
from jaxebm.trees import widened
from jaxebm.types import Array

__all__ = ["EnergyUNet", "LevelConvNet", "LevelMLP", "level_features"]

_FREQUENCIES = np.geomspace(0.25, 4.0, 8)
"""Per unit of log sigma: the longest wave spans all levels in use, the shortest about a factor of five."""


def level_features(level: Array | float) -> Array:
    r"""Describes a noise level by smooth functions of its logarithm, all of order one.

    .. math:: (\log\sigma / 4, \sin \omega_k \log\sigma, \cos \omega_k \log\sigma)_k

    with eight :math:`\omega_k` from 1/4 to 4, so that equal factors of sigma are equal distances.

    Args:
      level: sigma > 0, shape (), in units of x.

    Returns:
      Shape (17,), float32 or wider. NaN or infinite where sigma is not positive.

    Raises:
      ValueError: if ``level`` is not one positive number.
      TypeError: if it is no number.

    Example:
      >>> level_features(1.0)[:3].tolist()
      [0.0, 0.0, 0.0]

    Reference:
      Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; Song et al. 2021 (arXiv 2011.13456), appendix H, of
      log sigma.
    """
    checks.positive_number("level", level)
    log_level = jnp.log(widened(level))
    waves = jnp.asarray(_FREQUENCIES, log_level.dtype) * log_level
    return jnp.concatenate([log_level[None] / 4, jnp.sin(waves), jnp.cos(waves)])


class _Embedding(nn.Module):
    """The learnt embedding of a level, shape (width,)."""

    width: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, level: Array | float) -> Array:
        features = in_dtype(level_features(level), self.dtype)
        hidden = nn.Dense(self.width, dtype=self.dtype, kernel_init=he_normal, name="hidden")(features)
        return ACTIVATIONS[self.activation](hidden)


class _Modulation(nn.Module):
    """h (1 + a(e)) + b(e) for each feature of h, a = 0 at initialisation; h itself without a level."""

    dtype: Any

    @nn.compact
    def __call__(self, h: Array, embedding: Array | None) -> Array:
        if embedding is None:
            return h
        shape = (1,) * (h.ndim - 1) + (h.shape[-1],)
        zeros = nn.initializers.zeros_init()
        scale = nn.Dense(h.shape[-1], dtype=self.dtype, kernel_init=zeros, name="scale")(embedding)
        shift = nn.Dense(h.shape[-1], dtype=self.dtype, name="shift")(embedding)
        return h * (1 + scale.reshape(shape)) + shift.reshape(shape)


class LevelMLP(nn.Module):
    """Multilayer perceptron on the flattened example that is told a noise level.

    h_0 = vec(x); h_l = act((W_l h_{l-1} + b_l)(1 + a_l(sigma)) + s_l(sigma)); output W h_L + b.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      widths: Units of each hidden layer.
      activation: A name in ``ACTIVATIONS``; smooth ones keep the energy's gradients continuous.
      embedding_width: Units of the embedding of the level.
      num_waves: Sines and cosines of as many learnt linear functions of x that the first layer sees beside x,
        which resolve detail much finer than the range of x; 0 for none.
      wave_frequency: Standard deviation of those functions at initialisation, for entries of x of order one:
        about a quarter of the range of x in units of its finest detail.
      dtype: What to compute in, as in `jaxebm.energies.MLP`.

    Raises:
      ValueError: If an integer is too small, ``wave_frequency`` is not positive, the activation is unknown,
        the level is not one positive number, or x has another size than at initialisation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = LevelMLP(num_outputs=None, widths=(32,))
      >>> variables = module.init(jax.random.key(0), jnp.zeros(2), 1.0)
      >>> jax.vmap(module.apply, (None, 0, 0))(variables, jnp.ones((5, 2)), jnp.full(5, 0.1)).shape
      (5,)

    Reference:
      Perez et al. 2018 (arXiv 1709.07871) for the modulation; Tancik et al. 2020 (arXiv 2006.10739) for the
      waves.
    """

    num_outputs: int | None
    widths: Sequence[int] = (256, 256, 256)
    activation: str = "swish"
    embedding_width: int = 64
    num_waves: int = 0
    wave_frequency: float = 4.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, level: Array | float, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one example of any shape; ``train`` is ignored."""
        check_options(self, {"widths": self.widths, "embedding_width": (self.embedding_width,)})
        checks.integer("num_waves", self.num_waves, 0)
        checks.positive_number("wave_frequency", self.wave_frequency)
        first = "waves" if self.num_waves else "hidden_0" if self.widths else "output"
        x = in_dtype(flatten(self, x, first), self.dtype)
        if self.num_waves:
            spread = nn.initializers.normal(self.wave_frequency / x.size**0.5)
            waves = nn.Dense(self.num_waves, dtype=self.dtype, kernel_init=spread, name="waves")(x)
            x = jnp.concatenate([x, jnp.sin(waves), jnp.cos(waves)])
        embedding = _Embedding(self.embedding_width, self.activation, self.dtype, name="level")(level)
        for depth, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal, name=f"hidden_{depth}")(x)
            x = _Modulation(self.dtype, name=f"modulation_{depth}")(x, embedding)
            x = ACTIVATIONS[self.activation](x)
        return output_layer(x, self.num_outputs, spectral_norm=False, train=train, dtype=self.dtype)


class LevelConvNet(nn.Module):
    """`jaxebm.energies.ConvNet` that is told a noise level: strided convolutions and a linear layer.

    Every strided layer halves the image. The features of each layer are scaled and shifted by the embedding
    of the level. Residual layers, h + act(conv h), and hidden linear layers come where asked for.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      channels: Features at 1/2, 1/4, ... of the image's height and width, rounded up.
      blocks: Residual 3 x 3 layers at each of these resolutions, from the finest; 0 where left out.
      widths: Units of each hidden linear layer after the last resolution.
      level_offset: Whether all outputs are moved by d b(sigma), d the number of entries of x and b a learnt
        function of the level alone: normalised energies of images change by d log(sigma) with the level.
      activation: A name in ``ACTIVATIONS``; smooth ones keep the energy's gradients continuous.
      embedding_width: Units of the embedding of the level.
      dtype: What to compute in, as in `jaxebm.energies.ConvNet`.

    Raises:
      ValueError: If x is not one image of at least 4 x 4 pixels, or has another size than at initialisation;
        if an integer is too small, there are more ``blocks`` than ``channels``, the activation is unknown, or
        the level is not one positive number.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = LevelConvNet(num_outputs=10, channels=(8, 16), blocks=(1,), widths=(32,))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)), 1.0)
      >>> jax.jit(module.apply)(variables, jnp.ones((8, 8, 1)), 0.5).shape
      (10,)
    """

    num_outputs: int | None
    channels: Sequence[int] = (64, 128)
    blocks: Sequence[int] = ()
    widths: Sequence[int] = ()
    level_offset: bool = False
    activation: str = "swish"
    embedding_width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, level: Array | float, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one image (H, W, C); ``train`` is ignored."""
        sizes = {"channels": self.channels, "widths": self.widths, "embedding_width": (self.embedding_width,)}
        check_options(self, sizes)
        check_blocks(self.blocks, self.channels)
        checks.boolean("level_offset", self.level_offset)
        check_image(x, smallest=4)
        embedding = _Embedding(self.embedding_width, self.activation, self.dtype, name="level")(level)

        def activated(h: Array, name: str) -> Array:
            return ACTIVATIONS[self.activation](_Modulation(self.dtype, name=name)(h, embedding))

        h = in_dtype(x, self.dtype)
        for depth, width in enumerate(self.channels):
            # The first kernel is wider: it sees few channels, and its windows overlap by half.
            h = _convolution(self, width, (4, 4) if depth == 0 else (3, 3), 2, f"level_{depth}")(h)
            h = activated(h, f"modulation_{depth}")
            for block in range(self.blocks[depth] if depth < len(self.blocks) else 0):
                inner = _convolution(self, width, (3, 3), 1, f"block_{depth}_{block}")(h)
                h = h + activated(inner, f"block_modulation_{depth}_{block}")
        h = flatten(self, h, "hidden_0" if self.widths else "output")
        for depth, width in enumerate(self.widths):
            h = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal, name=f"hidden_{depth}")(h)
            h = activated(h, f"hidden_modulation_{depth}")
        outputs = output_layer(h, self.num_outputs, spectral_norm=False, train=train, dtype=self.dtype)
        if not self.level_offset:
            return outputs
        zeros = nn.initializers.zeros_init()
        hidden = nn.Dense(self.embedding_width, kernel_init=he_normal, name="offset_hidden")(
            widened(embedding)
        )
        offset = nn.Dense(1, kernel_init=zeros, name="offset")(ACTIVATIONS[self.activation](hidden))
        return outputs + jnp.size(x) * offset[0]


def check_blocks(blocks: Sequence[int], channels: Sequence[int], *, name: str = "blocks") -> None:
    """Raises unless there is a number of residual layers, at least 0, for none or some of the resolutions."""
    checks.instance(name, blocks, (tuple, list), "One number a resolution.")
    for count in blocks:
        checks.integer(name, count, 0)
    if len(blocks) > len(channels):
        raise ValueError(f"{name}={blocks}: more than the {len(channels)} resolutions of channels.")


class EnergyUNet(nn.Module):
    """Small U-Net: a field f(x) in the shape of x for potential forms, or an energy or logits.

    Strided convolutions down to the coarsest resolution, one residual layer there, and the way back by
    sub-pixel convolutions, the features of each resolution added on the way up. No layer runs at full
    resolution: the last one gives the pixels of each 2 x 2 block as channels.

    The level is optional, ``apply(variables, x)`` or ``apply(variables, x, level)``, as at initialisation.
    With `jaxebm.energies.inner_product_energy` or `jaxebm.energies.squared_norm_energy` the field makes an
    energy.

    Attributes:
      num_outputs: K for logits, ``None`` for a scalar energy; read only if ``field`` is not set.
      field: Whether the output is a field in the shape of x.
      channels: Features at 1/2, 1/4, ... of the image's height and width, rounded up; at least one.
      activation: A name in ``ACTIVATIONS``; smooth ones keep the energy's gradients continuous.
      embedding_width: Units of the embedding of the level.
      dtype: What to compute in, as in `jaxebm.energies.ConvNet`; the output is float32 all the same.

    Raises:
      ValueError: If x is not one image of at least 4 x 4 pixels; if an integer is below 1, ``channels`` is
        empty, the activation is unknown, the level is not one positive number, or it is given to a network
        that was initialised without one or missing for one that was initialised with one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = EnergyUNet(channels=(8, 16))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((7, 7, 1)))
      >>> jax.jit(module.apply)(variables, jnp.ones((7, 7, 1))).shape
      (7, 7, 1)

    Reference:
      Ronneberger et al. 2015 (arXiv 1505.04597); sub-pixel convolutions of Shi et al. 2016 (arXiv
      1609.05158).
    """

    num_outputs: int | None = None
    field: bool = True
    channels: Sequence[int] = (32, 64, 128)
    activation: str = "swish"
    embedding_width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, level: Array | float | None = None, train: bool = False) -> Array:
        """Returns a field (H, W, C), logits (K,) or an energy () for one image; ``train`` is ignored."""
        check_options(self, {"channels": self.channels, "embedding_width": (self.embedding_width,)})
        checks.boolean("field", self.field)
        if not self.channels:
            raise ValueError("channels=(): at least one resolution is needed.")
        check_image(x, smallest=4)
        self._check_told(level)
        act, shape = ACTIVATIONS[self.activation], x.shape
        embedding = None
        if level is not None:
            embedding = _Embedding(self.embedding_width, self.activation, self.dtype, name="level")(level)

        def layer(h: Array, width: int, size: int, stride: int, name: str) -> Array:
            h = _convolution(self, width, (size, size), stride, name)(h)
            return act(_Modulation(self.dtype, name=f"{name}_modulation")(h, embedding))

        h, passed = in_dtype(x, self.dtype), []
        for depth, width in enumerate(self.channels):
            h = layer(h, width, 4 if depth == 0 else 3, 2, f"down_{depth}")
            passed.append(h)
        h = h + layer(h, self.channels[-1], 3, 1, "middle")
        coarse = h
        for depth in range(len(self.channels) - 2, -1, -1):
            width, skip = self.channels[depth], passed[depth]
            h = _convolution(self, 4 * width, (1, 1), 1, f"spread_{depth}")(h)
            h = layer(_blocks_to_pixels(h, skip.shape) + skip, width, 3, 1, f"up_{depth}")
        if self.field:
            h = _convolution(self, 4 * shape[-1], (3, 3), 1, "output")(h)
            return widened(_blocks_to_pixels(h, shape))
        pooled = jnp.mean(widened(h), axis=(0, 1))
        features = jnp.concatenate([pooled, widened(flatten(self, coarse, "coarse"))])
        return output_layer(features, self.num_outputs, spectral_norm=False, train=train, dtype=self.dtype)

    def _check_told(self, level: Array | float | None) -> None:
        """Raises unless there is a level where there was one at initialisation, and only there."""
        if self.get_variable("params", "down_0") is None:
            return
        initialised = self.get_variable("params", "level") is not None
        if initialised != (level is not None):
            given, before = ("a level", "without") if level is not None else ("no level", "with")
            raise ValueError(
                f"EnergyUNet is given {given} and was initialised {before} one: a level must be given to "
                f"both init and apply, or to neither."
            )


def _convolution(network: Any, width: int, size: tuple[int, int], stride: int, name: str) -> nn.Module:
    return CastConvolution(
        width, size, (stride, stride), kernel_init=he_normal, dtype=network.dtype, name=name
    )


def _blocks_to_pixels(h: Array, shape: tuple[int, ...]) -> Array:
    """(H, W, 4 C) -> (2 H, 2 W, C), cut to ``shape``: channels become the pixels of 2 x 2 blocks."""
    rows, columns, width = h.shape[0], h.shape[1], h.shape[2] // 4
    blocks = jnp.transpose(h.reshape(rows, columns, 2, 2, width), (0, 2, 1, 3, 4))
    return blocks.reshape(2 * rows, 2 * columns, width)[: shape[0], : shape[1]]
