"""The benchmark at toy size: contenders have one law, a wrong one is caught. No time is judged."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampler_peers as peers
from benchmarks import samplers
from benchmarks.harness import Contender, Workload

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOY = samplers.Sizes(
    num_steps=6,
    num_trajectories=2,
    num_leapfrog=3,
    num_chains=300,
    widths=(5,),
    dimension=3,
    num_images=50,
    num_image_steps=2,
    pixels=8,
    channels=(2, 3),
    torch_compile=False,
)
PAIRS = [("mlp", "hmc"), ("gaussian", "mala"), ("images", "sgld")]


@pytest.mark.parametrize(("target", "sampler"), PAIRS)
def test_contenders_have_the_same_energy_and_the_same_law(target: str, sampler: str):
    problem = samplers.TARGETS[target](TOY, 0)
    samplers.check_same_energy(problem)
    workload = samplers.make_workload(TOY, problem._replace(plain=None), sampler, 0)
    present = [one for one in workload.contenders if one.run is not None and one.agrees]
    differences = samplers.check_same_law(problem, workload._replace(contenders=present))
    assert list(differences) == [one.name for one in present[1:]]
    assert "BlackJAX" in differences
    # Times are of one transition, whoever makes it.
    assert len({one.items for one in workload.contenders if one.run is not None}) == 1


def test_bare_gradients_are_as_many_as_the_chains_take():
    problem = samplers.TARGETS["gaussian"](TOY, 0)
    for sampler, count in (("mala", TOY.num_steps), ("hmc", TOY.num_trajectories * TOY.num_leapfrog)):
        job = samplers.make_job(TOY, problem, sampler, 0)
        expected = problem.positions * (1 - 1e-3 * problem.params[None, :]) ** count
        np.testing.assert_allclose(peers.bare_gradients(job)(), expected, rtol=1e-5)


def test_another_law_is_caught():
    problem = samplers.TARGETS["gaussian"](replace(TOY, num_chains=1000), 0)
    noise = np.random.default_rng(0).standard_normal((5, 1000, 3)).astype(np.float32)

    def ends(number: int, scale: float = 1.0, shift: float = 0.0) -> Contender:
        last = problem.positions + shift + scale * jnp.asarray(noise[number])
        return Contender(f"number {number}", lambda: last)

    def check(*contenders: Contender) -> dict[str, float]:
        workload: Any = Workload("law", contenders)
        return samplers.check_same_law(problem, workload)

    assert check(ends(0), ends(1), Contender("missing", None))["number 1"] < 4
    check(ends(0), ends(2, scale=3.0)._replace(agrees=False))
    for wrong in (ends(2, scale=1.3), ends(3, shift=0.4), ends(4, shift=float("nan"))):
        with pytest.raises(RuntimeError, match=wrong.name):
            check(ends(0), ends(1), wrong)


def test_an_energy_that_differs_is_caught():
    problem = samplers.TARGETS["gaussian"](TOY, 0)
    plain = problem._replace(plain=lambda params, x: 1.001 * problem.energy(params, x))
    with pytest.raises(RuntimeError, match=r"energies by lax\.conv"):
        samplers.check_same_energy(plain)
    pytest.importorskip("torch")
    in_torch = problem._replace(in_torch=lambda params: lambda x: 1.001 * problem.in_torch(params)(x))
    with pytest.raises(RuntimeError, match="energies in PyTorch"):
        samplers.check_same_energy(in_torch)


BAD = [
    ({"num_leapfrog": 0}, "num_leapfrog"),
    ({"widths": (3, 0)}, "widths"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_settings_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        samplers.Sizes(**changes).check()
