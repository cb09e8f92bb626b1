r"""Independent classifiers: samples and data are compared in their features, or by the classes they see.

Distances between pixels say little of large images, and the features of a published network (Inception) say
little of digits. ``fit_feature_network`` fits a small convolutional network to the *training images* by
cross-entropy alone: it shares nothing with the model that drew the samples, and never sees one. What is
measured in its features means something only beside its ``name``, which says what it is.
``fit_independent_classifier`` fits a support vector machine to pixels, for small images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.data.augment import random_translation
from jaxebm.energies.networks import ConvNet
from jaxebm.energies.submodules import submodule_input
from jaxebm.evaluation.samples.generation import flattened_points
from jaxebm.types import BATCH_AXIS, Array, LogitsFn, Params

__all__ = ["FeatureNetwork", "fit_feature_network", "fit_independent_classifier"]

_BATCH_SIZE = 64
_PEAK_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-2
_RELATIVE_SHIFT = 0.05
"""Greatest shift of images in training, as a fraction of their side: 1.4 pixels of 28."""
_CHUNK = 500
"""Batch size of the evaluation."""


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A fitted network with its predictions and features; made by ``fit_feature_network``.

    Attributes:
      module: the Flax module, on one image.
      variables: its parameters.
      image_shape: ``(H, W, C)`` of the images it takes.
      num_classes: K.
      num_features: D, the width of its last hidden layer.
      validation_accuracy: on images that it was not fitted to, in [0, 1].
      name: one sentence to print beside every figure that is measured with it.
    """

    module: ConvNet
    variables: Params
    image_shape: tuple[int, ...]
    num_classes: int
    num_features: int
    validation_accuracy: float
    name: str

    def features(self, images: ArrayLike) -> np.ndarray:
        """Returns the input of the last layer, float32 ``(n, D)``, for images ``(n, H, W, C)``."""
        return self._judge(images)[0]

    def log_probabilities(self, images: ArrayLike) -> np.ndarray:
        """Returns log p(y|x) in nats, float32 ``(n, K)``, for images ``(n, H, W, C)``."""
        return self._judge(images)[1]

    def predict(self, images: ArrayLike) -> np.ndarray:
        """Returns the most probable class, int ``(n,)``, for images ``(n, H, W, C)``."""
        return np.argmax(self._judge(images)[1], axis=1)

    def _judge(self, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        pixels = _checked_images(images)
        if pixels.shape[1:] != self.image_shape:
            raise ValueError(
                f"images has shape {pixels.shape}: (n, ...) with images of shape {self.image_shape} is "
                f"needed, as fitted."
            )
        found = []
        for start in range(0, len(pixels), _CHUNK):
            chunk = pixels[start : start + _CHUNK]
            # The last chunk is padded, so that all chunks use one program.
            filled = np.concatenate([chunk, np.zeros((_CHUNK - len(chunk), *self.image_shape), np.float32)])
            outputs = _features_and_log_probabilities(self.module, self.variables, filled)
            found.append([np.asarray(output)[: len(chunk)] for output in outputs])
        features, log_probabilities = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return features, log_probabilities


def fit_feature_network(
    rng_key: Array,
    images: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    epochs: int = 12,
    width: int = 24,
    validation_fraction: float = 0.1,
) -> FeatureNetwork:
    r"""Fits a small convolutional classifier whose features are used to evaluate samples.

    Minimises the cross-entropy -log p(y|x) with AdamW, one cycle of the learning rate up to 3e-3, batches
    of 64, images moved at random by up to a twentieth of their side. The network halves the image until one
    pixel is left, its channels doubling from ``width`` up to ``4 * width``: so there are 4 * width
    features, whatever the size of the image. The same key and data give the same network on one machine.

    Args:
      rng_key: one typed key: initial weights, the order of examples, which of them are held out.
      images: ``(n, H, W, C)`` floating-point training images in about [-1, 1], of at least 4 x 4 pixels.
        Leave out the images that samples will be compared with.
      labels: ``(n,)`` integers in 0..K-1.
      num_classes: K, at least 2.
      epochs: passes through the data.
      width: channels of the first level.
      validation_fraction: which part of the images is held out for ``validation_accuracy``, in (0, 1).

    Returns:
      A ``FeatureNetwork``.

    Raises:
      ValueError: for images or labels of other shapes, non-finite pixels, labels out of range, or fewer
        images than one to fit and one to hold out.
      TypeError: for images that are not floating point, labels that are not integers, or an untyped key.
      FloatingPointError: if the loss is not finite.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> labels = np.arange(256) % 2
      >>> images = rng.normal(labels[:, None, None, None] - 0.5, 0.3, (256, 4, 4, 1))
      >>> network = fit_feature_network(jax.random.key(0), images, labels, 2, epochs=5, width=4)
      >>> network.features(images).shape, network.predict(np.full((1, 4, 4, 1), 0.5)).tolist()
      ((256, 16), [1])

    Reference:
      The role that Inception's pool features have in Heusel et al. 2017 (arXiv 1706.08500) and in
      Kynkäänniemi et al. 2019 (arXiv 1904.06991); one-cycle schedule after Smith & Topin 2018 (arXiv
      1708.07120).
    """
    checks.rng_key("rng_key", rng_key)
    pixels, classes = _checked_training_set(images, labels, num_classes, validation_fraction)
    checks.positive_integer("epochs", epochs)
    checks.positive_integer("width", width)
    split_key, init_key, order_key = jax.random.split(rng_key, 3)

    num_held_out = max(1, round(len(pixels) * validation_fraction))
    order = np.asarray(jax.random.permutation(split_key, len(pixels)))
    held_out, fitted = order[:num_held_out], order[num_held_out:]
    if not len(fitted):
        raise ValueError(f"images holds {len(pixels)}: at least one to fit and one to hold out are needed.")
    module = ConvNet(num_classes, _channels(pixels.shape[1:], width), activation="leaky_relu")
    variables = jax.jit(module.init)(init_key, jnp.asarray(pixels[0]))
    variables = _fit(module, variables, order_key, pixels[fitted], classes[fitted], epochs)

    # The sentence needs the accuracy, which needs a network.
    network = FeatureNetwork(
        module, variables, pixels.shape[1:], num_classes, module.channels[-1], float("nan"), "unnamed"
    )
    accuracy = float(np.mean(network.predict(pixels[held_out]) == classes[held_out]))
    seed = "-".join(str(word) for word in np.asarray(jax.random.key_data(rng_key)).ravel())
    height, width_in_pixels, depth = pixels.shape[1:]
    name = (
        f"an independent convolutional classifier (channels {'-'.join(map(str, module.channels))}, "
        f"{module.channels[-1]} features), fitted by cross-entropy for {epochs} epochs to {len(fitted)} "
        f"images of {height}x{width_in_pixels}x{depth} in {num_classes} classes with key {seed}; accuracy "
        f"{accuracy:.1%} on {num_held_out} held-out images"
    )
    return FeatureNetwork(
        module, variables, pixels.shape[1:], num_classes, module.channels[-1], accuracy, name
    )


def fit_independent_classifier(images: ArrayLike, labels: ArrayLike) -> Callable[[ArrayLike], np.ndarray]:
    """A support vector machine for the evaluation of samples, independent of the model that drew them.

    scikit-learn's ``SVC`` with the kernel exp(-gamma ||x - x'||^2), gamma = 1 / (D Var x) ("scale"), C = 10.

    Args:
      images: ``(n, ...)`` training images, flattened inside.
      labels: ``(n,)`` integers, of two classes at least.

    Returns:
      ``predict(images (m, ...)) -> (m,)`` integer classes.

    Raises:
      ValueError: for non-finite images, labels of the wrong shape, or a single class.
      TypeError: for labels that are not integers.
      ImportError: if scikit-learn is missing.

    Example:
      >>> images = np.array([[-1.0], [-0.9], [0.9], [1.0]])
      >>> predict = fit_independent_classifier(images, np.array([0, 0, 1, 1]))
      >>> predict(np.array([[-0.8], [0.8]])).tolist()
      [0, 1]
    """
    points, classes = flattened_points("images", images), np.asarray(labels)
    checks.array("labels", labels)
    checks.one_label_each("labels", classes, len(points))
    if np.unique(classes).size < 2:
        raise ValueError(f"labels holds the single class {int(classes[0])}: two classes or more are needed.")
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(
            "fit_independent_classifier needs scikit-learn: pip install scikit-learn, or jaxebm[experiments]."
        ) from error
    machine = SVC(kernel="rbf", gamma="scale", C=10.0).fit(points, classes)
    image_shape = np.shape(images)[1:]

    def predict(new_images: ArrayLike) -> np.ndarray:
        checks.array("images", new_images)
        if np.shape(new_images)[1:] != image_shape:
            raise ValueError(
                f"images has shape {np.shape(new_images)}: (m, ...) with images of shape {image_shape} is "
                f"needed, as fitted."
            )
        return np.asarray(machine.predict(flattened_points("images", new_images)))

    return predict


def _channels(image_shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """One level for each halving down to one pixel: 8 gives 3 levels, 28 and 32 give 5."""
    num_levels = (max(image_shape[:2]) - 1).bit_length()
    return (*(width * min(2**level, 4) for level in range(num_levels - 1)), 4 * width)


def _fit(
    module: ConvNet, variables: Params, rng_key: Array, images: np.ndarray, labels: np.ndarray, epochs: int
) -> Params:
    batch_size = min(_BATCH_SIZE, len(images))
    steps_an_epoch = len(images) // batch_size
    schedule = optax.cosine_onecycle_schedule(epochs * steps_an_epoch, _PEAK_LEARNING_RATE)
    optimizer = optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)
    state = optimizer.init(variables)

    logits_of, max_shift = cast(LogitsFn, module.apply), _RELATIVE_SHIFT * max(images.shape[1:3])

    @jax.jit
    def update(
        rng_key: Array, variables: Params, state: Any, xs: Array, ys: Array
    ) -> tuple[Params, Any, Array]:
        shift_keys = jax.random.split(rng_key, len(xs))
        xs = jax.vmap(random_translation, (0, 0, None))(shift_keys, xs, max_shift)

        def loss(variables: Params) -> Array:
            logits = jax.vmap(logits_of, (None, 0), axis_name=BATCH_AXIS)(variables, xs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, ys).mean()

        value, gradient = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state, value

    for epoch in range(epochs):
        epoch_key, order_key = jax.random.split(jax.random.fold_in(rng_key, epoch))
        order = np.asarray(jax.random.permutation(order_key, len(images)))
        step_keys = jax.random.split(epoch_key, steps_an_epoch)
        losses = []
        for step in range(steps_an_epoch):
            rows = order[step * batch_size : (step + 1) * batch_size]
            variables, state, loss = update(step_keys[step], variables, state, images[rows], labels[rows])
            losses.append(loss)
        mean = float(np.mean(losses))
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"the cross-entropy of the feature network is {mean} in epoch {epoch + 1}."
            )
    return variables


@partial(jax.jit, static_argnames="module")
def _features_and_log_probabilities(module: ConvNet, variables: Params, xs: Array) -> tuple[Array, Array]:
    features = jax.vmap(submodule_input(module, "output"), (None, 0), axis_name=BATCH_AXIS)(variables, xs)
    logits = jax.vmap(cast(LogitsFn, module.apply), (None, 0), axis_name=BATCH_AXIS)(variables, xs)
    return features, jax.nn.log_softmax(logits)


def _checked_images(images: ArrayLike) -> np.ndarray:
    checks.floating("images", images)
    if np.ndim(images) != 4 or np.size(images) == 0:
        raise ValueError(
            f"images has shape {np.shape(images)}: non-empty (n, height, width, channels) is needed."
        )
    checks.finite("images", images)
    return np.asarray(images, np.float32)


def _checked_training_set(
    images: ArrayLike, labels: ArrayLike, num_classes: int, validation_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    pixels, classes = _checked_images(images), np.asarray(labels)
    checks.array("labels", labels)
    checks.one_label_each("labels", classes, len(pixels))
    checks.positive_integer("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: num_classes must be at least 2.")
    checks.integer_labels("labels", classes, num_classes)
    checks.number("validation_fraction", validation_fraction)
    checks.positive("validation_fraction", validation_fraction)
    if not validation_fraction < 1:
        raise ValueError(
            f"validation_fraction={validation_fraction!r}: validation_fraction must be between 0 and 1."
        )
    return pixels, classes.astype(np.int32)
