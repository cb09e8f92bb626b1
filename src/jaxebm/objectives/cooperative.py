"""Cooperative learning: a generator proposes samples, chains on the energy revise them, and both learn."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxebm import checks
from jaxebm.objectives.contrastive import compare, energies_of_both, noted
from jaxebm.objectives.examples import examples_of
from jaxebm.objectives.negatives import Negatives
from jaxebm.objectives.objective import Batch, Objective, ignore_label
from jaxebm.samplers.chains import run_chain
from jaxebm.samplers.langevin import sgld
from jaxebm.trees import dimension, normal_like, wide_dtype, widened
from jaxebm.types import BATCH_AXIS, Array, EnergyFn, MakeKernel, Metrics, Params, Position, Target

__all__ = ["cooperative", "cooperative_samples"]

Generator = Callable[[Params, Array], Position]
"""``generator(params, z) -> x``: the mean of one example given its latent variables."""


class _Revised(NamedTuple):
    """A proposal's latent variables, the proposal, and where the chain on the energy took it."""

    latent: Array
    proposal: Position
    revised: Position


def cooperative(
    energy: EnergyFn,
    generator: Generator,
    *,
    make_kernel: MakeKernel,
    latent_size: int,
    num_steps: int = 30,
    noise_level: float | Array = 0.3,
    num_latent_steps: int = 10,
    latent_step_size: float | Array = 0.005,
    num_samples: int | None = None,
    generator_weight: float | Array = 1.0,
    weight: float | Array = 1.0,
) -> Objective:
    r"""An energy and a generator that learn together; the generator is the amortised sampler of the energy.

    The generator is a density of its own, x = g(z) + s n with z, n ~ N(0, I). In each update it proposes x,
    ``num_steps`` steps of a kernel on the energy revise this to x', and

    .. math:: w \left[E(x_{data}) - E(x')\right] + w_g\, |x' - g(z')|^2 / (2 s^2)

    is the mean over a batch: the energy learns from data and revised samples, the generator from revised
    samples. z' are the latent variables of x': ``num_latent_steps`` Langevin steps on their posterior
    |x' - g(z)|^2 / (2 s^2) + |z|^2 / 2, from the z that proposed x. If they reach it, a generator that draws
    what the energy does stays as it is. With 0 of them z' = z, and the generator learns the mean of x' given
    z: the noise of the chain is averaged away, and its samples collapse onto the modes of the energy. Too few
    steps narrow it, too. The published 10 steps of .005 suit a generator whose derivative is large against s.

    No gradient flows through the chains, to the energy from the generator's term or back. An update costs
    ``num_steps`` gradients of the energy and ``num_latent_steps`` of the generator for each sample, besides
    those of the loss. The chains are run inside of the loss: give the learner no ``negatives``.

    Args:
      energy: E(params, x) of one example.
      generator: g(params, z), z of shape ``(latent_size,)``, which returns one example in the structure and
        shapes of the data, such as the ``apply`` of a Flax module.
      make_kernel: binds the kernel of the chains to a target: ``partial(sgld, step_size=...)``.
      latent_size: number of latent variables.
      num_steps: steps that revise a proposal, at least 1.
      noise_level: s > 0, the generator's own noise, in the units of x.
      num_latent_steps: steps on the latent variables; at least 0, better about 1 / ``latent_step_size``.
      latent_step_size: their step, in units of z^2, below 2: stable below 2 / (1 + |dg/dz|^2 / s^2).
      num_samples: proposals of an update; as many as there are examples in the batch by default.
      generator_weight: w_g >= 0.
      weight: w >= 0.

    Returns:
      An objective of parameters ``{"energy": ..., "generator": ...}``, for data with or without labels; its
      energy is E(params["energy"], x). Metrics: ``energy_data``, ``energy_model``, ``energy_gap``;
      ``proposal_gap``, E(x) - E(x') of the proposals, which falls to 0 as the generator learns; and
      ``reconstruction_error``, the mean of (x' - g(z'))^2 over coordinates.

    Raises:
      TypeError: if the energy or the generator is no function of two arguments, or ``make_kernel`` binds no
        kernel; from the loss, if the generator's output is not floating-point.
      ValueError: if a number is out of range; from the loss, if the generator's output has not the shape of
        an example, or params not these two entries.

    Example:
      >>> from functools import partial
      >>> objective = cooperative(
      ...     lambda params, x: 0.5 * params * jnp.sum(x**2), lambda params, z: params * z,
      ...     make_kernel=partial(sgld, step_size=0.1), latent_size=2, num_steps=5)
      >>> batch = Batch(None, None, jnp.ones((8, 2)))
      >>> params = {"energy": 1.0, "generator": 1.0}
      >>> loss, metrics = jax.jit(objective.loss)(params, jax.random.key(0), batch, Negatives(None, None))
      >>> sorted(metrics)
      ['energy_data', 'energy_gap', 'energy_model', 'proposal_gap', 'reconstruction_error']

    Reference:
      Xie, Lu, Gao, Zhu & Wu 2018 (arXiv 1609.09408), algorithm 1 (CoopNets).
    """
    _check(energy, generator, make_kernel, latent_size, num_steps, noise_level)
    checks.integer("num_latent_steps", num_latent_steps, 0)
    checks.below_two("latent_step_size", latent_step_size, "longer steps diverge whatever the generator is")
    if num_samples is not None:
        checks.positive_integer("num_samples", num_samples)
    checks.non_negative_number("generator_weight", generator_weight)
    checks.non_negative_number("weight", weight)

    def infer(rng_key: Array, params: Params, latent: Array, revised: Position) -> Array:
        """The latent variables of a revised sample, from those that proposed it."""
        if num_latent_steps == 0:
            return latent

        def posterior(z: Array) -> Array:
            error = _squared_distance(revised, _generated(generator, params, z, revised))
            return 0.5 * error / jnp.square(noise_level) + 0.5 * jnp.sum(jnp.square(z))

        kernel = sgld(posterior, latent_step_size)
        return run_chain(rng_key, kernel, latent, num_latent_steps)[0].position

    def of_sample(rng_key: Array, params: Params, example: Position) -> _Revised:
        key_revise, key_infer = jax.random.split(rng_key)
        drawn = _revise(
            key_revise, energy, generator, params, example, make_kernel, latent_size, num_steps, noise_level
        )
        return drawn._replace(latent=infer(key_infer, params["generator"], drawn.latent, drawn.revised))

    def loss(params: Params, rng_key: Array, batch: Batch, negatives: Negatives) -> tuple[Array, Metrics]:
        del negatives
        _check_params(params)
        x_data, _ = examples_of(batch, "cooperative", conditional=False)
        example = jax.tree.map(lambda leaf: leaf[0], x_data)
        count = num_samples or checks.batch_length("batch.x_data", x_data)
        frozen = jax.lax.stop_gradient(params)
        with noted("generator", params=params["generator"], z=jnp.zeros(latent_size)):
            drawn = jax.lax.stop_gradient(
                jax.vmap(of_sample, (0, None, None), axis_name=BATCH_AXIS)(
                    jax.random.split(rng_key, count), frozen, example
                )
            )
        energy_data, energy_model = energies_of_both(energy, params["energy"], x_data, drawn.revised)
        contrast, metrics = compare(energy_data, energy_model, "likelihood")

        def error(params: Params, latent: Array, revised: Position) -> Array:
            return _squared_distance(revised, _generated(generator, params, latent, revised))

        errors = jnp.mean(
            jax.vmap(error, (None, 0, 0), axis_name=BATCH_AXIS)(
                params["generator"], drawn.latent, drawn.revised
            )
        )
        _, energy_proposal = energies_of_both(energy, frozen["energy"], x_data, drawn.proposal)
        size = dimension(example)
        metrics |= {
            "proposal_gap": jnp.mean(energy_proposal) - metrics["energy_model"],
            "reconstruction_error": errors / size,
        }
        return weight * contrast + generator_weight * 0.5 * errors / jnp.square(noise_level), metrics

    return Objective(ignore_label(_of_energy(energy)), loss)


def cooperative_samples(
    rng_key: Array,
    energy: EnergyFn,
    generator: Generator,
    params: Params,
    example: Position,
    num_samples: int,
    *,
    make_kernel: MakeKernel,
    latent_size: int,
    num_steps: int = 30,
    noise_level: float | Array = 0.3,
) -> Position:
    """Draws samples as the training of `cooperative` does: the generator proposes, the chains revise.

    A sample costs one call of the generator and ``num_steps`` gradients of the energy.

    Args:
      rng_key: one key.
      energy: E(params, x) of one example.
      generator: g(params, z) of one z.
      params: ``{"energy": ..., "generator": ...}``.
      example: one example, of which the shapes and dtypes matter.
      num_samples: n.
      make_kernel: binds the kernel of the chains to a target.
      latent_size: number of latent variables.
      num_steps: steps that revise a proposal.
      noise_level: s > 0, the generator's own noise.

    Returns:
      The samples, leaves ``(n, ...)``.

    Raises:
      TypeError, ValueError: as `cooperative`.

    Example:
      >>> from functools import partial
      >>> x = cooperative_samples(
      ...     jax.random.key(0), lambda params, x: 0.5 * params * jnp.sum((x - 1.0) ** 2),
      ...     lambda params, z: params * z, {"energy": 1.0, "generator": 1.0}, jnp.zeros(2), 500,
      ...     make_kernel=partial(sgld, step_size=0.1), latent_size=2)
      >>> x.shape, bool(jnp.all(jnp.abs(x.mean(0) - 1) < 0.3))
      ((500, 2), True)

    Reference:
      Xie et al. 2018 (arXiv 1609.09408), algorithm 1.
    """
    checks.rng_key("rng_key", rng_key)
    _check(energy, generator, make_kernel, latent_size, num_steps, noise_level)
    _check_params(params)
    checks.floating("example", example)
    checks.positive_integer("num_samples", num_samples)
    example = jax.tree.map(jnp.asarray, example)

    def one(rng_key: Array) -> Position:
        return _revise(
            rng_key, energy, generator, params, example, make_kernel, latent_size, num_steps, noise_level
        ).revised

    with noted("generator", params=params, example=example):
        return jax.vmap(one, axis_name=BATCH_AXIS)(jax.random.split(rng_key, num_samples))


def _revise(
    rng_key: Array,
    energy: EnergyFn,
    generator: Generator,
    params: Params,
    example: Position,
    make_kernel: MakeKernel,
    latent_size: int,
    num_steps: int,
    noise_level: float | Array,
) -> _Revised:
    key_latent, key_noise, key_chain = jax.random.split(rng_key, 3)
    wide = wide_dtype(example)
    latent = jax.random.normal(key_latent, (latent_size,), wide)
    mean = _generated(generator, params["generator"], latent, example)
    proposal = jax.tree.map(
        lambda g, n, like: (widened(g) + noise_level * n).astype(like.dtype),
        mean,
        normal_like(key_noise, mean),
        example,
    )
    kernel = make_kernel(_bound(energy, params["energy"]))
    return _Revised(latent, proposal, run_chain(key_chain, kernel, proposal, num_steps)[0].position)


def _bound(energy: EnergyFn, params: Params) -> Target:
    def target(x: Position) -> Array:
        value = energy(params, x)
        checks.scalar_energy("energy", value)
        return value

    return target


def _of_energy(energy: EnergyFn) -> EnergyFn:
    def of_both(params: Params, x: Position, /) -> Array:
        _check_params(params)
        return energy(params["energy"], x)

    return of_both


def _generated(generator: Generator, params: Params, latent: Array, example: Position) -> Position:
    """g(z), after a check that it is an example."""
    generated = generator(params, latent)
    checks.floating("generator(params, z)", generated)
    checks.same_shapes("generator(params, z)", generated, "an example", example)
    return generated


def _squared_distance(a: Position, b: Position) -> Array:
    parts = jax.tree.map(lambda a, b: jnp.sum(jnp.square(widened(a) - widened(b))), a, b)
    return jax.tree.reduce(jnp.add, parts)


def _check_params(params: Any) -> None:
    if not isinstance(params, dict) or set(params) != {"energy", "generator"}:
        found = f"the keys {sorted(params)}" if isinstance(params, dict) else f"a {type(params).__name__}"
        raise ValueError(f"params has {found}: a dictionary of 'energy' and 'generator' is needed.")


def _check(
    energy: Any, generator: Any, make_kernel: Any, latent_size: Any, num_steps: Any, noise_level: Any
) -> None:
    checks.function_of_example("energy", energy, "params", "x")
    checks.function_of_example("generator", generator, "params", "z")
    checks.kernel_constructor("make_kernel", make_kernel)
    checks.positive_integer("latent_size", latent_size)
    checks.positive_integer("num_steps", num_steps)
    checks.positive_number("noise_level", noise_level)
