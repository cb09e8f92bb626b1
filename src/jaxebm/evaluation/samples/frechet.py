r"""Fréchet distance between sets of features, and the inception score of samples.

The Fréchet distance and the inception-type score here are computed from the features and probabilities that
are handed in, usually those of an *independent classifier* (`jaxebm.evaluation.samples.features`). They rank
models on one data set, and are **not comparable with published FID and IS**, which mean one particular
network, trained on ImageNet. ``standard_fidelity`` computes these by torch-fidelity, where it is installed
with its weights on disk.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxebm import checks
from jaxebm.evaluation.samples.scale import extreme_unit

__all__ = [
    "FidelityNotAvailableError",
    "InceptionScore",
    "StandardFidelity",
    "frechet_distance",
    "inception_score",
    "standard_fidelity",
]


class InceptionScore(NamedTuple):
    """``inception_score`` over the parts of a set of samples.

    Attributes:
      mean: mean over the parts, in [1, K].
      standard_deviation: over the parts (divided by their number), 0 for a single one.
    """

    mean: float
    standard_deviation: float


class StandardFidelity(NamedTuple):
    """Results of torch-fidelity; comparable with published numbers of the same sample counts.

    Attributes:
      frechet_inception_distance: FID, at least 0, lower is better.
      inception_score: IS, mean over parts, higher is better.
      inception_score_standard_deviation: over the parts.
    """

    frechet_inception_distance: float
    inception_score: float
    inception_score_standard_deviation: float


class FidelityNotAvailableError(RuntimeError):
    """torch-fidelity or the weights of its network are not on this machine; nothing is ever downloaded."""


class _WeightsNotFoundError(FidelityNotAvailableError, FileNotFoundError):
    """A file of weights that was asked for by name."""


def _features(name: str, features: ArrayLike) -> np.ndarray:
    checks.array(name, features)
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: (n, D) is needed, with n >= 2 examples and D >= 1 features."
        )
    checks.finite(name, array)
    return np.asarray(array, np.float64)


def _mean_and_factor(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and R with R^T R the unbiased covariance: QR of the points, which squares nothing."""
    mean = points.mean(axis=0)
    factor = np.linalg.qr(points - mean, mode="r") / np.sqrt(points.shape[0] - 1)
    return mean, factor


def frechet_distance(real_features: ArrayLike, fake_features: ArrayLike) -> float:
    r"""Squared Fréchet (Wasserstein-2) distance between the Gaussians of two sets of features.

    d = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^{1/2} S_2 S_1^{1/2})^{1/2}, with means m and unbiased
    covariances S. With S = R^T R from a QR decomposition of the centred features, the last trace is the sum
    of the singular values of R_1 R_2^T, the roots of the eigenvalues of the symmetric product: no complex
    square root of a matrix that is not symmetric, and no regularisation where covariances are singular.

    The estimate is biased upward by about 1/n, the more the larger D: compare only at equal n, beside the
    distance of held-out data at the same n. Above D examples are needed for a covariance of full rank. It
    is in the features handed in, and no FID unless these are Inception's.

    Args:
      real_features: ``(n, D)``, any real dtype; computed in float64.
      fake_features: ``(m, D)``.

    Returns:
      A float, at least 0, in units of the features squared; 0 for equal sets. Time O((n + m) D^2 + D^3).

    Raises:
      ValueError: for fewer than two examples, non-finite entries, or different D.

    Example:
      >>> square = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> round(frechet_distance(square, square + 3.0), 6)  # moved only: the squared shift
      18.0

    Reference:
      Heusel et al. 2017 (arXiv 1706.08500), equation 6; Dowson & Landau 1982 for the closed form; Chong &
      Forsyth 2020 (arXiv 1911.07023) for the bias.
    """
    real, fake = _features("real_features", real_features), _features("fake_features", fake_features)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real_features has {real.shape[1]} features and fake_features {fake.shape[1]}: they must be "
            f"equal."
        )
    unit = extreme_unit(real, fake)
    real, fake = real / unit, fake / unit
    (real_mean, real_factor), (fake_mean, fake_factor) = _mean_and_factor(real), _mean_and_factor(fake)
    overlap = np.linalg.svd(real_factor @ fake_factor.T, compute_uv=False).sum()
    distance = (
        np.sum((real_mean - fake_mean) ** 2)
        + np.sum(real_factor**2)  # tr S = |R|^2
        + np.sum(fake_factor**2)
        - 2.0 * overlap
    )
    return float(max(distance, 0.0)) * unit * unit  # equal sets give -1e-14 or so by rounding


def inception_score(log_probabilities: ArrayLike, num_splits: int = 10) -> InceptionScore:
    r"""Inception score: confidence of a classifier on each sample, and how evenly samples cover its classes.

    score = exp( E_x KL(p(y|x) || p(y)) ), p(y) = E_x p(y|x), computed in each of ``num_splits`` parts. It
    lies in [1, K]: 1 where all samples look alike to the classifier, K where each is of one sure class and
    classes are equally frequent. It sees neither memorised samples nor variety within a class. It is the
    score of the classifier handed in, and no IS unless that is Inception's.

    Args:
      log_probabilities: ``(n, K)``, log p(y|x) of each sample, in nats; -inf is probability 0.
      num_splits: number of parts, at most n / 2, of equal size within one; examples are spread over them by a
        fixed permutation, so that an order by class does no harm. More parts give smaller ones, and less.

    Returns:
      ``InceptionScore(mean, standard_deviation)`` over the parts.

    Raises:
      ValueError: if rows are no log-probabilities that sum to 1 (within 1e-3), or there are fewer than two
        examples a part.
      TypeError: if they are no real numbers.

    Example:
      >>> sure_and_even = np.log(np.full((3, 3), 0.001) + 0.997 * np.eye(3))
      >>> round(inception_score(sure_and_even, num_splits=1).mean, 2)
      2.95

    Reference:
      Salimans et al. 2016 (arXiv 1606.03498), section 4; Barratt & Sharma 2018 (arXiv 1801.01973) for what it
      does not see.
    """
    checks.positive_integer("num_splits", num_splits)
    checks.array("log_probabilities", log_probabilities)
    array = np.asarray(log_probabilities, np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"log_probabilities has shape {array.shape}: non-empty (n, K) is needed.")
    checks.finite("log_probabilities", array[~np.isneginf(array)])
    with np.errstate(over="ignore"):  # logits passed by mistake
        totals = np.exp(array).sum(axis=1)
    if not np.abs(totals - 1.0).max() <= 1e-3:
        raise ValueError(
            f"log_probabilities has rows whose probabilities sum to {totals.min():g}..{totals.max():g}: each "
            f"must sum to 1 (apply log_softmax to logits)."
        )
    if array.shape[0] < 2 * num_splits:
        raise ValueError(
            f"log_probabilities holds {array.shape[0]} examples for num_splits={num_splits}: at least two a "
            f"part are needed."
        )
    mixed = array[np.random.default_rng(0).permutation(array.shape[0])]
    scores = []
    for part in np.array_split(mixed, num_splits):
        probabilities = np.exp(part)
        with np.errstate(divide="ignore", invalid="ignore"):
            marginal = np.log(probabilities.mean(axis=0))
            terms = probabilities * (part - marginal[None, :])
        # 0 log 0 = 0; a probability that is 0 in float64 adds less than 1e-300.
        divergence = np.sum(np.where(probabilities > 0, terms, 0.0), axis=1)
        scores.append(np.exp(divergence.mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def standard_fidelity(
    images: ArrayLike, reference: ArrayLike, *, weights_path: str | Path | None = None, num_splits: int = 10
) -> StandardFidelity:
    """FID and inception score as in the literature, computed by torch-fidelity.

    They run where torch-fidelity is installed *and* the weights of its Inception network are on disk; nothing
    is downloaded. Published FIDs mean 50,000 samples and an RGB data set; grey images are repeated to three
    channels, and any size is resized by torch-fidelity to 299 x 299.

    Args:
      images: uint8 ``(n, H, W, C)`` samples in 0..255, C = 1 or 3.
      reference: uint8 ``(m, H', W', C')`` images of the data, C' = 1 or 3.
      weights_path: file of the network's weights; ``None`` looks where torch-fidelity would have put it, in
        the folder ``checkpoints`` of torch's hub.
      num_splits: parts of the inception score.

    Returns:
      A ``StandardFidelity``.

    Raises:
      FidelityNotAvailableError: if torch-fidelity or the weights are missing; one line says which. For a
        weights_path that is no file it is a FileNotFoundError, too.
      TypeError: if either set is not uint8.
      ValueError: if either set is not (n, H, W, 1 or 3), with n >= 2.

    Example:
      >>> images = np.zeros((2, 8, 8, 1), np.uint8)
      >>> try:
      ...     standard_fidelity(images, images, weights_path="weights.pth").inception_score
      ... except FidelityNotAvailableError as error:
      ...     print(error)
      weights_path='weights.pth': weights.pth is not on disk; ...

    Reference:
      Obukhov et al. 2020, torch-fidelity; Heusel et al. 2017 (arXiv 1706.08500); Salimans et al. 2016 (arXiv
      1606.03498).
    """
    checks.positive_integer("num_splits", num_splits)
    if weights_path is not None:
        checks.instance("weights_path", weights_path, (str, Path))
    sets = [_rgb_images("images", images), _rgb_images("reference", reference)]
    if weights_path is not None and not Path(weights_path).is_file():
        raise _WeightsNotFoundError(
            f"weights_path={str(weights_path)!r}: {weights_path} is not on disk; standard FID and IS need "
            f"the weights of torch-fidelity's Inception network."
        )
    for package in ("torch", "torch_fidelity"):
        if importlib.util.find_spec(package) is None:
            raise FidelityNotAvailableError(
                f"standard FID and IS need the package {package.replace('_', '-')}, which is not installed."
            )
    # By name, because type checkers and users without the extra have neither package.
    torch, fidelity = importlib.import_module("torch"), importlib.import_module("torch_fidelity")
    weights = Path(weights_path) if weights_path is not None else _default_weights(torch)
    if not weights.is_file():
        raise FidelityNotAvailableError(
            f"standard FID and IS need the weights of torch-fidelity's Inception network, and {weights} is "
            f"not on disk."
        )

    class Images(torch.utils.data.Dataset):
        def __init__(self, pixels: np.ndarray):
            self.pixels = pixels

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(np.ascontiguousarray(self.pixels[index].transpose(2, 0, 1)))

    found = fidelity.calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        fid=True,
        isc=True,
        isc_splits=num_splits,
        feature_extractor_weights_path=str(weights),
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,  # no worker processes: a fork under JAX's threads may hang
        verbose=False,
    )
    return StandardFidelity(
        float(found["frechet_inception_distance"]),
        float(found["inception_score_mean"]),
        float(found["inception_score_std"]),
    )


def _rgb_images(name: str, images: ArrayLike) -> np.ndarray:
    checks.array(name, images)
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} has dtype {array.dtype}: uint8 pixels 0..255 are needed.")
    if array.ndim != 4 or array.shape[0] < 2 or array.size == 0 or array.shape[3] not in (1, 3):
        raise ValueError(
            f"{name} has shape {array.shape}: (n, height, width, channels) is needed, with n >= 2 and 1 or 3 "
            f"channels."
        )
    return np.repeat(array, 3, axis=3) if array.shape[3] == 1 else array


def _default_weights(torch: Any) -> Path:
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(module.URL_INCEPTION_V3).name
