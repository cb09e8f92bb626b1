"""A trained model as an object: its densities, classes and samples, in the pixels that its user gave."""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.data import Dataset, ImageSpace
from jaxebm.energies import joint_energy, marginal_energy
from jaxebm.objectives import SamplerState, ignore_label
from jaxebm.recipes.build import make_network
from jaxebm.recipes.config import Config
from jaxebm.recipes.sampler import make_kernel, noise_of
from jaxebm.report.chains import advance, advance_along, start_chains
from jaxebm.samplers import Initial
from jaxebm.training import TrainState
from jaxebm.types import Array, EnergyFn, LogitsFn, MakeKernel, Params

__all__ = ["DESCRIPTION", "LogDensityBounds", "Model", "describe", "model_of"]

DESCRIPTION = "model.json"
"""What a model must know of its images without the data set."""
BATCH = 1024
"""Images a compiled call."""


class LogDensityBounds(NamedTuple):
    """Bounds of log p(x) in nats, ``(n,)`` each, from the interval that the evaluation found for log Z.

    Attributes:
      low: with the upper bound of log Z.
      high: with its lower bound.
    """

    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained JEM: a classifier and an energy of images, E(x) = -logsumexp f(x), E(x, y) = -f(x)[y].

    Its methods take and return images in raw pixels, as the data set holds them (``space.value_range``);
    ``energy`` and ``logits`` are the functions of one image in [-1, 1] that the rest of the package takes.

    Attributes:
      config: of the run.
      params: the averaged weights.
      space: shape, pixel range and class names of its images.
      initial: where fresh chains start, in [-1, 1].
      step: updates that it was trained for.
      log_partition: bounds of log Z (low, high) over the box of the pixels, from the run's evaluation; None
        where there was none.

    Example:
      See `jaxebm.recipes.load`.
    """

    config: Config
    params: Params
    space: ImageSpace
    initial: Initial
    step: int
    log_partition: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return (
            f"Model(recipe={self.config.recipe!r}, network={self.config.network!r}, "
            f"dataset={self.config.dataset!r}, step={self.step})"
        )

    @cached_property
    def network(self) -> Any:
        """The Flax module, from one image in [-1, 1] to its logits."""
        return make_network(self.config, self.space.num_classes)

    @property
    def logits(self) -> LogitsFn:
        """f(params, x) of one image in [-1, 1], ``(K,)``; one logit where the model knows no classes."""
        return self.network.apply

    @property
    def energy(self) -> EnergyFn:
        """E(params, x) = -logsumexp f(x) of one image in [-1, 1]."""
        return marginal_energy(self.logits)

    @property
    def kernel(self) -> MakeKernel:
        """The sampler that trained it, for any target."""
        return make_kernel(self.config)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers."""
        return self.space.class_names

    @property
    def knows_classes(self) -> bool:
        """Whether it tells classes apart."""
        return self.config.task != "unconditional"

    @overload
    def log_density(self, images: Any, *, normalised: Literal[False] = False) -> np.ndarray: ...

    @overload
    def log_density(self, images: Any, *, normalised: Literal[True]) -> LogDensityBounds: ...

    def log_density(self, images: Any, *, normalised: bool = False) -> np.ndarray | LogDensityBounds:
        """Returns log p(x) of images, up to a constant or within bounds.

        log p(x) = -E(r(x)) - log Z + d log(2 / (high - low)), r(x) the pixels rescaled to [-1, 1], d their
        number; without ``normalised`` -E(r(x)) alone.

        Args:
          images: raw pixels, ``(n, H, W, C)``, or ``(n, H, W)`` where C is 1.
          normalised: whether to normalise, by the interval for log Z that the run's evaluation stored.

        Returns:
          Nats, ``(n,)``; with ``normalised`` a `LogDensityBounds`, a density in raw pixels over the box of
          their range.

        Raises:
          ValueError: if the images do not fit, or no interval was stored.
        """
        found = self._over_batches(self._log_densities, images)
        if not normalised:
            return found
        if self.log_partition is None:
            raise ValueError(
                "normalised=True needs bounds of log Z, and the run has none: evaluate it with "
                "evaluation.likelihood_steps of at least 2."
            )
        low, high = self.space.value_range
        scale = math.prod(self.space.image_shape) * math.log(2.0 / (high - low))
        least, greatest = self.log_partition
        return LogDensityBounds(found - greatest + scale, found - least + scale)

    def class_probabilities(self, images: Any) -> np.ndarray:
        """Returns p(y | x) = softmax f(x) of images, ``(n, K)``.

        Args:
          images: raw pixels, ``(n, H, W, C)``, or ``(n, H, W)`` where C is 1.

        Raises:
          ValueError: if the images do not fit, or the model knows no classes.
        """
        self._need_classes("class_probabilities")
        return self._over_batches(self._probabilities, images)

    def score(self, images: Any) -> np.ndarray:
        """Returns d log p(x) / dx in raw pixels, of the shape of ``images`` with its channels.

        Args:
          images: raw pixels, ``(n, H, W, C)``, or ``(n, H, W)`` where C is 1.

        Raises:
          ValueError: if the images do not fit.
        """
        low, high = self.space.value_range
        return self._over_batches(self._scores, images) * np.float32(2.0 / (high - low))

    def sample(
        self,
        rng_key: Array,
        num_samples: int,
        *,
        label: int | Any = None,
        num_steps: int = 100,
    ) -> np.ndarray:
        """Draws images: fresh chains from the initial distribution, by the sampler that trained the model.

        Chains run on E(x), or on E(x, y) of the class asked for. Chains of finite length are approximate
        samples; the run's card says how good they are after which number of steps. A model that is told noise
        levels draws from noise through ``num_steps`` levels, or in as many steps through the levels that it
        learnt (recipe ``drl``), at random classes where none is asked for.

        Args:
          rng_key: one key.
          num_samples: n.
          label: a class number for all, or ``(n,)`` of them; None draws from p(x).
          num_steps: of the sampler.

        Returns:
          Raw pixels, float32 ``(n, H, W, C)``.

        Raises:
          ValueError: for a class that there is not, or a number that is not an integer of at least 1; with
            noise levels ``num_steps`` must be at least 2, or reach every level.
        """
        checks.positive_integer("num_samples", num_samples)
        least = self.network.path.least_steps if self.config.uses_levels else 1
        checks.integer("num_steps", num_steps, least)
        key_label, key_start, key_chain = jax.random.split(rng_key, 3)
        if label is None:
            num_classes = self.space.num_classes if self.knows_classes else 1
            labels = jax.random.randint(key_label, (num_samples,), 0, num_classes)
        else:
            self._need_classes("label")
            if np.shape(label) not in ((), (num_samples,)):
                raise ValueError(f"label has shape {np.shape(label)}: () or ({num_samples},) is needed.")
            checks.integer_labels("label", label, self.space.num_classes)
            labels = jnp.broadcast_to(jnp.asarray(label, jnp.int32), (num_samples,))
        starts = start_chains(key_start, self.initial, labels)
        run = self._joint_chains if label is not None or self.config.uses_levels else self._marginal_chains
        drawn = run(key_chain, params=self.params, positions=starts, labels=labels, num_steps=num_steps)
        return np.asarray(self.space.unscale(drawn))

    # --- compiled once a model ---

    @cached_property
    def _log_densities(self) -> Any:
        return jax.jit(jax.vmap(lambda params, x: -self.energy(params, x), (None, 0)))

    @cached_property
    def _probabilities(self) -> Any:
        return jax.jit(jax.vmap(lambda params, x: jax.nn.softmax(self.logits(params, x)), (None, 0)))

    @cached_property
    def _scores(self) -> Any:
        score = jax.grad(lambda params, x: -self.energy(params, x), argnums=1)
        return jax.jit(jax.vmap(score, (None, 0)))

    @cached_property
    def _marginal_chains(self) -> Any:
        return advance(self.kernel, ignore_label(self.energy))

    @cached_property
    def _joint_chains(self) -> Any:
        if self.config.uses_levels:
            return advance_along(self.network.path)
        return advance(self.kernel, joint_energy(self.logits))

    def _over_batches(self, function: Any, images: Any) -> np.ndarray:
        xs = self._rescaled(images)
        return np.concatenate(
            [np.asarray(function(self.params, xs[at : at + BATCH])) for at in range(0, len(xs), BATCH)]
        )

    def _rescaled(self, images: Any) -> np.ndarray:
        images, shape = np.asarray(images), self.space.image_shape
        if shape[2] == 1 and images.shape[1:] == shape[:2]:
            images = images[..., None]
        if images.shape[1:] != shape or not len(images):
            raise ValueError(
                f"images has shape {images.shape}: (n, {', '.join(map(str, shape))}) with at least one image "
                "is needed."
            )
        low, high = self.space.value_range
        if not (np.issubdtype(images.dtype, np.number) and np.isfinite(images).all()):
            raise ValueError(f"images must be finite numbers in {low:g} to {high:g}, raw pixels.")
        least, greatest, width = float(images.min()), float(images.max()), high - low
        if least < low - 0.5 * width or greatest > high + 0.5 * width or 0 < greatest - least < 0.01 * width:
            warnings.warn(
                f"images span {least:g} to {greatest:g}, and the model was trained on raw pixels of "
                f"{low:g} to {high:g}: check their scale.",
                stacklevel=4,
            )
        return np.asarray(self.space.rescale(images), np.float32)

    def _need_classes(self, name: str) -> None:
        if not self.knows_classes:
            raise ValueError(f"{name}: the model was trained with task=unconditional and knows no classes.")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Returns what a run stores about its images, as plain JSON values."""
    return {"format": 1, "space": dataset.space.as_json()}


def model_of(config: Config, dataset: Dataset, state: TrainState) -> Model:
    """Returns the model of a state, on this host, right after training."""
    kept: SamplerState = state.sampler_state
    initial = noise_of(config, dataset.image_shape) if kept.initial is None else kept.initial
    params, initial = jax.tree.map(jnp.asarray, (state.ema_params, initial))
    return Model(config, params, dataset.space, initial, int(state.step))
