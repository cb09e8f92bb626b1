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

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxebm.checks import positive_integer
from jaxebm.energies.convolution import Convolution
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Params

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

_STATISTICS = "batch_stats"
# Variance 2 / fan-in keeps the scale of rectifier-like activations; the last layer maps to outputs of order
# one.
_he_normal = nn.initializers.he_normal()


def _check_options(
    num_outputs: int | None, activation: str, norm: str | None, features: dict[str, Sequence[int]]
) -> None:
    if num_outputs is not None:
        positive_integer("num_outputs", num_outputs)
    for name, values in features.items():
        for value in values:
            positive_integer(name, value)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: activation must be one of {', '.join(ACTIVATIONS)}.")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: norm must be one of None, 'group', 'batch'.")


def _check_image(x: Array, smallest: int) -> None:
    shape = jnp.shape(x)
    if len(shape) != 3:
        raise ValueError(
            f"x has shape {shape}: one image (height, width, channels) without a batch axis is needed; "
            f"batch with jax.vmap(module.apply, (None, 0))."
        )
    if min(shape[:2]) < smallest:
        raise ValueError(f"x has shape {shape}: at least {smallest} x {smallest} pixels are needed.")


def _check_statistics_axis(norm: str | None, train: bool, initializing: bool) -> None:
    """Raises where batch statistics are asked for outside the ``vmap`` that names the batch."""
    if norm != "batch" or not train or initializing:
        return
    try:
        jax.lax.axis_size(BATCH_AXIS)
    except NameError as error:
        raise ValueError(
            f"train=True with norm='batch' averages over the axis {BATCH_AXIS!r}: "
            f"call inside jax.vmap(..., axis_name=BATCH_AXIS), or use refresh_statistics."
        ) from error


def _apply_layer(layer: nn.Module, x: Array, spectral_norm: bool, train: bool) -> Array:
    """Applies a layer, its kernel divided by its largest singular value where asked (arXiv 1802.05957)."""
    if spectral_norm:
        return nn.SpectralNorm(layer)(x, update_stats=train)
    return layer(x)  # type: ignore[operator]


def _normalize(x: Array, norm: str | None, train: bool) -> Array:
    if norm == "group":
        # Groups of several channels, so that a 1x1 image still has something to average over.
        return nn.GroupNorm(num_groups=math.gcd(x.shape[-1], 8), reduction_axes=(0, 1, 2))(x)
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, axis_name=BATCH_AXIS)(x)
    return x


def _output(x: Array, num_outputs: int | None, spectral_norm: bool, train: bool) -> Array:
    """Maps features (F,) to logits (K,), or to a scalar energy."""
    y = _apply_layer(nn.Dense(num_outputs or 1, name="output"), x, spectral_norm, train)
    return y[0] if num_outputs is None else y


def _flatten(module: nn.Module, x: Array, first_dense: str) -> Array:
    """Flattens x for the named dense layer; says plainly where x is not what it was initialised with."""
    flat = jnp.reshape(x, (-1,))
    initialised = module.get_variable("params", first_dense)
    if initialised is not None and initialised["kernel"].shape[0] != flat.size:
        raise ValueError(
            f"x of shape {jnp.shape(x)} has {flat.size} entries where the network was initialised for "
            f"{initialised['kernel'].shape[0]}: x must be one example, without a batch axis; batch with "
            f"jax.vmap(module.apply, (None, 0))."
        )
    return flat


class MLP(nn.Module):
    """Multilayer perceptron on the flattened example.

    h_0 = vec(x); h_l = act(W_l h_{l-1} + b_l); output W h_L + b: logits (K,), or a scalar energy.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      widths: Units of each hidden layer.
      activation: A name in ``ACTIVATIONS``.

    Raises:
      ValueError: If an integer is below 1, the activation is unknown, or x has another size than at
        initialisation.

    Example:
      >>> module = MLP(num_outputs=None, widths=(32,))
      >>> variables = module.init(jax.random.key(0), jnp.zeros(2))
      >>> jax.vmap(module.apply, (None, 0))(variables, jnp.ones((5, 2))).shape
      (5,)
    """

    num_outputs: int | None
    widths: Sequence[int] = (256, 256, 256)
    activation: str = "swish"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one example of any shape; ``train`` is ignored."""
        _check_options(self.num_outputs, self.activation, None, {"widths": self.widths})
        x = _flatten(self, x, "hidden_0" if self.widths else "output")
        for level, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=_he_normal, name=f"hidden_{level}")(x)
            x = ACTIVATIONS[self.activation](x)
        return _output(x, self.num_outputs, spectral_norm=False, train=train)


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

    Raises:
      ValueError: If x is not one image of at least 4 x 4 pixels, or has another size than at initialisation;
        if an integer is below 1; if the activation or the norm is unknown.

    Example:
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

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one image (H, W, C)."""
        _check_options(self.num_outputs, self.activation, self.norm, {"channels": self.channels})
        _check_image(x, smallest=4)
        _check_statistics_axis(self.norm, train, self.is_initializing())
        act = ACTIVATIONS[self.activation]
        for level, width in enumerate(self.channels):
            # The first kernel is wider: it sees few channels, and its windows overlap by half.
            size = (4, 4) if level == 0 else (3, 3)
            layer = Convolution(width, size, (2, 2), kernel_init=_he_normal, name=f"level_{level}")
            x = act(_normalize(_apply_layer(layer, x, self.spectral_norm, train), self.norm, train))
        return _output(_flatten(self, x, "output"), self.num_outputs, self.spectral_norm, train)


class WideResNet(nn.Module):
    """Wide residual network with pre-activation blocks, as JEM uses it: without normalisation, without
    dropout.

    Three groups of n = (depth - 4) / 6 blocks with 16 w, 32 w and 64 w channels, the second and third at
    stride 2;
    block: x + conv(act(norm(conv(act(norm(x)))))), with a 1x1 convolution on the shortcut where shapes
    change; then act, mean over pixels, outputs. Each block's second kernel starts with variance 2 / (fan-in x
    number of blocks), which keeps the scale of activations at any depth without normalisation.

    Attributes:
      num_outputs: K, the number of logits; ``None`` for a scalar energy.
      depth: Number of layers, 6n + 4.
      width: w, the widening factor.
      activation: A name in ``ACTIVATIONS``; JEM's is ``"leaky_relu"`` with slope 0.2.
      norm: ``None``, ``"group"`` (per example) or ``"batch"``, before each activation.
      spectral_norm: Whether each kernel, as a matrix, is divided by its largest singular value.

    Raises:
      ValueError: If depth is not 6n + 4; if x is not one image of at least 4 x 4 pixels; if an integer is
        below 1; if the activation or the norm is unknown.

    Example:
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

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns logits (K,) or an energy () for one image (H, W, C)."""
        _check_options(self.num_outputs, self.activation, self.norm, {"width": (self.width,)})
        positive_integer("depth", self.depth)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth}: depth must be 6n + 4: 10, 16, 22, 28, ...")
        _check_image(x, smallest=4)
        _check_statistics_axis(self.norm, train, self.is_initializing())
        act = ACTIVATIONS[self.activation]
        blocks_per_group = (self.depth - 4) // 6
        last_variance = 2.0 / (3 * blocks_per_group)
        last_init = nn.initializers.variance_scaling(last_variance, "fan_in", "truncated_normal")

        def convolution(x: Array, features: int, name: str, stride=1, size=3, init=_he_normal) -> Array:
            layer = Convolution(features, (size, size), (stride, stride), kernel_init=init, name=name)
            return _apply_layer(layer, x, self.spectral_norm, train)

        x = convolution(x, 16, "stem")
        for group in range(3):
            features = 16 * self.width * 2**group
            for block in range(blocks_per_group):
                name, stride = f"group_{group}_block_{block}", 2 if group > 0 and block == 0 else 1
                h = convolution(act(_normalize(x, self.norm, train)), features, f"{name}_first", stride)
                h = act(_normalize(h, self.norm, train))
                h = convolution(h, features, f"{name}_second", init=last_init)
                if stride > 1 or x.shape[-1] != features:
                    lecun = nn.initializers.lecun_normal()
                    x = convolution(x, features, f"{name}_shortcut", stride, size=1, init=lecun)
                x = x + h
        x = act(_normalize(x, self.norm, train)).mean((0, 1))
        return _output(x, self.num_outputs, self.spectral_norm, train)


@dataclasses.dataclass(frozen=True)
class _TrainingApply:
    """A frozen class and not a closure: two for equal modules are equal, so ``jit`` does not trace again."""

    module: nn.Module

    def __call__(self, params: Params, x: Array, /) -> Array:
        return self.module.apply(params, x, train=True, mutable=[_STATISTICS])[0]


def training_apply(module: nn.Module) -> LogitsFn:
    """Returns f(variables, x) that normalises with the statistics of the batch at hand, and stores nothing.

    Objectives differentiate this one while training with ``norm="batch"``; ``refresh_statistics`` then moves
    the running averages that the plain ``module.apply`` reads. Equal modules give equal functions, fit to be
    static.

    Args:
      module: A module of this file.

    Returns:
      A ``LogitsFn`` (or ``EnergyFn``, by the module's ``num_outputs``); with batch normalisation it must run
      inside ``jax.vmap(..., axis_name=BATCH_AXIS)``, and raises ``ValueError`` elsewhere.

    Example:
      >>> module = ConvNet(num_outputs=10, channels=(8,), norm="batch")
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> xs = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
      >>> jax.vmap(training_apply(module), (None, 0), axis_name=BATCH_AXIS)(variables, xs).shape
      (16, 10)
    """
    return _TrainingApply(module)


def refresh_statistics(module: nn.Module, variables: Params, xs: Array) -> Params:
    """Moves the running statistics by one pass over a batch: s <- m s + (1 - m) s(xs), with flax's momentum m
    = 0.99.

    For spectral normalisation the pass is one power iteration per kernel. Pure: run it inside the compiled
    step, after the update.

    Args:
      module: A module of this file.
      variables: ``{"params": ..., "batch_stats": ...}``.
      xs: A batch of examples, shape (B, ...).

    Returns:
      The variables with new ``"batch_stats"``; ``variables`` itself where the module keeps none.

    Example:
      >>> module = ConvNet(num_outputs=10, channels=(8,), norm="batch")
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> sorted(refresh_statistics(module, variables, jnp.ones((16, 8, 8, 1))))
      ['batch_stats', 'params']
    """
    if _STATISTICS not in variables:
        return variables

    def pass_over(x: Array) -> Params:
        return module.apply(variables, x, train=True, mutable=[_STATISTICS])[1]

    # The statistics are averages over the axis, hence the same for every example: out_axes=None takes them
    # once.
    updated = jax.vmap(pass_over, out_axes=None, axis_name=BATCH_AXIS)(xs)
    return {**variables, **updated}


def trainable(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Restricts an optimiser to the collection ``"params"``: every other collection stays as it is.

    So the whole variables of a module can be what a trainer learns. Norms, decays and moments see
    ``"params"`` only.

    Args:
      optimizer: Any Optax transformation.

    Returns:
      A transformation of ``{"params": ..., ...}``, with zero updates outside ``"params"``.

    Raises:
      ValueError: On ``init``, if the tree has no collection ``"params"``.

    Example:
      >>> optimizer = trainable(optax.sgd(1.0))
      >>> variables = {"params": jnp.ones(2), "batch_stats": jnp.ones(2)}
      >>> updates, _ = optimizer.update(variables, optimizer.init(variables), variables)
      >>> float(updates["params"][0]), float(updates["batch_stats"][0])
      (-1.0, 0.0)
    """

    def labels(variables: Mapping[str, Any]) -> dict[str, str]:
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise ValueError(
                f"variables is {type(variables).__name__} without the collection 'params': trainable works "
                f"on what module.init returns; for bare parameters use the optimizer itself."
            )
        return {collection: "learnt" if collection == "params" else "fixed" for collection in variables}

    return optax.partition({"learnt": optimizer, "fixed": optax.set_to_zero()}, labels)
