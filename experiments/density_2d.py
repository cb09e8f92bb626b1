"""Maximum likelihood on two-dimensional densities, judged exactly: KL(data || model) by quadrature.

    python experiments/density_2d.py                                  # all six
    python experiments/density_2d.py --densities spiral --seed 1

An MLP energy, tilted by a broad Gaussian so that it can be normalised, learns from exact samples of each
density by persistent contrastive divergence. A transition of the chains is one MALA step and one uniform
proposal over the window, accepted or refused by Metropolis-Hastings: local moves alone would never learn how
much mass separated modes hold.

Writes a folder a density (config.json, metrics.jsonl, checkpoints/, card.json, density.png: true density,
learnt density and samples) and, above them, card.json and card.md for all. Figures with their spread are in
experiments/RESULTS.md.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plots
from command_line import ResumableFlags, as_json, publish_card, run_experiment
from jaxebm import checks
from jaxebm.data import TOY_DENSITIES, ToyDensity
from jaxebm.energies import MLP, gaussian_log_reference, tilt
from jaxebm.evaluation import (
    fit_annealing_path,
    grid,
    kl_divergence_on_grid,
    log_density_on_grid,
    log_partition_interval,
    restrict_to_box,
)
from jaxebm.objectives import NegativeSampler, contrastive_loss, persistent
from jaxebm.samplers import Initial, UniformInitial, hmc, mala, sample
from jaxebm.training import RunFolder, TrainStep, fit, init_state, make_train_step, open_run
from jaxebm.types import Array, EnergyFn, Kernel, Metrics, Params, Target
from markdown_tables import markdown_table
from recoveries import recovery_for


@dataclass(frozen=True)
class Config(ResumableFlags):
    """Learn two-dimensional densities and measure the exact Kullback-Leibler divergence."""

    densities: tuple[str, ...] = tuple(TOY_DENSITIES)
    """Which of two_moons, spiral, eight_gaussians, rings, pinwheel, checkerboard."""
    output: Path = Path("runs/density_2d")
    """Folder of this run; each density gets a folder inside."""

    widths: tuple[int, ...] = (128, 128, 128)
    """Of the hidden layers."""
    activation: str = "swish"
    """swish, gelu, softplus, elu, relu or leaky_relu."""
    updates: int = 4000
    """Optimiser updates."""
    batch_size: int = 512
    """Exact samples of the density an update."""
    learning_rate: float = 4e-3
    """Peak of the schedule: linear warm-up, then cosine decay to a hundredth."""
    ema_decay: float = 0.999
    """Of the average of the weights, which the evaluation uses."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""

    num_chains: int = 512
    """Persistent chains, all advanced at every update."""
    sampler_steps: int = 5
    """Transitions an update."""
    sampler_step_size: float = 0.02
    """Of MALA, in squared units of the plane."""
    restart_probability: float = 0.0
    """Chance that a chain starts anew, uniform over the window."""

    grid_points: int = 400
    """Points a side of the quadrature."""
    num_samples: int = 5000
    """Samples in the picture, from new chains."""
    sample_steps: int = 500
    """Transitions of those."""
    annealing_steps: int = 100
    """Temperatures of annealed importance sampling, whose interval for log Z is held against quadrature."""
    annealing_chains: int = 500
    """Chains of it in each direction."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is unknown or out of range."""
        unknown = [name for name in self.densities if name not in TOY_DENSITIES]
        if unknown or not self.densities:
            raise ValueError(
                f"densities={self.densities}: unknown {unknown}; choose among {', '.join(TOY_DENSITIES)}."
            )
        for name in ("updates", "batch_size", "num_chains", "sampler_steps"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("grid_points", "num_samples", "sample_steps", "annealing_steps", "annealing_chains"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("learning_rate", "sampler_step_size"):
            checks.positive(name, getattr(self, name))


def window(density: ToyDensity) -> tuple[float, float]:
    """The square on which Z is computed and jumps land: the density's own, with a margin for the model."""
    low, high = density.bounds
    return 1.25 * low, 1.25 * high


def make_energy(config: Config, density: ToyDensity) -> tuple[Any, EnergyFn]:
    """Returns the network and its energy, tilted by N(0, (side / 2)^2 I) so that Z is always finite."""
    half = density.bounds[1]
    network = MLP(None, widths=config.widths, activation=config.activation)

    def scaled(params: Params, x: Array) -> Array:
        return cast(Array, network.apply(params, x / (0.5 * half)))

    return network, tilt(scaled, gaussian_log_reference(jnp.zeros(2), half))


def local_and_global(target: Target, step_size: Array | float, low: float, high: float) -> Kernel:
    """One MALA step, then one uniform proposal on [low, high]^2.

    Each leaves exp(-E) invariant, hence both together do.

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
    """Returns where chains start: uniform over the density's own square."""
    return UniformInitial(*density.bounds, shape=(2,))


def make_negatives(config: Config, density: ToyDensity) -> NegativeSampler:
    """Returns the persistent chains."""
    low, high = window(density)
    return persistent(
        partial(local_and_global, step_size=config.sampler_step_size, low=low, high=high),
        num_steps=config.sampler_steps,
        initial=make_initial(density),
        num_chains=config.num_chains,
        capacity=config.num_chains,
        restart_probability=config.restart_probability,
    )


def learn(config: Config, density: ToyDensity, run: RunFolder) -> dict[str, Any]:
    """Trains on one density, evaluates, draws, and returns its card."""
    network, energy = make_energy(config, density)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(config.updates // 20, 1), config.updates, config.learning_rate / 100
    )
    optimizer = optax.adam(schedule)

    def step_of(config: Config) -> TrainStep:
        def loss(params: Params, rng_key: Array, batch: Array, samples: Any) -> tuple[Array, Metrics]:
            del rng_key
            return contrastive_loss(energy, params, batch, samples.positions, energy_l2=config.energy_l2)

        return make_train_step(
            energy=lambda params, x, label: energy(params, x),
            loss=loss,
            optimizer=optimizer,
            negatives=make_negatives(config, density),
            next_batch=lambda key, data, streams: (density.sample(key, config.batch_size), streams),
            ema_decay=config.ema_decay,
        )

    keys = jax.random.split(jax.random.key(config.seed), 3)
    params, negatives = network.init(keys[1], jnp.zeros(2)), make_negatives(config, density)
    result = fit(
        step_of(config),
        init_state(keys[0], params, optimizer=optimizer, negatives=negatives),
        (),
        num_steps=config.updates,
        steps_per_dispatch=200,
        samples_per_step=config.num_chains,
        run=run,
        checkpoint_every=1000,
        resume_step=config.resume_step,
        recovery=recovery_for(config, step_of),
        progress=config.progress,
    )
    card = judge(keys[2], config, density, energy, result.state.ema_params, run)
    card["seconds_training"] = result.seconds
    card["recoveries"] = list(result.recoveries)
    run.write_json("card.json", card)
    return card


def judge(
    rng_key: Array, config: Config, density: ToyDensity, energy: EnergyFn, params: Params, run: RunFolder
) -> dict[str, Any]:
    """Returns the divergences between the density and the model, by quadrature, and draws both."""
    low, high = window(density)
    points, log_cell = grid(low, high, config.grid_points)
    log_true = jax.jit(jax.vmap(density.log_density))(points)
    log_model = log_density_on_grid(energy, params, points, log_cell)
    at_edge = jnp.any(jnp.abs(points) > 0.97 * high, axis=1)
    kl = float(kl_divergence_on_grid(log_true, log_model, log_cell))
    reverse_kl = None
    if density.name != "checkerboard":  # which is zero between its squares, where no model is
        reverse_kl = float(kl_divergence_on_grid(log_model, log_true, log_cell))

    square = (config.grid_points, config.grid_points)
    plots.density_panels(
        run.path / "density.png",
        (low, high),
        np.exp(log_true).reshape(square),
        np.exp(log_model).reshape(square),
        np.asarray(draw_samples(rng_key, config, density, energy, params)),
        title=f"{density.name}: KL(data || model) = {kl:.3f} nats",
    )
    peak = jnp.argmax(log_model)  # log p = -E - log Z, at any point
    log_partition = float(-energy(params, points[peak]) - log_model[peak])
    key = jax.random.fold_in(rng_key, 2)
    bounds = bound_log_partition(key, config, density, energy, params, points, log_model)
    return {
        "density": density.name,
        "kl": kl,
        "reverse_kl": reverse_kl,
        "log_partition": {"quadrature": log_partition} | bounds,
        "mass_at_edge": float(jnp.sum(jnp.where(at_edge, jnp.exp(log_model + log_cell), 0.0))),
    }


def bound_log_partition(
    rng_key: Array,
    config: Config,
    density: ToyDensity,
    energy: EnergyFn,
    params: Params,
    points: Array,
    log_model: Array,
) -> dict[str, float]:
    """Returns the interval for log Z over the square by annealed importance sampling, at 99% coverage.

    The reverse chains start from samples of the grid's own cells.
    """
    low, high = window(density)
    keys = jax.random.split(rng_key, 4)
    box = restrict_to_box(energy, (2,), low, high)
    cells = jax.random.categorical(keys[0], log_model, shape=(config.annealing_chains,))
    jitter = jax.random.uniform(keys[1], (len(cells), 2), minval=-0.5, maxval=0.5)
    samples = points[cells] + jitter * (high - low) / config.grid_points
    problem = (box.energy, params, box.base, partial(hmc, num_integration_steps=5))
    path = fit_annealing_path(keys[2], *problem, config.annealing_steps, step_size=0.3)
    interval = log_partition_interval(
        keys[3],
        *problem,
        path.schedule,
        config.annealing_chains,
        box.transform.inverse(None, samples),
        kernel_schedule=path.kernel_schedule,
    )
    return {"low": float(interval.low), "high": float(interval.high)}


def draw_samples(
    rng_key: Array, config: Config, density: ToyDensity, energy: EnergyFn, params: Params
) -> Array:
    """Returns samples of the model, ``(num_samples, 2)``, from new chains."""
    low, high = window(density)
    no_label = jnp.zeros((), jnp.int32)
    start = jax.vmap(make_initial(density), (0, None))(
        jax.random.split(rng_key, config.num_samples), no_label
    )
    return sample(
        jax.random.fold_in(rng_key, 1),
        energy,
        params,
        start,
        config.sample_steps,
        kernel=local_and_global,
        step_size=config.sampler_step_size,
        low=low,
        high=high,
    )


def _row(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    log_z = card["log_partition"]
    interval = f"{log_z['low']:.3f} to {log_z['high']:.3f}"
    return (
        name,
        f"{card['kl']:.4f}",
        f"{log_z['quadrature']:.3f}",
        interval,
        f"{card['seconds_training']:.0f}",
    )


def as_markdown(config: Config, cards: Mapping[str, dict[str, Any]]) -> str:
    """Returns the card of all densities for a reader."""
    header = ("density", "KL(data, model), nats", "log Z, quadrature", "log Z, annealing, 99%", "training, s")
    lines = [
        f"# Two-dimensional densities, seed {config.seed}",
        "",
        *markdown_table(header, (_row(name, card) for name, card in cards.items())),
        "",
        *(f"![{name}]({name}/density.png)" for name in cards),
        "",
    ]
    return "\n".join(lines)


def main(config: Config) -> dict[str, Any]:
    """Learns every density and writes the cards; returns them."""
    started = time.monotonic()
    config.check()
    settings = as_json(config)
    flags = {"resume": config.resume, "overwrite": config.overwrite}
    run = open_run(config.output, settings, **flags)
    cards = {}
    for name in config.densities:
        if config.progress:
            print(name, flush=True)
        cards[name] = learn(config, TOY_DENSITIES[name], open_run(config.output / name, settings, **flags))
    card = {
        "schema": 1,
        "experiment": "density_2d",
        "seed": config.seed,
        "kl": {name: one["kl"] for name, one in cards.items()},
        "densities": cards,
        "seconds": time.monotonic() - started,
        "config": settings,
    }
    publish_card(run, card, as_markdown(config, cards))
    return card


if __name__ == "__main__":
    run_experiment(Config, main, small_networks=lambda config: True)
