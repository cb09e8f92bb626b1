"""The model of density_2d.py: its energy, the kernel of its chains, its samples, its interval for log Z."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxebm.data import ToyDensity
from jaxebm.energies import MLP, gaussian_log_reference, tilt
from jaxebm.evaluation import (
    fit_annealing_path,
    grid,
    kl_divergence_on_grid,
    log_density_on_grid,
    log_partition_interval,
    restrict_to_box,
)
from jaxebm.samplers import Initial, UniformInitial, hmc, mala, sample
from jaxebm.types import Array, EnergyFn, Kernel, Params, Target

__all__ = [
    "OnGrid",
    "bound_log_partition",
    "draw_samples",
    "local_and_global",
    "make_energy",
    "make_initial",
    "on_grid",
    "window",
]


def window(density: ToyDensity) -> tuple[float, float]:
    """The square for Z and for global proposals: that of the density, with a margin for the model."""
    low, high = density.bounds
    return 1.25 * low, 1.25 * high


def make_energy(
    density: ToyDensity, widths: tuple[int, ...], activation: str, input_gain: float = 1.0
) -> tuple[Any, EnergyFn]:
    """Returns the network and its energy, tilted by N(0, (side / 2)^2 I) so that Z is always finite.

    Args:
      density: the density, whose standard deviation is about a quarter of the side of its window.
      widths: of the hidden layers.
      activation: of the hidden layers.
      input_gain: what standardised inputs are multiplied by: above 1, fine detail is learnt sooner.
    """
    half = density.bounds[1]
    network = MLP(None, widths=widths, activation=activation)
    unit = 0.5 * half / input_gain

    def scaled(params: Params, x: Array) -> Array:
        return cast(Array, network.apply(params, x / unit))

    return network, tilt(scaled, gaussian_log_reference(jnp.zeros(2), half))


def local_and_global(target: Target, step_size: Array | float, low: float, high: float) -> Kernel:
    """One MALA step, then one uniform proposal on [low, high]^2.

    Each leaves exp(-E) invariant, so both together do, too.

    Args:
      target: position -> energy.
      step_size: of MALA.
      low: lower edge of the square.
      high: upper edge.

    Returns:
      A kernel whose state is MALA's.

    Reference:
      Tierney 1994, "Markov chains for exploring posterior distributions", on cycles of kernels and on
      independence chains.
    """

    def anywhere(rng_key: Array) -> Array:
        return jax.random.uniform(rng_key, (2,), minval=low, maxval=high)

    import blackjax  # not at the top: importing it starts JAX, and XLA's settings come before that

    local = mala(target, step_size)
    jump = blackjax.irmh(lambda x: -target(x), anywhere)

    def step(rng_key: Array, state: Any) -> tuple[Any, Any]:
        key_local, key_jump = jax.random.split(rng_key)
        state, info = local.step(key_local, state)
        jumped: Any = jump.step(key_jump, jump.init(state.position, key_jump))[0]
        return local.init(jumped.position), info

    return Kernel(local.init, step)


def make_initial(density: ToyDensity) -> Initial:
    """Returns the initial positions of chains: uniform over the square of the density."""
    return UniformInitial(*density.bounds, shape=(2,))


def draw_samples(
    rng_key: Array,
    density: ToyDensity,
    energy: EnergyFn,
    params: Params,
    *,
    num_samples: int,
    num_steps: int,
    step_size: float,
) -> Array:
    """Returns samples of the model, ``(num_samples, 2)``, from new chains of `local_and_global`."""
    low, high = window(density)
    no_label = jnp.zeros((), jnp.int32)
    start = jax.vmap(make_initial(density), (0, None))(jax.random.split(rng_key, num_samples), no_label)
    return sample(
        jax.random.fold_in(rng_key, 1),
        energy,
        params,
        start,
        num_steps,
        kernel=local_and_global,
        step_size=step_size,
        low=low,
        high=high,
    )


class OnGrid(NamedTuple):
    """A density and a model on a grid over the window.

    Attributes:
      points: ``(n^2, 2)``.
      log_cell: log of a cell's area.
      log_true: exact log-densities, ``(n^2,)``.
      log_model: those of the model, normalised on the grid, ``(n^2,)``.
      kl: KL(data || model), in nats.
    """

    points: Array
    log_cell: float
    log_true: Array
    log_model: Array
    kl: float


def on_grid(density: ToyDensity, energy: EnergyFn, params: Params, grid_points: int) -> OnGrid:
    """Evaluates both by quadrature, ``grid_points`` along each side of the window."""
    low, high = window(density)
    points, log_cell = grid(low, high, grid_points)
    log_true = jax.jit(jax.vmap(density.log_density))(points)
    log_model = log_density_on_grid(energy, params, points, log_cell)
    kl = float(kl_divergence_on_grid(log_true, log_model, log_cell))
    return OnGrid(points, log_cell, log_true, log_model, kl)


def bound_log_partition(
    rng_key: Array,
    density: ToyDensity,
    energy: EnergyFn,
    params: Params,
    points: Array,
    log_model: Array,
    *,
    grid_points: int,
    num_temperatures: int,
    num_chains: int,
) -> dict[str, float]:
    """Bounds log Z over the square by annealed importance sampling, at 99% coverage.

    The reverse chains start from samples of the grid's own cells.

    Args:
      rng_key: of the chains.
      density: whose window is the square.
      energy: of the model.
      params: its parameters.
      points: the grid, ``(grid_points^2, 2)``.
      log_model: the model's normalised log-density there, ``(grid_points^2,)``.
      grid_points: of a side.
      num_temperatures: of the annealing schedule.
      num_chains: in each direction.

    Returns:
      The ends of the interval, ``low`` and ``high``, in nats.
    """
    low, high = window(density)
    keys = jax.random.split(rng_key, 4)
    box = restrict_to_box(energy, (2,), low, high)
    cells = jax.random.categorical(keys[0], log_model, shape=(num_chains,))
    jitter = jax.random.uniform(keys[1], (len(cells), 2), minval=-0.5, maxval=0.5)
    samples = points[cells] + jitter * (high - low) / grid_points
    problem = (box.energy, params, box.base, partial(hmc, num_integration_steps=5))
    path = fit_annealing_path(keys[2], *problem, num_temperatures, step_size=0.3)
    interval = log_partition_interval(
        keys[3],
        *problem,
        path.schedule,
        num_chains,
        box.transform.inverse(None, samples),
        kernel_schedule=path.kernel_schedule,
    )
    return {"low": float(interval.low), "high": float(interval.high)}
