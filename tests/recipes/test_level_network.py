"""A recipe whose network is told noise levels: trained, reloaded, drawn from along its levels."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxebm
from jaxebm.energies import joint_energy_at
from jaxebm.objectives import Batch, Negatives, recovery_likelihood
from jaxebm.recipes import base_config, replace_settings, train
from jaxebm.recipes.build import hidden_kernels, make_network, make_objective, make_optimizer
from jaxebm.recipes.recovery import recovery_for
from jaxebm.report.chains import advance_along
from jaxebm.samplers import geometric_levels, power_levels
from jaxebm.training import Remedy

LEVELS = {
    "architecture.widths": (16,),
    "evaluation.sample_steps": (3, 6),
    "evaluation.likelihood_steps": 4,
    "evaluation.likelihood_chains": 4,
    "evaluation.long_run_factors": (2,),
    "run.twin": True,
}


@pytest.fixture(scope="module")
def trained(toy, blobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels") / "run"
    return train(toy(LEVELS | {"output": folder}, recipe="dual_score_matching"), blobs)


def test_the_card_has_samples_of_each_number_of_levels(trained):
    samples = trained.card["samples"]
    assert list(samples["fresh"]["by_steps"]) == ["3", "6"]
    assert all(found["finite"] == 1.0 for found in samples["fresh"]["by_steps"].values())
    assert samples["buffer"] is None
    assert trained.card["twin"]["accuracy"] > 0
    metrics = trained.result.history[-1]
    assert {"score_error", "level_error", "noisy_cross_entropy", "cross_entropy"} <= set(metrics)


def test_it_is_reloaded_and_draws_the_images_of_its_card(trained, blobs):
    model = jaxebm.load(str(trained.folder))
    chex.assert_trees_all_equal(model.params, trained.result.params)
    images = model.sample(jax.random.key(0), 6, label=[0, 1, 2, 0, 1, 2], num_steps=5)
    assert images.shape == (6, 4, 4, 1)
    low, high = blobs.space.value_range
    assert low <= images.min() < images.max() <= high
    again = model.sample(jax.random.key(0), 6, label=[0, 1, 2, 0, 1, 2], num_steps=5)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, model.sample(jax.random.key(0), 6, label=0, num_steps=5))
    assert model.sample(jax.random.key(1), 4, num_steps=5).shape == (4, 4, 4, 1)
    with pytest.raises(ValueError, match="num_steps=1"):
        model.sample(jax.random.key(1), 4, num_steps=1)
    # What it says of images is said at its lowest level.
    x = jnp.asarray(blobs.rescale(blobs.test.image[:3]))
    energy = functools.partial(joint_energy_at(model.network.logits_at), model.params)
    at_lowest = jnp.stack([energy(x[0], y, model.config.levels.lowest) for y in range(3)])
    chex.assert_trees_all_close(model.logits(model.params, x[0]), -at_lowest, rtol=1e-6)


def gaussian_logits(params, x, level):
    """Two classes of equal weight, N(-2, .5^2) and N(2, .5^2), under noise."""
    variance = 0.25 + level**2
    return -0.5 * (x[0] - params) ** 2 / variance - 0.5 * jnp.log(2 * jnp.pi * variance)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_guided_paths_draw_the_class_or_at_no_guidance_either(guidance):
    network = make_network(base_config("dual_score_matching"), 2)
    path = network.path._replace(
        logits_at=gaussian_logits, lowest=0.02, highest=40.0, guidance=guidance, state_clamp=None
    )
    n, labels = 2000, jnp.arange(2000) % 2
    starts = jax.random.normal(jax.random.key(0), (n, 1))
    run = advance_along(path)
    x = run(jax.random.key(1), jnp.array([-2.0, 2.0]), starts, labels, num_steps=200)
    x = np.asarray(x)[:, 0]
    right = np.mean((x > 0) == np.asarray(labels, bool))
    expected = 0.5 if guidance == 0.0 else 1.0
    assert abs(right - expected) < 5 * 0.5 / np.sqrt(n)
    if guidance == 1.0:  # p(x | y) itself
        signed = x * (2 * np.asarray(labels) - 1)
        assert abs(signed.mean() - 2.0) < 5 * 0.5 / np.sqrt(n) + 0.02
        assert abs(signed.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * n) + 0.02


def test_a_path_takes_one_gradient_a_step():
    seen = []

    def counted(params, x, level):
        jax.debug.callback(lambda level: seen.append(float(level)), level)
        return gaussian_logits(params, x, level)

    path = make_network(base_config("dual_score_matching"), 2).path._replace(logits_at=counted)
    run = advance_along(path)
    run(jax.random.key(0), jnp.zeros(2), jnp.ones((1, 1)), jnp.zeros(1, int), num_steps=7)
    jax.effects_barrier()
    assert len(seen) == 7
    np.testing.assert_allclose(sorted(seen)[::-1], power_levels(path.highest, path.lowest, 7), rtol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_muon_moves_the_kernels_of_hidden_layers_by_orthogonal_matrices(network):
    config = replace_settings(
        base_config("dual_score_matching", network=network),
        {
            "architecture.widths": (16, 16),
            "architecture.channels": (4, 8),
            "architecture.hidden_widths": (16,),
            "optimizer.warmup_steps": 0,
            "optimizer.schedule": "constant",
        },
    )
    params = make_network(config, 3).init(jax.random.key(0), jnp.zeros((8, 8, 1)))
    layers = hidden_kernels(params)["params"]
    hidden = {name for name, entry in layers.items() if "kernel" in entry and entry["kernel"] is not None}
    expected = {
        "mlp": {"hidden_0", "hidden_1"},
        "convnet": {"block_0_0", "level_1", "block_1_0", "hidden_0"},
    }[network]
    assert hidden == expected
    optimizer = make_optimizer(config, 100)
    gradient = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), params
    )
    update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    kernel = np.asarray(update["params"]["hidden_0"]["kernel"], np.float64)
    values = np.linalg.svd(kernel, compute_uv=False)
    assert values.max() < 2 * values.min()  # five Newton-Schulz steps come so near
    rate = config.optimizer.learning_rate
    for layer in expected:
        moved = np.asarray(update["params"][layer]["kernel"])
        assert np.sqrt(np.mean(moved**2)) == pytest.approx(rate, rel=0.35)
    # The first update of Adam with Nesterov's momentum: b1 / (1 + b1) + 1 times the sign of the gradient.
    moved = np.asarray(update["params"]["output"]["kernel"])
    np.testing.assert_allclose(np.abs(moved), rate * (0.9 / 1.9 + 1), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels.lowest": 0.0}, "levels.lowest=0.0"),
        ({"levels.highest": 0.01}, "levels.highest=0.01: above levels.lowest=0.06"),
        ({"levels.median": -1.0}, "levels.median=-1.0"),
        ({"levels.guidance": -1.0}, "levels.guidance=-1.0"),
        ({"levels.data_mean": float("nan")}, "levels.data_mean"),
        ({"network": "wide-resnet"}, "network=wide-resnet is not told noise levels"),
        ({"architecture.norm": "group"}, "architecture.norm and spectral_norm"),
        ({"architecture.blocks": (1, 1, 1)}, "architecture.blocks=(1, 1, 1): more than the 2"),
        ({"architecture.blocks": (-1,)}, "architecture.blocks"),
        ({"architecture.hidden_widths": (0,)}, "architecture.hidden_widths=(0,)"),
        ({"sampler.kernel": "heated"}, "sampler.kernel=heated"),
        ({"sampler.num_steps": 1}, "sampler.num_steps is the number of noise levels"),
        ({"levels.count": 5}, "levels.count is for objective.method=recovery-likelihood"),
        ({"levels.step_factor": 0.1}, "levels.step_factor is for objective.method=recovery-likelihood"),
        ({"evaluation.sample_steps": (1, 5)}, "evaluation.sample_steps"),
        ({"objective.coupling": "independent"}, "objective.coupling is for"),
        ({"objective.energy_l2": 0.1}, "objective.energy_l2"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    config = base_config("dual_score_matching", network="convnet")
    config.check()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace_settings(config, changes).check()
    assert message in str(error.value)


RECOVERED = {
    "levels.count": 3,
    "evaluation.sample_steps": (3,),
    "architecture.widths": (8,),
    "data.batch_size": 4,
    "data.max_shift": 0.0,
}


def test_recovery_likelihood_is_learnt_at_the_levels_of_the_settings(toy, blobs):
    config = toy(RECOVERED | {"levels.step_factor": 0.7, "objective.p_xy_weight": 2.0}, recipe="drl")
    network = make_network(config, 3)
    params = network.init(jax.random.key(0), jnp.zeros((4, 4, 1)))
    x, labels = jnp.asarray(blobs.rescale(blobs.train.image[:4])), jnp.asarray(blobs.train.label[:4])
    batch, key, none = Batch(x, labels, x), jax.random.key(1), Negatives(None, None)
    levels = geometric_levels(config.levels.highest, config.levels.lowest, 3)
    plain = recovery_likelihood(
        joint_energy_at(network.logits_at), levels=levels, num_steps=2, step_factor=0.7, weight=2.0
    )
    alone = replace_settings(config, {"objective.p_y_given_x_weight": 0.0})
    chex.assert_trees_all_equal(
        make_objective(alone, network, (4, 4, 1)).loss(params, key, batch, none),
        plain.loss(params, key, batch, none),
    )
    hybrid, found = make_objective(config, network, (4, 4, 1)).loss(params, key, batch, none)
    expected = plain.loss(params, key, batch, none)[0] + 0.1 * found["cross_entropy"]
    assert float(hybrid) == pytest.approx(float(expected), rel=1e-5)


def test_a_recovering_model_is_reloaded_and_draws_through_all_its_levels(toy, blobs, tmp_path):
    run = train(toy(RECOVERED | {"report": False, "output": tmp_path / "run"}, recipe="drl"), blobs)
    assert {"displacement", "energy_gap", "cross_entropy"} <= set(run.result.history[-1])
    model = jaxebm.load(run.folder)
    path = model.network.path
    assert (path.num_levels, path.least_steps, path.mean) == (3, 3, -0.39)
    images = model.sample(jax.random.key(0), 6, label=[0, 1, 2, 0, 1, 2], num_steps=4)
    assert images.shape == (6, 4, 4, 1)
    low, high = blobs.space.value_range
    assert low <= images.min() < images.max() <= high
    with pytest.raises(ValueError, match="num_steps=2: num_steps must be an integer of at least 3"):
        model.sample(jax.random.key(0), 1, num_steps=2)


def test_a_remedy_takes_more_and_smaller_steps_of_recovery(toy):
    config = toy(RECOVERED, recipe="drl")
    remade = []
    recovery = recovery_for(config, remade.append)
    assert recovery is not None
    recovery.remake(Remedy("more, smaller steps", sampler_steps_factor=4))
    assert remade[0].sampler.num_steps == 4 * config.sampler.num_steps
    assert remade[0].levels.step_factor == config.levels.step_factor / 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels.count": 1}, "levels.count=1"),
        ({"levels.step_factor": 2.0}, "levels.step_factor=2.0"),
        ({"levels.lowest": 7.0}, "levels.highest=6.0: above levels.lowest=7.0"),
        ({"levels.median": 1.0}, "levels.median is for objective.method=dual-score-matching"),
        ({"levels.derivative_weight": 1.0}, "levels.derivative_weight is for objective.method=dual"),
        ({"levels.p_y_given_x_weight": 0.0}, "levels.p_y_given_x_weight is for objective.method=dual"),
        ({"evaluation.sample_steps": (6, 90)}, "evaluation.sample_steps=6"),
        ({"sampler.initial": "uniform"}, "sampler.initial=uniform"),
        ({"sampler.kernel": "heated"}, "sampler.kernel=heated: with objective.method=recovery-likelihood"),
        ({"objective.energy_l2": 0.1}, "objective.energy_l2"),
        ({"objective.contrast": "binary"}, "objective.contrast=binary is a loss of objective.method=chains"),
        ({"objective.matching_scale": 2.0}, "objective.matching_scale is for"),
        ({"objective.last_step_weight": 1.0}, "objective.last_step_weight"),
        ({"architecture.spectral_norm": True}, "architecture.norm and spectral_norm"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_recovery_likelihood_are_refused(changes, message):
    config = base_config("drl", network="convnet")
    config.check()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace_settings(config, changes).check()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels.lowest": 0.1}, "levels.lowest is for objective.method=dual-score-matching"),
        (
            {"architecture.blocks": (2,)},
            "architecture.blocks is for network=convnet with objective.method=dual",
        ),
    ],
    ids=str,
)
def test_settings_of_levels_are_refused_without_levels(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        replace_settings(base_config(network="convnet"), changes).check()
    assert message in str(error.value)
