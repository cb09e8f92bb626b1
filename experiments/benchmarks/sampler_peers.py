"""The other implementations of `benchmarks.samplers`: BlackJAX, NumPyro, TorchEBM and plain PyTorch.

Each function takes a `Job` and makes a function without arguments that runs all chains and returns only their
last positions. Packages are imported where they are needed, so that a missing one leaves out only its rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm.types import EnergyFn, Params

__all__ = [
    "Job",
    "TorchEnergies",
    "bare_gradients",
    "energies_in_torch",
    "run_in_blackjax",
    "run_in_numpyro",
    "run_in_torch",
    "run_in_torchebm",
]

Run = Callable[[], Any]
TorchEnergies = Callable[[Any], Any]


class Job(NamedTuple):
    """Chains to run.

    Attributes:
      sampler: "sgld", "mala" or "hmc".
      energy: ``energy(params, x) -> ()``, of one example.
      params: its parameters.
      positions: initial positions of the chains, (n, ...).
      step_size: epsilon of sgld and mala, the leapfrog step of hmc.
      num_steps: transitions of each chain.
      num_leapfrog: leapfrog steps of a trajectory; for hmc.
      in_torch: makes the energy in PyTorch, ``(n, ...) -> (n,)``, from the parameters as arrays of NumPy.
      seed: seed of the noise.
    """

    sampler: str
    energy: EnergyFn
    params: Params
    positions: jax.Array
    step_size: float
    num_steps: int
    num_leapfrog: int
    in_torch: Callable[[Any], TorchEnergies]
    seed: int = 0


def bare_gradients(job: Job) -> Run:
    """Makes a loop of the same number of gradients, each an argument of the next, without noise."""
    gradients = jax.vmap(jax.grad(job.energy, argnums=1), (None, 0))
    count = job.num_steps * (job.num_leapfrog if job.sampler == "hmc" else 1)

    def descend(params: Params, positions: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x - 1e-3 * gradients(params, x), None

        return jax.lax.scan(step, positions, length=count)[0]

    return partial(jax.jit(descend), job.params, job.positions)


def run_in_blackjax(job: Job) -> Run:
    """Makes the loop of BlackJAX's documentation: ``vmap`` over chains inside ``scan`` over split keys.

    Its ``sgld`` takes an estimator of the gradient from a mini-batch; here it is exact, and the batch None.
    """
    import blackjax

    def run(rng_key: jax.Array, params: Params, positions: jax.Array) -> jax.Array:
        def log_density(x: jax.Array) -> jax.Array:
            return -job.energy(params, x)

        algorithm: Any
        if job.sampler == "sgld":
            gradient: Any = jax.grad(log_density)
            algorithm = blackjax.sgld(lambda x, minibatch: gradient(x))
        elif job.sampler == "mala":
            algorithm = blackjax.mala(log_density, job.step_size)
        else:
            mass = jnp.ones(positions[0].size)
            algorithm = blackjax.hmc(log_density, job.step_size, mass, job.num_leapfrog)

        def step(step_key: jax.Array, state: Any) -> Any:
            if job.sampler == "sgld":  # its states are bare positions, and it has no info
                return algorithm.step(step_key, state, None, job.step_size)
            return algorithm.step(step_key, state)[0]

        def one_step(states: Any, step_key: jax.Array) -> tuple[Any, None]:
            return jax.vmap(step)(jax.random.split(step_key, len(positions)), states), None

        states = jax.vmap(algorithm.init)(positions)
        last = jax.lax.scan(one_step, states, jax.random.split(rng_key, job.num_steps))[0]
        return last if job.sampler == "sgld" else last.position

    return partial(jax.jit(run), jax.random.key(job.seed), job.params, job.positions)


def run_in_numpyro(job: Job) -> Run:
    """Makes NumPyro's HMC kernel, nothing adapted, over vectorised chains; MALA is HMC with one step."""
    from numpyro.infer import HMC  # pyright: ignore[reportMissingImports]

    mala = job.sampler == "mala"

    def run(rng_keys: jax.Array, params: Params, positions: jax.Array) -> jax.Array:
        kernel = HMC(
            potential_fn=partial(job.energy, params),
            step_size=(2 * job.step_size) ** 0.5 if mala else job.step_size,
            num_steps=1 if mala else job.num_leapfrog,
            trajectory_length=None,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        state = kernel.init(rng_keys, 0, positions)
        return jax.lax.fori_loop(0, job.num_steps, lambda _, at: kernel.sample(at, (), {}), state).z

    rng_keys = jax.random.split(jax.random.PRNGKey(job.seed), len(job.positions))
    return partial(jax.jit(run), rng_keys, job.params, job.positions)


def energies_in_torch(job: Job) -> tuple[Any, TorchEnergies]:
    """Returns the positions as a tensor, and the energy of a batch of them as a function of PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    positions = torch.from_numpy(np.array(job.positions))
    return positions, job.in_torch(jax.tree.map(np.array, job.params))


def run_in_torch(job: Job, *, compiled: bool = False) -> Run:
    """Makes handwritten loops, which reuse the last gradient where possible.

    Eager, or with the energy and its gradient behind ``torch.compile``, which does not take the whole loop.
    """
    import torch  # pyright: ignore[reportMissingImports]

    start, energies = energies_in_torch(job)
    if compiled:
        energies = torch.compile(energies)
    step, half = job.step_size, job.step_size / 2

    def energy_and_gradient(x: Any) -> tuple[Any, Any]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = energies(x)
            return energy.detach(), torch.autograd.grad(energy.sum(), x)[0]

    def squares(x: Any) -> Any:
        return x.flatten(1).square().sum(1)

    def langevin(x: Any, slope: Any) -> Any:
        return torch.add(x, slope, alpha=-step).add_(torch.randn_like(x), alpha=(2 * step) ** 0.5)

    def sgld() -> Any:
        x = start
        for _ in range(job.num_steps):
            x = langevin(x, energy_and_gradient(x)[1])
        return x

    def accept(log_ratio: Any, old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        return tuple(
            torch.where(accepted.view(-1, *[1] * (there.ndim - 1)), there, here)
            for here, there in zip(old, new, strict=True)
        )

    def mala() -> Any:
        x, (energy, slope) = start, energy_and_gradient(start)
        for _ in range(job.num_steps):
            new_x = langevin(x, slope)
            new_energy, new_slope = energy_and_gradient(new_x)
            forth, back = squares(new_x - x + step * slope), squares(x - new_x + step * new_slope)
            log_ratio = energy - new_energy + (forth - back) / (4 * step)
            x, energy, slope = accept(log_ratio, (x, energy, slope), (new_x, new_energy, new_slope))
        return x

    def hmc() -> Any:
        x, (energy, slope) = start, energy_and_gradient(start)
        for _ in range(job.num_steps):
            momentum = torch.randn_like(x)
            new_x, new_energy, new_slope = x, energy, slope
            before = energy + squares(momentum) / 2
            for _ in range(job.num_leapfrog):
                momentum = torch.add(momentum, new_slope, alpha=-half)
                new_x = torch.add(new_x, momentum, alpha=step)
                new_energy, new_slope = energy_and_gradient(new_x)
                momentum = momentum.add_(new_slope, alpha=-half)
            log_ratio = before - new_energy - squares(momentum) / 2
            x, energy, slope = accept(log_ratio, (x, energy, slope), (new_x, new_energy, new_slope))
        return x

    loop = {"sgld": sgld, "mala": mala, "hmc": hmc}[job.sampler]

    def run() -> np.ndarray:
        with torch.no_grad():
            return loop().numpy()

    return run


def run_in_torchebm(job: Job) -> Run:
    """Makes TorchEBM's ``LangevinDynamics`` or ``HamiltonianMonteCarlo``; there is no MALA."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchebm.core import BaseModel  # pyright: ignore[reportMissingImports]
    from torchebm.samplers import (  # pyright: ignore[reportMissingImports]
        HamiltonianMonteCarlo,
        LangevinDynamics,
    )

    start, energies = energies_in_torch(job)

    class Model(BaseModel):
        def forward(self, x: Any) -> Any:
            return energies(x)

    cpu = {"device": torch.device("cpu")}
    model: Any = Model(**cpu)
    if job.sampler == "sgld":
        sampler: Any = LangevinDynamics(model, step_size=job.step_size, noise_scale=1.0, **cpu)
    else:
        sampler = HamiltonianMonteCarlo(
            model, step_size=job.step_size, n_leapfrog_steps=job.num_leapfrog, **cpu
        )
    return lambda: sampler.sample(x=start.clone(), n_steps=job.num_steps).numpy()
