"""Networks in Flax: a multilayer perceptron, a small convolutional network and JEM's wide residual network.

Each is a ``flax.linen`` module on ONE example, so ``module.apply`` already is a ``LogitsFn``
(``num_outputs=K``) or, with ``num_outputs=None``, an ``EnergyFn``; batch with ``jax.vmap``:

    module = ConvNet(num_outputs=10)
    variables = module.init(rng_key, x)                          # x: one example
    logits = jax.vmap(module.apply, (None, 0))(variables, xs)    # (B, 10)

**Statistics.** Batch normalisation and spectral normalisation keep statistics in the collection
``"batch_stats"``, beside ``"params"``. ``module.apply(variables, x)`` reads the running statistics and is
pure: samplers use it. Trainers hand the whole ``variables`` about as their parameters, and three helpers do
the rest:

    optimizer = trainable(optax.adam(1e-4))                  # leaves "batch_stats" alone
    batch_logits = jax.vmap(training_apply(module), (None, 0), axis_name=BATCH_AXIS)
    logits = batch_logits(variables, xs)                     # normalised by the statistics of xs
    variables = refresh_statistics(module, variables, xs)    # after the update: running averages move

**Flax NNX** needs two lines and nothing from this file: with ``graphdef, params = nnx.split(model)``, the
function ``energy = lambda params, x: nnx.merge(graphdef, params)(x)`` is an ``EnergyFn``, under ``jit``,
``grad`` and ``vmap``.
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from jaxebm.energies.network_layers import (
    ACTIVATIONS,
    NORMS,
    CastConvolution,
    apply_layer,
    check_image,
    check_options,
    check_statistics_axis,
    flatten,
    he_normal,
    in_dtype,
    normalize,
    output_layer,
)
from jaxebm.energies.statistics import refresh_statistics, trainable, training_apply
from jaxebm.energies.wide_resnet import WideResNet
from jaxebm.types import Array

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "NORMS",
    "ConvNet",
    "WideResNet",
    "refresh_statistics",
    "trainable",
    "training_apply",
]


class MLP(nn.Module):
    """Multilayer perceptron on the flattened example.

    h_0 = vec(x); h_l = act(W_l h_{l-1} + b_l); output W h_L + b: logits (K,), or a scalar energy.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      widths: Units of each hidden layer.
      activation: A name in ``ACTIVATIONS``.
      dtype: What to compute in, as ``jnp.bfloat16``; ``None`` for that of inputs and parameters.
        Parameters, the last layer and its outputs are float32 all the same.

    Raises:
      ValueError: If an integer is below 1, the activation is unknown, or x has another size than at
        initialisation.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = MLP(num_outputs=None, widths=(32,))
      >>> variables = module.init(jax.random.key(0), jnp.zeros(2))
      >>> jax.vmap(module.apply, (None, 0))(variables, jnp.ones((5, 2))).shape
      (5,)
    """

    num_outputs: int | None
    widths: Sequence[int] = (256, 256, 256)
    activation: str = "swish"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one example of any shape; ``train`` is ignored."""
        check_options(self, {"widths": self.widths})
        x = in_dtype(flatten(self, x, "hidden_0" if self.widths else "output"), self.dtype)
        for level, width in enumerate(self.widths):
            x = nn.Dense(width, dtype=self.dtype, kernel_init=he_normal, name=f"hidden_{level}")(x)
            x = ACTIVATIONS[self.activation](x)
        return output_layer(x, self.num_outputs, spectral_norm=False, train=train, dtype=self.dtype)


class ConvNet(nn.Module):
    """Small convolutional network: strided convolutions and a linear layer. Cheap where sampling is costly.

    Every level halves the image with a convolution of stride 2, so that no layer runs at full resolution; the
    last level is flattened. At 8x8x1 a gradient with respect to 64 images costs two to three of ``MLP``'s.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      channels: Features of each level, at 1/2, 1/4, ... of the image's height and width, rounded up.
      activation: A name in ``ACTIVATIONS``; smooth ones keep the energy's gradient continuous.
      norm: ``None``, ``"group"`` (per example) or ``"batch"``, after each convolution.
      spectral_norm: Whether each kernel, as a matrix, is divided by its largest singular value.
      dtype: What to compute in, as ``jnp.bfloat16``; ``None`` for that of inputs and parameters.
        Parameters, the last layer and its outputs are float32 all the same.

    Raises:
      ValueError: If x is not one image of at least 4 x 4 pixels, or has another size than at initialisation;
        if an integer is below 1; if the activation or the norm is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> module = ConvNet(num_outputs=10)
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> jax.jit(jax.vmap(module.apply, (None, 0)))(variables, jnp.ones((5, 8, 8, 1))).shape
      (5, 10)
    """

    num_outputs: int | None
    channels: Sequence[int] = (64, 128)
    activation: str = "swish"
    norm: str | None = None
    spectral_norm: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one image (H, W, C)."""
        check_options(self, {"channels": self.channels})
        check_image(x, smallest=4)
        check_statistics_axis(self.norm, train, self.is_initializing())
        act = ACTIVATIONS[self.activation]
        x = in_dtype(x, self.dtype)
        for level, width in enumerate(self.channels):
            # The first kernel is wider: it sees few channels, and its windows overlap by half.
            size = (4, 4) if level == 0 else (3, 3)
            options = {"kernel_init": he_normal, "dtype": self.dtype, "name": f"level_{level}"}
            layer = CastConvolution(width, size, (2, 2), **options)
            x = apply_layer(layer, x, self.spectral_norm, train)
            x = act(normalize(x, self.norm, train, self.dtype))
        x = flatten(self, x, "output")
        return output_layer(x, self.num_outputs, self.spectral_norm, train, self.dtype)
