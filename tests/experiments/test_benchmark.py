"""The one command at toy size: what it writes, what it refuses, what scaling and utilisation count."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import benchmark
from benchmarks import curves, hopfield, samplers, suite, training, utilisation
from jaxebm.energies import WideResNet
from jaxebm.recipes.command_line import run_experiment

pytestmark = pytest.mark.usefixtures("cheap_compilation")

TOY = benchmark.Config(
    rounds=2,
    seconds=0.0,
    sampling=samplers.Sizes(num_steps=3, num_chains=300, widths=(4,), torch_compile=False),
    jem=training.JemSizes(
        batch_size=4, sampler_steps=2, channels=(3,), buffer_size=20, num_examples=10, updates=2
    ),
    memories=hopfield.Sizes(batch=6, dimension=12, num_memories=9, num_sparse=5, num_spins=30, num_loop=3),
    wide=utilisation.WideSizes(
        depth=10, width=1, batch_size=2, sampler_steps=2, pixels=4, matrix_size=32, copy_megabytes=1
    ),
    curve=curves.CurveSizes(
        chains=(2, 4), steps=(2, 40), width=(2,), devices=(2,), at=curves.Point(4, 3, 2, 1, 4)
    ),
)


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torchebm", "numpyro", "hamux", "equinox"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    peers = {"samplers": ("a-package-that-is-missing",), "hopfield": ()}
    monkeypatch.setattr(suite, "PACKAGES", peers)


@pytest.mark.usefixtures("without_peers")
def test_it_runs_without_peers_and_writes_card_tables_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    output = tmp_path / "new" / "card.json"
    config = replace(TOY, only=("sgld", "curve-steps"), output=output)
    card = benchmark.main(config)
    assert json.loads(output.read_text())["workloads"] == json.loads(json.dumps(card["workloads"]))
    rows = card["workloads"]["sgld"]["contenders"]
    assert "is not installed" in rows["PyTorch, eager"]["missing"]
    assert len(rows["bare gradients, JAX"]["rounds"]) == 2
    judged = {found["wanted"]: found["met"] for found in card["aims"]}
    assert {met is None for wanted, met in judged.items() if "PyTorch" in wanted} == {True}
    assert {met is None for wanted, met in judged.items() if "bare" in wanted} == {False}
    printed = capsys.readouterr().out
    assert "not measured" in printed
    assert "torch is not installed: pip install torch" in printed
    assert "a-package-that-is-missing missing" in printed
    (sigma,) = card["workloads"]["sgld"]["differences"].values()
    assert f"between distributions of chains: {sigma:.1f} standard errors" in printed
    assert output.with_suffix(".md").read_text().strip() in printed
    assert output.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(FileExistsError, match="--overwrite"):
        benchmark.main(config)

    short, long = card["curves"]["steps"]
    # A chain's memory does not grow with its steps, but for their numbers.
    assert long["peak_bytes"] - short["peak_bytes"] <= 4 * (long["steps"] - short["steps"])
    assert (long["steps"], long["chains"], long["collectives"]) == (40, 4, 0)

    (two,) = curves.measure_curve("devices", TOY.curve, rounds=1)
    assert (two["devices"], two["collectives"]) == (2, 0)
    assert two["operations"] == pytest.approx(long["operations"] / 2, rel=0.05)
    assert "share" in curves.as_markdown({"devices": [two]})


@pytest.mark.usefixtures("without_peers")
def test_memories_are_timed_and_compilations_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "card.json"
    only = ("retrieval", "compilations", "sparse")
    card = benchmark.main(replace(TOY, only=only, output=output))
    assert json.loads(output.read_text()) == json.loads(json.dumps(card, default=str))
    assert card["compilations"] == {"retrieve": 1, "retrieve_asynchronously": 1}
    assert list(card["workloads"]) == ["retrieval", "sparse"]
    for workload in card["workloads"].values():
        first, *others = workload["contenders"].values()
        assert first["ratio_range"] == [1, 1]
        for row in others:
            assert "is not installed: pip install" in row.get("missing", "") or len(row["rounds"]) == 2
    printed = capsys.readouterr().out
    assert "Programs compiled for 5 memories of one shape, `retrieve`: 1" in printed
    assert "standard errors" not in printed


def test_groups_stand_for_their_parts():
    assert suite.expand(("hopfield",)) == suite.GROUPS["hopfield"]
    assert suite.expand(("jem-32", "training", "sgld")) == ("jem-32", "jem-8", "sgld")
    assert len(set(suite.PARTS)) == len(suite.PARTS)
    assert set(suite.DEFAULT) <= set(suite.PARTS)
    assert {"hamux", "torch"} <= set(suite.packages_of(("sparse",)))
    assert "numpyro" not in suite.packages_of(("sparse",))


def test_an_existing_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "card.json").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        run_experiment(benchmark.Config, benchmark.main, ["--output", str(tmp_path / "card.json")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "card.json").read_text() == "mine"


def test_collectives_are_seen():
    text = """
      %all-reduce.1 = f32[8]{0} all-reduce(%x), channel_id=1
      %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
      ROOT %add = f32[8]{0} add(%all-reduce.1, %all-reduce.1)"""
    assert sorted(curves.COLLECTIVES.findall(text)) == ["all-gather", "all-reduce"]


def test_utilisation_counts_the_model_and_runs(tmp_path: Path):
    sizes = replace(TOY.wide, profile=tmp_path / "trace")
    found = utilisation.measure_utilisation(sizes, rounds=1)
    # Stem, then per group: first, second and (where shapes change) 1x1 shortcut; 4, 2 and 1 pixels square.
    stem, first = 9 * 3 * 16 * 16, 2 * 9 * 16 * 16 * 16
    second, third = 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32), 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64
    forward = 2 * (stem + first + second + third + 64 * 10)
    assert found["operations"] == 2 * sizes.batch_size * forward
    assert found["chain"]["of_peak"] == pytest.approx(
        found["operations"] / found["chain"]["seconds"] / found["peak"]
    )
    assert min(found["bandwidth"], found["chain"]["of_bandwidth"], found["gradients"]["of_peak"]) > 0
    assert any((tmp_path / "trace").rglob("*.xplane.pb"))
    assert "this is a CPU" in utilisation.as_markdown(found)
    judged = utilisation.as_markdown(found | {"platform": "gpu"})
    assert judged.endswith("met." if found["chain"]["of_peak"] >= 0.5 else "missed.")


def test_wide_operations_are_those_of_the_paper_network():
    params = jax.eval_shape(WideResNet(10).init, jax.random.key(0), jnp.zeros((32, 32, 3)))
    # WRN-28-10 takes 5.2 billion multiplications an image (Zagoruyko & Komodakis 2016: 5.2e9).
    assert utilisation.count_operations(params, 32) / 2 == pytest.approx(5.25e9, rel=0.01)


BAD = [
    ({"only": ("jem-9",)}, "only"),
    ({"only": ()}, "nothing"),
    ({"only": ("sgld", "curve-depth")}, "unknown curve-depth"),
    ({"rounds": 0}, "rounds"),
    ({"memories": hopfield.Sizes(flipped=0.7)}, "flipped"),
    ({"threads": 0}, "threads"),
    ({"jem": training.JemSizes(updates=0)}, "updates"),
    ({"sampling": samplers.Sizes(widths=(0,))}, "widths"),
    ({"wide": utilisation.WideSizes(matrix_size=0)}, "matrix_size"),
    ({"curve": curves.CurveSizes(devices=(3,))}, "devices"),
]


@pytest.mark.parametrize(("changes", "name"), BAD)
def test_bad_settings_are_refused(changes: dict, name: str):
    with pytest.raises(ValueError, match=name):
        replace(TOY, **changes).check()
