"""The JEM update in JAX and PyTorch: one mathematics. No time is judged."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import samplers, suite, training
from benchmarks import training_peers as peers
from benchmarks.harness import Workload, check_agreement
from benchmarks.recovery import PROTECTED, UNPROTECTED, recovery_workload
from jaxebm.objectives import contrastive_divergence, likelihood
from jaxebm.samplers import sgld
from jaxebm.training import learner
from jaxebm.types import Array

pytestmark = pytest.mark.usefixtures("cheap_compilation")

FLOOR, BLACKJAX = "bare gradients, JAX", "BlackJAX's SGLD in our step"
SIZES = training.JemSizes(
    batch_size=4, sampler_steps=2, channels=(3,), buffer_size=20, num_examples=10, updates=2
)


@pytest.fixture(scope="module")
def problem() -> training.JemProblem:
    return training.jem_problem(SIZES, pixels=8, channels=1, seed=0)


def by_name(workload: Workload, name: str) -> Any:
    (found,) = (one.run for one in workload.contenders if one.name == name)
    return found


def test_energies_gradients_and_a_whole_update_agree_with_pytorch(problem: training.JemProblem):
    pytest.importorskip("torch")
    differences = training.check_same_update(problem)
    assert set(differences) == {"energies", "slopes", "gradient", "update"}
    assert max(differences.values()) < 1e-3


@pytest.mark.parametrize("wrong", ["energies_and_slopes", "learn"])
def test_another_mathematics_is_caught(
    problem: training.JemProblem, monkeypatch: pytest.MonkeyPatch, wrong: str
):
    pytest.importorskip("torch")
    right = getattr(peers.TorchJem, wrong)

    def other(self: Any, *arguments: Any) -> Any:
        if wrong == "learn":  # data and samples change places: the sign of the contrast
            x_labelled, labels, x_data, x_model = arguments
            return right(self, x_labelled, labels, x_model, x_data)
        energies, slopes = right(self, *arguments)
        return energies, slopes.transpose(0, 2, 1, 3)

    monkeypatch.setattr(peers.TorchJem, wrong, other)
    with pytest.raises(RuntimeError, match="slopes" if wrong == "energies_and_slopes" else "gradient"):
        training.check_same_update(problem)


def check_that_it_goes_on(run: Any) -> None:
    before = int(run.state.step)
    run()
    assert int(run.state.step) == before + SIZES.updates
    # Chains went back to the buffer: their slots have aged.
    assert int(run.state.sampler_state.buffer.ages.max()) >= SIZES.sampler_steps


def test_updates_go_on_from_where_they_ended(problem: training.JemProblem):
    workload = training.jem_workload(problem, torch_compile=False)
    names = [one.name for one in workload.contenders]
    assert names[:3] == [training.OURS, FLOOR, BLACKJAX]
    assert {one.items for one in workload.contenders if one.run is not None} == {SIZES.updates}
    check_that_it_goes_on(by_name(workload, training.OURS))
    params, chains = by_name(workload, FLOOR)()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, problem.params)
    assert float(jnp.abs(chains - problem.images[: SIZES.batch_size]).max()) > 0


@pytest.mark.slow
def test_all_contenders_run():
    sizes = suite.Sizes(jem=SIZES, sampling=samplers.Sizes(torch_compile=False))
    workload, _ = suite.make_workloads(sizes, "jem-8", 0)["jem-8"]  # runs every contender once
    for name in (training.OURS, BLACKJAX):
        check_that_it_goes_on(by_name(workload, name))


def test_blackjax_takes_our_steps(problem: training.JemProblem):
    """On E = sum x^2 / 2 a step of 1 leaves the noise alone: its size is what was asked for."""
    kernel = training._blackjax_kernel(problem)(lambda x: 0.5 * (x**2).sum())
    state, _ = kernel.step(jax.random.key(0), kernel.init(jnp.full(20_000, 5.0)))
    noise = np.asarray(state.position)
    assert abs(noise.mean()) < 5 * problem.noise_scale / 20_000**0.5
    np.testing.assert_allclose(noise.std(), problem.noise_scale, rtol=0.03)  # six standard errors


def test_torch_chains_and_buffer(problem: training.JemProblem):
    torch = pytest.importorskip("torch")
    twin = peers.TorchJem(problem._replace(restart_probability=0.0))
    before, weights = twin.buffer.clone(), twin.parameters[0].detach().clone()
    twin.step()
    touched = (twin.buffer != before).flatten(1).any(1)
    assert int(touched.sum()) == SIZES.batch_size
    assert not torch.equal(weights, twin.parameters[0])
    still = peers.TorchJem(problem._replace(noise_scale=0.0, step_size=0.5))
    x = still.buffer[:3]
    (slope,) = torch.autograd.grad(
        still.energies(still.parameters, start := x.clone().requires_grad_()).sum(), start
    )
    once = problem.sizes.__class__(**{**vars(SIZES), "sampler_steps": 1})
    still.problem = still.problem._replace(sizes=once)
    torch.testing.assert_close(still.chains(x), x - 0.5 * slope)


def test_a_diverged_run_is_not_timed(problem: training.JemProblem):
    diverged = training.Updates(lambda state, data: (state, {"loss": np.float32("nan")}), None, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="diverged"):
        diverged()


def test_protection_changes_no_number_and_is_there():
    def energy(params: Array, x: Array) -> Array:
        return 0.5 * jnp.sum((x - params) ** 2)

    learn = learner(
        likelihood(energy),
        optimizer=optax.sgd(0.1),
        negatives=contrastive_divergence(partial(sgld, step_size=0.5), num_steps=2),
        batch_size=8,
    )
    data = jnp.full((8, 2), 3.0)
    state = learn.init(jax.random.key(0), jnp.zeros(2), data)
    workload = recovery_workload("toy", learn.step, state, learn.place(data), 3)
    check_agreement(workload)
    plain, watched = by_name(workload, UNPROTECTED), by_name(workload, PROTECTED)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(same, plain.state.params, watched.state.params)
    assert watched.snapshots.steps == [0]
    nowhere = jax.tree.map(lambda leaf: leaf * np.nan, watched.state.params)
    watched.state = watched.state._replace(params=nowhere)
    with pytest.raises(RuntimeError, match="not healthy"):
        watched()


BAD = [({"batch_size": 30}, "batch_size"), ({"channels": (0,)}, "channels"), ({"updates": 0}, "updates")]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_sizes_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        training.JemSizes(**{**vars(SIZES), **changes}).check()
