"""Bags of digits: drawn as promised, weighed as the layer weighs them, and compared at toy size."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import hopfield_mil
from jaxebm.recipes.command_line import as_json
from jaxebm.training import open_run
from memories.bags import Bags, draw_bags, within_bag_auroc
from memories.poolings import BagClassifier, instance_weights

pytestmark = pytest.mark.usefixtures("cheap_compilation", "kept_programs")


def some_bags(num_bags: int = 40) -> Bags:
    image = jax.random.uniform(jax.random.key(0), (60, 4, 4, 1), minval=-1.0)
    return draw_bags((3,), image, np.arange(60) % 10, num_bags, target=9, bag_size=(4, 9), max_targets=2)


def test_a_bag_is_positive_exactly_if_it_holds_a_target():
    bags = some_bags()
    size, targets = np.asarray(bags.mask).sum(1), np.asarray(bags.is_target).sum(1)
    assert set(size) == set(range(4, 10))
    np.testing.assert_array_equal(bags.label, targets > 0)
    assert set(targets) == {0, 1, 2}
    assert np.sum(bags.label) == 20
    is_nine = np.asarray(bags.member) % 10 == 9
    np.testing.assert_array_equal(bags.is_target, is_nine & np.asarray(bags.mask))
    for member, mask in zip(np.asarray(bags.member), np.asarray(bags.mask), strict=True):
        assert len(set(member[mask])) == mask.sum()
    with pytest.raises(ValueError, match="cannot fill"):
        draw_bags((3,), bags.image, np.arange(60) % 10, 4, target=11, bag_size=(4, 9), max_targets=1)


@pytest.mark.parametrize("pooling", ["hopfield", "hopfield_sparse", "attention"])
def test_the_weights_are_those_that_the_pooling_used(pooling: str):
    """Logit = head(W_o sum_n w_n W_v h_n): putting the weights in by hand gives the model's logits."""
    bags = some_bags()
    model = BagClassifier(pooling, (16, 8), num_heads=1, beta=2.0)
    inputs = bags.image[bags.member], bags.mask
    params = jax.jit(model.init)(jax.random.key(1), *inputs)
    weights = jax.jit(partial(instance_weights, model))(params, bags)
    assert weights is not None
    np.testing.assert_allclose(np.sum(weights, axis=1), 1.0, rtol=1e-5)
    assert np.all(np.asarray(weights)[~np.asarray(bags.mask)] == 0)
    assert np.std(np.asarray(weights)[np.asarray(bags.mask)]) > 0.01  # far from the plain mean

    look = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    logits, state = jax.jit(look)(params, *inputs)
    seen = state["intermediates"]
    at = seen["pooling"]["association"] if pooling != "attention" else seen
    maps = params["params"]["pooling"]["association"] if pooling != "attention" else params["params"]
    maps, head = jax.tree.map(np.asarray, (maps, params["params"]["head"]))
    values = np.asarray(at["value"]["__call__"][0]).reshape(*bags.mask.shape, 8)
    pooled = np.einsum("bn,bnd->bd", weights, values)
    out = pooled @ maps["out"]["kernel"].reshape(8, 8) + maps["out"]["bias"]
    by_hand = (out @ head["kernel"] + head["bias"])[:, 0]
    np.testing.assert_allclose(by_hand, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["hopfield", "attention", "max"])
def test_padding_and_order_do_not_matter(pooling: str):
    bags = some_bags()
    model = BagClassifier(pooling, (16, 8), num_heads=2, beta=2.0)
    image, member, mask = map(np.asarray, (bags.image, bags.member, bags.mask))
    params = jax.jit(model.init)(jax.random.key(1), image[member], mask)
    predict = jax.jit(model.apply)
    logits = predict(params, image[member], mask)
    other = np.where(mask, member, 17)  # another image in the place of padding
    backwards = predict(params, image[other][:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(backwards, logits, rtol=1e-4, atol=1e-5)


def test_auroc_within_bags():
    bags = some_bags()
    assert within_bag_auroc(np.asarray(bags.is_target, float), bags) == 1.0
    assert within_bag_auroc(-np.asarray(bags.is_target, float), bags) == 0.0
    assert within_bag_auroc(np.asarray(bags.mask, float), bags) == 0.5


TOY = hopfield_mil.Config(
    poolings=("hopfield", "mean"),
    seeds=(0, 1),
    progress=False,
    train_bags=60,
    judged_bags=40,
    bag_size=(2, 4),
    widths=(32, 16),
    learning_rates=(3e-3,),
    weight_decays=(0.03,),
    updates=200,
    stops=2,
)


def test_it_compares_poolings(tmp_path: Path):
    config = replace(TOY, output=tmp_path / "run")
    card = hopfield_mil.main(config)
    assert json.loads((config.output / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["poolings"]["hopfield"]["accuracy"]["mean"] > 0.7  # two to four images: easy; chance is 0.5
    assert len(card["poolings"]["mean"]["auroc"]["by_seed"]) == 2
    assert "instance_auroc" not in card["poolings"]["mean"]
    assert "| mean | " in (config.output / "card.md").read_text()
    assert len((config.output / "metrics.jsonl").read_text().splitlines()) == 4
    for name in ("accuracy.png", "attention.png"):
        assert (config.output / name).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_repeats_no_finished_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(TOY, poolings=("mean",), output=tmp_path / "run", resume=True)
    run = open_run(config.output, as_json(config))
    known = {"step": 1, "trial": "mean 0 (0.003, 0.03)", "validation_accuracy": [0.25, 1.0]}
    run.append_metrics(known)
    metrics = config.output / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 2, "tri')  # killed while it wrote the second
    run_seeds = []

    def trial(seed: int, *_) -> tuple[None, np.ndarray]:
        run_seeds.append(seed)
        return None, np.array([0.75, 0.5])

    def judge(config, model, trial, bags, chosen):
        return {"accuracy": hopfield_mil.spread([0.5, 0.5]), "parameters": 1, "chosen": chosen}, None

    monkeypatch.setattr(hopfield_mil, "make_trial", lambda model, **_: trial)
    monkeypatch.setattr(hopfield_mil, "judge", judge)
    chosen = hopfield_mil.main(config)["poolings"]["mean"]["chosen"]
    assert run_seeds == [1]
    assert run.read_metrics()[0] == known
    assert run.read_metrics()[1]["validation_accuracy"] == [0.75, 0.5]
    expected = {"learning_rate": 0.003, "weight_decay": 0.03, "updates": 200, "validation_accuracy": 0.75}
    assert chosen == expected


BAD = [
    {"poolings": ("median",)},
    {"poolings": ()},
    {"seeds": (1, 1)},
    {"bag_size": (1, 8)},
    {"widths": (64, 12)},
    {"updates": 1000, "stops": 7},
    {"batch_size": 151},
    {"beta": 0.0},
]


@pytest.mark.parametrize("changes", BAD)
def test_bad_settings_are_refused(changes: dict):
    with pytest.raises(ValueError, match=next(iter(changes))):
        hopfield_mil.Config(**changes).check()
