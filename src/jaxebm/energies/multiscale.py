"""One image seen at several resolutions, with an energy for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array, Params

__all__ = ["average_pool", "multiscale_energy"]


def average_pool(image: Array, factor: int) -> Array:
    r"""Shrinks an image by a whole number: each pixel is the mean of a block of the old ones.

    .. math:: y_{ij} = \frac{1}{f^2} \sum_{a, b < f} x_{fi + a,\, fj + b}

    Args:
      image: ``(H, W, C)``.
      factor: f, an integer of at least 1 that divides H and W; 1 returns the image.

    Returns:
      ``(H / f, W / f, C)``.

    Raises:
      ValueError: if the factor is not such an integer, or ``image`` not of rank three or empty.
      TypeError: if ``image`` is no array of real numbers.

    Example:
      >>> average_pool(jnp.arange(8.0).reshape(2, 4, 1), 2)[:, :, 0].tolist()
      [[2.5, 4.5]]
    """
    checks.positive_integer("factor", factor)
    shape = jnp.shape(image)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"image has shape {shape}: one image (H, W, C) is needed; batch with jax.vmap.")
    checks.array("image", image)
    height, width, channels = shape
    if height % factor or width % factor:
        raise ValueError(
            f"factor={factor}: an image of {height} x {width} pixels does not part into blocks of {factor} x "
            f"{factor}; the factor must divide both sides."
        )
    blocks = jnp.reshape(image, (height // factor, factor, width // factor, factor, channels))
    return jnp.mean(blocks, axis=(1, 3))


def multiscale_energy(
    energies: Callable[..., Array] | Sequence[Callable[..., Array]], scales: Sequence[int] = (1, 2, 4)
) -> Callable[..., Array]:
    r"""Returns the sum of energies of an image at several resolutions: the product of their models.

    .. math:: E(x) = \sum_s E_s(\mathrm{pool}_s(x))

    The coarse terms shape the whole and see it at once, the fine ones its texture. Logits may be summed so,
    too: ``marginal_energy(multiscale_energy(module.apply))`` is a classifier of images at several
    resolutions.

    Args:
      energies: E_s, ``(params, image) -> ()``, of one image: one function for all scales, as ``module.apply``
        (each scale has parameters of its own all the same), or as many as scales.
      scales: the factors s by which the image is shrunk, ``average_pool``'s; 1 is the image itself.

    Returns:
      ``energy(params, image) -> ()`` with ``params`` a tuple, an entry for each scale; what else it is called
      with, as a label, each term gets. Equal for equal arguments, fit to be a static argument of ``jax.jit``.

    Raises:
      ValueError: if there are no scales, a scale is no positive integer, the numbers of energies and scales
        differ or, when it is called, if params has another length or a scale does not divide the image.
      TypeError: if an energy is not callable.

    Example:
      >>> mean = lambda weight, image: weight * jnp.mean(image)
      >>> energy = multiscale_energy(mean, scales=(1, 2))
      >>> float(energy((1.0, 10.0), jnp.ones((4, 4, 1))))
      11.0

      Parameters are made one scale at a time:

      >>> import jax
      >>> from jaxebm.energies.networks import MLP
      >>> module, image = MLP(num_outputs=None, widths=(8,)), jnp.zeros((8, 8, 1))
      >>> energy = multiscale_energy(module.apply, scales=(1, 2))
      >>> keys = jax.random.split(jax.random.key(0))
      >>> params = tuple(
      ...     module.init(key, average_pool(image, scale)) for key, scale in zip(keys, (1, 2)))
      >>> energy(params, image).shape
      ()

    Reference:
      Du, Li, Tenenbaum & Mordatch 2021, Improved contrastive divergence training of energy based models
      (arXiv:2012.01316), compositional multi-scale energies.
    """
    checks.instance("scales", scales, (tuple, list), "scales=(1, 2, 4), for example.")
    if not callable(energies):
        checks.instance("energies", energies, (tuple, list), "One function serves all scales.")
    scales = tuple(scales)
    if not scales:
        raise ValueError("scales=(): at least one scale is needed; 1 is the image itself.")
    for scale in scales:
        checks.positive_integer("scales", scale)
    terms = (energies,) * len(scales) if callable(energies) else tuple(energies)
    if len(terms) != len(scales):
        raise ValueError(
            f"energies has {len(terms)} entries for scales={scales!r}: one for each scale is needed, or one "
            f"function for all."
        )
    for index, term in enumerate(terms):
        _check_term(f"energies[{index}]", term)
    return _MultiscaleEnergy(terms, scales)


def _check_term(name: str, term: Any) -> None:
    """Raises unless ``term`` takes params and image, or, as a joint energy, a label, too."""
    try:
        checks.function(name, term, "params", "image", "label")
    except TypeError:
        checks.function(name, term, "params", "image")


@dataclass(frozen=True)
class _MultiscaleEnergy:
    energies: tuple[Callable[..., Array], ...]
    scales: tuple[int, ...]

    def __call__(self, params: Params, image: Array, /, *others: Any) -> Array:
        if not isinstance(params, tuple | list) or len(params) != len(self.scales):
            a_list = isinstance(params, tuple | list)
            found = f"{len(params)} entries" if a_list else f"a {type(params).__name__}"
            raise ValueError(
                f"params is {found}: a tuple of {len(self.scales)} is needed, one for each scale."
            )
        terms = [
            energy(part, average_pool(image, scale), *others)
            for energy, part, scale in zip(self.energies, params, self.scales, strict=True)
        ]
        return sum(terms[1:], start=terms[0])
