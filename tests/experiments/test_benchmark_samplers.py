"""The benchmark at toy size: contenders have one law, a wrong one is caught. No time is judged."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import benchmark_sampler_peers as peers
import benchmark_samplers
from benchmark_harness import Contender

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOY = benchmark_samplers.Config(
    rounds=2,
    seconds=0.0,
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


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torchebm", "numpyro"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_peers")
def test_it_runs_without_peers_and_writes_its_card(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark_samplers, "PACKAGES", ("jaxebm", "jax", "a-package-that-is-missing"))
    output = tmp_path / "new" / "card.json"
    config = replace(TOY, targets=("gaussian",), samplers=("sgld",), output=output)
    card = benchmark_samplers.main(config)
    assert json.loads(output.read_text()) == json.loads(json.dumps(card))
    (rows,) = (workload["contenders"] for workload in card["workloads"])
    assert list(rows)[:3] == ["jaxebm, `sample`", "bare gradients, JAX", "BlackJAX"]
    assert all(len(row["rounds"]) == 2 for row in list(rows.values())[:3])
    assert all("is not installed" in rows[name]["missing"] for name in ("PyTorch, eager", "TorchEBM"))
    (differences,) = card["differences"]
    assert list(differences) == ["BlackJAX"]
    assert 0 < differences["BlackJAX"] < benchmark_samplers.LARGEST_SIGMA
    assert "torch is not installed: pip install torch" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="--overwrite"):
        benchmark_samplers.main(config)


@pytest.mark.parametrize(("target", "sampler"), PAIRS)
def test_contenders_have_the_same_energy_and_the_same_law(target: str, sampler: str):
    problem = benchmark_samplers.TARGETS[target](TOY)
    benchmark_samplers.check_same_energy(problem)
    workload = benchmark_samplers.make_workload(TOY, problem._replace(plain=None), sampler)
    present = [one for one in workload.contenders if one.run is not None and one.agrees]
    differences = benchmark_samplers.check_same_law(problem, workload._replace(contenders=present))
    assert list(differences) == [one.name for one in present[1:]]
    assert "BlackJAX" in differences
    # Times are of one transition, whoever makes it.
    assert len({one.items for one in workload.contenders if one.run is not None}) == 1


def test_bare_gradients_are_as_many_as_the_chains_take():
    problem = benchmark_samplers.TARGETS["gaussian"](TOY)
    for sampler, count in (("mala", TOY.num_steps), ("hmc", TOY.num_trajectories * TOY.num_leapfrog)):
        job = benchmark_samplers.make_job(TOY, problem, sampler)
        expected = problem.positions * (1 - 1e-3 * problem.params[None, :]) ** count
        np.testing.assert_allclose(peers.bare_gradients(job)(), expected, rtol=1e-5)


def test_another_law_is_caught():
    problem = benchmark_samplers.TARGETS["gaussian"](replace(TOY, num_chains=1000))
    noise = np.random.default_rng(0).standard_normal((5, 1000, 3)).astype(np.float32)

    def ends(number: int, scale: float = 1.0, shift: float = 0.0) -> Contender:
        last = problem.positions + shift + scale * jnp.asarray(noise[number])
        return Contender(f"number {number}", lambda: last)

    def check(*contenders: Contender) -> dict[str, float]:
        workload: Any = benchmark_samplers.Workload("law", contenders)
        return benchmark_samplers.check_same_law(problem, workload)

    assert check(ends(0), ends(1), Contender("missing", None))["number 1"] < 4
    check(ends(0), ends(2, scale=3.0)._replace(agrees=False))
    for wrong in (ends(2, scale=1.3), ends(3, shift=0.4), ends(4, shift=float("nan"))):
        with pytest.raises(RuntimeError, match=wrong.name):
            check(ends(0), ends(1), wrong)


def test_an_energy_that_differs_is_caught():
    problem = benchmark_samplers.TARGETS["gaussian"](TOY)
    plain = problem._replace(plain=lambda params, x: 1.001 * problem.energy(params, x))
    with pytest.raises(RuntimeError, match=r"energies by lax\.conv"):
        benchmark_samplers.check_same_energy(plain)
    pytest.importorskip("torch")
    in_torch = problem._replace(in_torch=lambda params: lambda x: 1.001 * problem.in_torch(params)(x))
    with pytest.raises(RuntimeError, match="energies in PyTorch"):
        benchmark_samplers.check_same_energy(in_torch)


BAD = [
    ({"targets": ("moon",)}, "targets"),
    ({"samplers": ()}, "samplers"),
    ({"num_leapfrog": 0}, "num_leapfrog"),
    ({"widths": (3, 0)}, "widths"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_settings_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        benchmark_samplers.Config(**changes).check()
