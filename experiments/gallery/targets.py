"""The targets of sampler_gallery.py, with the quantities that its samplers need."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.energies import (
    AnalyticTarget,
    double_well,
    funnel,
    funnel_transform,
    gaussian,
    gaussian_mixture,
    many_well,
    mueller_brown,
    random_mixture,
    reparametrise,
    ring,
    rosenbrock,
    skewed,
)
from jaxebm.evaluation import AnnealingPath, fit_annealing_path
from jaxebm.samplers import mala, warm_up
from jaxebm.types import Array, Params

__all__ = ["INTEGRATION_STEPS", "TARGETS", "Setting", "make_setting"]

INTEGRATION_STEPS = 10
"""Leapfrog steps of HMC."""


def conditioned() -> AnalyticTarget:
    """A normal with condition number 1000 along oblique axes."""
    axes = np.array([[0.8, -0.6], [0.6, 0.8]])
    covariance = axes * np.array([1.0, 1e-3]) @ axes.T
    return gaussian([1.0, -1.0], (covariance + covariance.T) / 2)


def straightened_funnel() -> AnalyticTarget:
    """The funnel in its non-centred coordinates, in which it is sampled and evaluated."""
    target = funnel(dimension=2, scale=3.0)
    transform = funnel_transform()

    def sample(rng_key: Array, params: Params, num_samples: int) -> Array:
        return jax.vmap(transform.inverse, (None, 0))(params, target.sample(rng_key, params, num_samples))

    return target._replace(
        energy=reparametrise(target.energy, transform),
        sample=sample,
        moments=lambda params: (jnp.zeros(2), jnp.eye(2)),
    )


TARGETS: Mapping[str, Callable[[], AnalyticTarget]] = {
    "gaussian, condition 1000": conditioned,
    "skewed": skewed,
    "double well": partial(double_well, barrier=3.0, tilt=1.0, dimension=2),
    "mixture of 3": partial(
        gaussian_mixture, [1.0, 2.0, 0.5], [[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]], [0.5, 0.8, 0.4]
    ),
    "ring": ring,
    "funnel": partial(funnel, dimension=2, scale=1.5),
    "funnel, non-centred": straightened_funnel,
    "Rosenbrock": rosenbrock,
    "Mueller-Brown": mueller_brown,
    "40 modes": partial(random_mixture, weights="uneven"),
    "many well, 32-d": many_well,
}
"""The targets by name. All are two-dimensional except the last."""


class Setting(NamedTuple):
    """A target with the quantities that its samplers need.

    Attributes:
      target: the target, with its exact answers.
      base: a normal with its mean and 1.5 times its covariance, the start of annealing.
      mean: exact, ``(d,)``.
      deviation: exact standard deviations, ``(d,)``.
      exact: exact samples, ``(m, d)``.
      start: the start of all chains, ``(d,)``.
      tuned: results of `warm_up`, by algorithm.
      bridge: MALA's steps and a schedule from base to target, of 65 temperatures.
      gradient_scale: root mean square of the entries of dE/dx under the target.
    """

    target: AnalyticTarget
    base: AnalyticTarget
    mean: np.ndarray
    deviation: np.ndarray
    exact: np.ndarray
    start: Array
    tuned: Mapping[str, Mapping[str, Any]]
    bridge: AnnealingPath
    gradient_scale: float


def make_setting(rng_key: Array, target: AnalyticTarget) -> Setting:
    """Draws exact samples and tunes MALA, HMC and NUTS."""
    keys = jax.random.split(rng_key, 5)
    exact = target.sample(keys[0], target.params, 20_000)
    mean, covariance = (np.asarray(value, np.float64) for value in target.moments(target.params))
    start = exact[0]
    options = {
        "mala": {},
        "hmc": {"num_integration_steps": INTEGRATION_STEPS},
        "nuts": {"max_num_doublings": 6},
    }
    tuned = {
        name: warm_up(key, target.target, start, algorithm=name, num_steps=1000, **more)[0]  # pyright: ignore[reportArgumentType]
        for key, (name, more) in zip(keys[1:], options.items(), strict=False)
    }
    base = gaussian(mean, 1.5 * covariance)
    bridge = fit_annealing_path(
        keys[4], target.energy, target.params, base, mala, 65,
        step_size=tuned["mala"]["step_size"], target_acceptance_rate=0.574,
    )  # fmt: skip
    gradients = jax.jit(jax.vmap(target.score))(exact)
    return Setting(
        target=target,
        base=base,
        mean=mean,
        deviation=np.sqrt(np.diag(covariance)),
        exact=np.asarray(exact),
        start=start,
        tuned=tuned,
        bridge=bridge,
        gradient_scale=float(np.sqrt(np.mean(np.square(np.asarray(gradients, np.float64))))),
    )
