"""The independent classifiers: they learn, repeat, judge in any number, and the network says what it is."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxebm.evaluation.samples import features
from jaxebm.evaluation.samples.features import fit_feature_network, fit_independent_classifier
from jaxebm.evaluation.samples.generation import class_agreement

pytestmark = pytest.mark.usefixtures("cheap_compilation")
KEY = jax.random.key(3)


def bars(n, seed, size=6):
    """Class 0 has a bright row, 1 a bright column, 2 a bright diagonal; noise all over."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    images = rng.normal(-0.6, 0.25, (n, size, size, 1))
    place = rng.integers(1, size - 1, n)
    for image, label, at in zip(images, labels, place, strict=True):
        if label == 0:
            image[at] += 1.2
        elif label == 1:
            image[:, at] += 1.2
        else:
            image[np.arange(size), np.arange(size)] += 1.2
    return images.astype(np.float32), labels


@cache
def fitted():
    images, labels = bars(600, 0)
    return fit_feature_network(KEY, images, labels, 3, epochs=6, width=6)


def test_it_learns_and_its_own_accuracy_is_honest():
    network = fitted()
    images, labels = bars(800, 1)
    accuracy = np.mean(network.predict(images) == labels)
    assert accuracy > 0.9
    # The 60 held-out images are new to it as well: equal within 4 standard errors.
    assert abs(network.validation_accuracy - accuracy) < 4 * np.sqrt(0.1 * 0.9 / 60)


def test_the_name_says_what_it_is():
    network = fitted()
    for fact in (
        "independent",
        "channels 6-12-24, 24 features",
        "6 epochs to 540 images of 6x6x1 in 3 classes",
        "key 0-3",
        f"accuracy {network.validation_accuracy:.1%} on 60 held-out images",
    ):
        assert fact in network.name
    assert "\n" not in network.name


def test_features_are_the_input_of_the_last_layer(monkeypatch):
    """logits = W features + b, with the last layer's own weights, whatever the number of images."""
    network = fitted()
    images, _ = bars(7, 2)
    found, log_probabilities = network.features(images), network.log_probabilities(images)
    assert found.shape == (7, 24)
    last = network.variables["params"]["output"]
    logits = found @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(log_probabilities, jax.nn.log_softmax(logits), atol=1e-4)
    np.testing.assert_allclose(np.exp(log_probabilities).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(network.predict(images), logits.argmax(1))
    monkeypatch.setattr(features, "_CHUNK", 3)  # three chunks, the last of a single image
    np.testing.assert_allclose(network.features(images), found, rtol=1e-4, atol=1e-5)


def test_one_program_judges_any_number_of_images():
    network = fitted()
    network.features(bars(3, 3)[0])
    programs = features._features_and_log_probabilities._cache_size()
    for n in (1, 40, 501):
        assert network.features(bars(n, 3)[0]).shape == (n, 24)
    assert features._features_and_log_probabilities._cache_size() == programs


def test_the_same_key_gives_the_same_network():
    images, labels = bars(80, 4)
    fit = [fit_feature_network(jax.random.key(k), images, labels, 3, epochs=1, width=2) for k in (0, 0)]
    probe = bars(5, 5)[0]
    np.testing.assert_array_equal(fit[0].features(probe), fit[1].features(probe))
    assert fit[0].name == fit[1].name


@pytest.mark.parametrize(
    ("size", "levels"), [(4, (8, 32)), (8, (8, 16, 32)), (28, (8, 16, 32, 32, 32)), (32, (8, 16, 32, 32, 32))]
)
def test_one_pixel_is_left_so_features_do_not_depend_on_the_size(size, levels):
    """Each level halves the side, rounding up, down to 1."""
    assert features._channels((size, size - 1, 1), 8) == levels
    side = size
    for _ in levels:
        side = -(-side // 2)
    assert side == 1


def test_bad_input_is_named():
    images, labels = bars(80, 6)
    with pytest.raises(ValueError, match=r"images has shape \(80, 36\)"):
        fit_feature_network(KEY, images.reshape(80, 36), labels, 3)
    with pytest.raises(TypeError, match="images has dtype uint8"):
        fit_feature_network(KEY, images.astype(np.uint8), labels, 3)
    with pytest.raises(ValueError, match="images holds 1 non-finite"):
        fit_feature_network(
            KEY, np.where(np.arange(80 * 36).reshape(images.shape) == 5, np.nan, images), labels, 3
        )
    with pytest.raises(ValueError, match=r"labels has shape \(79,\)"):
        fit_feature_network(KEY, images, labels[:79], 3)
    with pytest.raises(ValueError, match=r"labels spans 0\.\.2"):
        fit_feature_network(KEY, images, labels, 2)
    with pytest.raises(TypeError, match="labels has dtype float"):
        fit_feature_network(KEY, images, labels.astype(np.float32), 3)
    with pytest.raises(ValueError, match="num_classes=1"):
        fit_feature_network(KEY, images, np.zeros(80, int), 1)
    with pytest.raises(ValueError, match="images holds 1: at least one to fit and one to hold out"):
        fit_feature_network(KEY, images[:1], labels[:1], 3)
    with pytest.raises(ValueError, match=r"validation_fraction=1\.0"):
        fit_feature_network(KEY, images, labels, 3, validation_fraction=1.0)
    with pytest.raises(ValueError, match="epochs=0"):
        fit_feature_network(KEY, images, labels, 3, epochs=0)
    with pytest.raises(TypeError, match="rng_key has dtype uint32"):
        fit_feature_network(jax.random.PRNGKey(0), images, labels, 3)
    with pytest.raises(ValueError, match=r"images has shape \(2, 8, 8, 1\).*\(6, 6, 1\)"):
        fitted().features(jnp.zeros((2, 8, 8, 1)))


def test_independent_classifier_learns_what_no_line_can_and_checks_its_input():
    rng = np.random.default_rng(9)
    images = rng.uniform(-1, 1, (400, 1, 2, 1))
    labels = (images[:, 0, 0, 0] * images[:, 0, 1, 0] > 0).astype(int) + 3  # Exclusive or, classes 3 and 4.
    predict = fit_independent_classifier(images[:300], labels[:300])
    predicted = predict(images[300:])
    assert predicted.shape == (100,)
    assert class_agreement(predicted, labels[300:]) > 0.9
    with pytest.raises(ValueError, match=r"images of shape \(1, 2, 1\)"):
        predict(images.reshape(400, 2))
    with pytest.raises(ValueError, match="single class 3"):
        fit_independent_classifier(images, np.full(400, 3))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\)"):
        fit_independent_classifier(images, labels[:3])
    with pytest.raises(TypeError, match="labels has dtype float64"):
        fit_independent_classifier(images, labels.astype(float))


def test_missing_scikit_learn_is_said(hide_package):
    hide_package("sklearn")
    with pytest.raises(ImportError, match="fit_independent_classifier needs scikit-learn"):
        fit_independent_classifier(np.zeros((2, 1)), np.array([0, 1]))
