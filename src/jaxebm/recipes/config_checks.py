"""Checks of a configuration: each setting by itself, and with the others."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxebm import checks
from jaxebm.energies.level_networks import check_blocks
from jaxebm.recipes.devices import GENERATORS

if TYPE_CHECKING:
    from jaxebm.recipes.config import Config

__all__ = ["NEGATIVES", "check_config"]

NEGATIVES = tuple(
    f"sampler.{name}"
    for name in ("negatives", "num_chains", "buffer_size", "restart_probability", "augment_buffer")
)
"""Settings of the chains of objective.method=chains alone."""


def check_config(config: "Config") -> None:
    """Raises ``ValueError`` naming the first setting that is out of range or does not fit another."""
    checks.positive_integer("epochs", config.epochs)
    checks.seed("seed", config.seed)
    checks.text("dataset", config.dataset)
    for name in ("architecture.widths", "architecture.channels"):
        sizes = _setting(config, name)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{name}={sizes}: a positive integer for each of one or more layers is needed.")
    for name in (
        "data.batch_size",
        "sampler.num_chains",
        "sampler.num_steps",
        "sampler.inner_steps",
        "sampler.buffer_size",
        "objective.adversarial_steps",
        "run.steps_per_dispatch",
        "run.checkpoint_every",
        "run.keep_checkpoints",
    ):
        checks.positive_integer(name, _setting(config, name))
    for name in (
        "devices",
        "data.labels_per_class",
        "run.resume_step",
        "sampler.stop_after",
        "parallel.strata",
        "parallel.processes",
    ):
        if _setting(config, name) is not None:
            checks.positive_integer(name, _setting(config, name))
    for name in (
        "optimizer.learning_rate",
        "optimizer.decay_factor",
        "sampler.step_size",
        "objective.matching_scale",
        "levels.lowest",
        "levels.highest",
        "levels.median",
        "levels.spread",
        "levels.data_scale",
        "levels.step_factor",
    ):
        checks.positive(name, _setting(config, name))
    for name in (
        "sampler.noise",
        "data.noise",
        "data.max_shift",
        "data.max_shift_p_x",
        "data.crop_padding",
        "optimizer.weight_decay",
        "optimizer.sharpness_rho",
        "objective.energy_l2",
        "objective.adversarial_radius",
        "objective.last_step_weight",
        "objective.neighbour_entropy_weight",
        "objective.p_y_given_x_weight",
        "objective.p_x_weight",
        "objective.p_xy_weight",
        "run.pretrain_epochs",
        "run.telemetry_every",
        "optimizer.warmup_steps",
        "sampler.cold_steps",
        "sampler.heating_steps",
        "levels.derivative_weight",
        "levels.p_y_given_x_weight",
        "levels.guidance",
    ):
        checks.non_negative(name, _setting(config, name))
    for name in ("sampler.gradient_clip", "optimizer.gradient_clip_norm"):
        if _setting(config, name) is not None:
            checks.positive(name, _setting(config, name))
    decays = list(config.optimizer.decay_epochs)
    if decays != sorted(set(decays)) or (decays and decays[0] < 1):
        raise ValueError(f"optimizer.decay_epochs={decays}: increasing epochs, at least 1, are needed.")
    if config.parallel.generator not in GENERATORS:
        raise ValueError(
            f"parallel.generator={config.parallel.generator!r}: choose one of {', '.join(GENERATORS)}."
        )
    for name in (
        "optimizer.momentum",
        "optimizer.adam_b1",
        "optimizer.learning_rate_floor",
        "optimizer.ema_decay",
        "objective.label_smoothing",
        "sampler.restart_probability",
    ):
        checks.in_range(name, _setting(config, name), 0.0, 1.0)
    if config.optimizer.adam_b1 == 1.0:  # the first moment is divided by 1 - adam_b1^n
        raise ValueError("optimizer.adam_b1=1.0: optimizer.adam_b1 must be below 1.")
    if config.run.resume_step is not None and not config.resume:
        raise ValueError("run.resume_step is the checkpoint to go on from: it needs resume=True.")
    _check_network(config)
    _check_task(config)
    _check_sampler(config)


def _setting(config: "Config", name: str) -> Any:
    group, _, setting = name.rpartition(".")
    return getattr(getattr(config, group) if group else config, setting)


def _check_network(config: "Config") -> None:
    parts = config.architecture
    if parts.remat and config.network != "wide-resnet":
        raise ValueError(f"architecture.remat is for network=wide-resnet; {config.network} has no blocks.")
    if config.network == "mlp" and (parts.norm != "none" or parts.spectral_norm):
        wanted = "spectral_norm" if parts.spectral_norm else f"norm={parts.norm}"
        raise ValueError(
            f"architecture.{wanted} is for network=convnet or wide-resnet, not mlp; for recipe "
            f"{config.recipe} with mlp set architecture.norm=none and architecture.spectral_norm=False."
        )
    if parts.freeze_statistics and parts.norm != "batch":
        raise ValueError("architecture.freeze_statistics is about batch normalisation: norm=batch.")
    if parts.freeze_statistics and parts.spectral_norm:
        raise ValueError(
            "architecture.freeze_statistics would freeze what spectral_norm measures: leave one out."
        )
    if parts.freeze_statistics and config.generative and config.run.pretrain_epochs == 0:
        raise ValueError(
            "architecture.freeze_statistics needs statistics: set run.pretrain_epochs to at least 1."
        )
    if config.optimizer.schedule == "steps" and not config.optimizer.decay_epochs:
        raise ValueError("optimizer.schedule=steps needs optimizer.decay_epochs, such as 60 90.")


def _check_task(config: "Config") -> None:
    weights = config.objective
    if not (config.generative or weights.p_y_given_x_weight):
        raise ValueError(
            "objective.p_y_given_x_weight, p_x_weight and p_xy_weight are all 0: nothing would be learnt."
        )
    if config.task != "unconditional":
        return
    if weights.p_y_given_x_weight or weights.p_xy_weight or weights.p_x_weight == 0:
        raise ValueError(
            "task=unconditional knows no classes: set objective.p_x_weight=1, p_y_given_x_weight=0 and "
            "p_xy_weight=0."
        )
    if config.run.select == "best":
        raise ValueError("run.select=best goes by the validation NLL of classes: use select=last.")
    for name in (
        "data.labels_per_class",
        "objective.adversarial_radius",
        "run.twin",
        "run.pretrain_epochs",
    ):
        if _setting(config, name):
            raise ValueError(f"{name} is about classes, which task=unconditional does not learn.")
    if config.sampler.chains == "conditional" or config.sampler.initial == "class-gaussian":
        raise ValueError(
            "task=unconditional knows no classes: use sampler.chains=marginal, and "
            "sampler.initial=uniform or gaussian."
        )


def _check_sampler(config: "Config") -> None:
    sampler, weights = config.sampler, config.objective
    if weights.p_xy_weight > 0 and sampler.chains != "conditional":
        raise ValueError("objective.p_xy_weight needs samples of p(x, y): set sampler.chains=conditional.")
    if sampler.kernel == "descent" and (sampler.noise > 0 or sampler.gradient_clip is not None):
        raise ValueError(
            "sampler.kernel=descent takes steps of one length without noise: use sampler.noise=0 and "
            "sampler.gradient_clip=None."
        )
    if weights.last_step_weight > 0 and not config.uses_chains:
        raise ValueError(
            "objective.last_step_weight is about the chains of training: set objective.p_x_weight "
            "above 0 and objective.method=chains."
        )
    if sampler.kernel != "heated":
        names = [f"sampler.{name}" for name in ("cold_steps", "heating_steps", "stop_after")]
        _check_unused(config, names, "sampler.kernel=heated")
    elif sampler.noise == 0 and (sampler.cold_steps or sampler.heating_steps):
        raise ValueError(
            "sampler.cold_steps and heating_steps say when the noise of sampler.kernel=heated begins: it has "
            "none, sampler.noise=0."
        )
    if weights.method != "chains":
        _check_unused(config, NEGATIVES, "objective.method=chains")
        _check_matching(config)
    if config.uses_levels:
        _check_levels(config)
    else:
        names = [f"levels.{entry.name}" for entry in dataclasses.fields(config.levels)]
        _check_unused(config, names, "objective.method=dual-score-matching and recovery-likelihood")
    if not config.uses_levels or config.network != "convnet":
        names = ["architecture.blocks", "architecture.hidden_widths"]
        purpose = "network=convnet with objective.method=dual-score-matching or recovery-likelihood"
        _check_unused(config, names, purpose)
    if weights.method not in ("energy-matching", "equilibrium-matching"):
        names = ["objective.matching_scale", "objective.coupling"]
        _check_unused(config, names, "objective.method=energy-matching and equilibrium-matching")
    if (
        weights.method == "chains"
        and sampler.negatives == "persistent"
        and sampler.buffer_size < sampler.num_chains
    ):
        raise ValueError(
            f"sampler.buffer_size={sampler.buffer_size} is smaller than "
            f"sampler.num_chains={sampler.num_chains}: every chain needs a slot of its own; use a "
            f"buffer_size of at least {sampler.num_chains}."
        )


def _check_matching(config: "Config") -> None:
    weights = config.objective
    if weights.p_x_weight > 0 and weights.p_xy_weight > 0:
        raise ValueError(
            f"objective.method={weights.method} learns one energy: set objective.p_xy_weight=0 for E(x), or "
            "objective.p_x_weight=0 for E(x, y)."
        )
    for name, reason in (
        ("energy_l2", "has no term of that kind"),
        ("adversarial_radius", "learns the examples as they are"),
    ):
        if getattr(weights, name):
            raise ValueError(f"objective.{name}: objective.method={weights.method} {reason}; set it to 0.")
    if weights.p_xy_weight > 0 and config.data.labels_per_class is not None:
        raise ValueError(
            f"data.labels_per_class: objective.method={weights.method} learns E(x, y) from labelled images "
            "alone; for the others set objective.p_x_weight=1, p_xy_weight=0, sampler.chains=marginal."
        )
    if weights.contrast != "likelihood":
        raise ValueError(
            f"objective.contrast={weights.contrast} is a loss of objective.method=chains, and not of "
            f"objective.method={weights.method}."
        )
    if config.architecture.norm == "batch":
        raise ValueError(
            f"architecture.norm=batch: the slope of E(x) at one x depends on the batch then, and "
            f"objective.method={weights.method} learns by slopes; use none or group."
        )


def _check_levels(config: "Config") -> None:
    levels, parts, method = config.levels, config.architecture, config.objective.method
    if levels.lowest >= levels.highest:
        raise ValueError(f"levels.highest={levels.highest}: above levels.lowest={levels.lowest} is needed.")
    checks.number("levels.data_mean", levels.data_mean)
    if config.network not in ("mlp", "convnet"):
        raise ValueError(
            f"network={config.network} is not told noise levels: objective.method={method} needs mlp or "
            "convnet."
        )
    if config.network == "convnet":
        check_blocks(parts.blocks, parts.channels, name="architecture.blocks")
        if any(width < 1 for width in parts.hidden_widths):
            raise ValueError(
                f"architecture.hidden_widths={parts.hidden_widths}: positive integers are needed."
            )
    if parts.norm != "none" or parts.spectral_norm:
        raise ValueError(
            "architecture.norm and spectral_norm: networks that are told noise levels have neither; use "
            "norm=none and spectral_norm=False."
        )
    if config.sampler.kernel not in ("sgld", "descent"):
        raise ValueError(
            f"sampler.kernel={config.sampler.kernel}: with objective.method={method} images are drawn along "
            "the levels, and the kernel refines images at the lowest one: use sgld or descent."
        )
    if config.sampler.initial != "normal":
        raise ValueError(
            f"sampler.initial={config.sampler.initial}: with objective.method={method} images are drawn from "
            "the noise of the highest level: use normal."
        )
    if config.recovers:
        _check_recovery(config)
    else:
        _check_denoising(config)


def _check_denoising(config: "Config") -> None:
    names = ["levels.count", "levels.step_factor"]
    _check_unused(config, names, "objective.method=recovery-likelihood")
    if config.sampler.num_steps < 2:
        raise ValueError(
            "sampler.num_steps is the number of noise levels of a sample: at least 2 are needed."
        )
    if min(config.evaluation.sample_steps) < 2:
        raise ValueError("evaluation.sample_steps are numbers of noise levels: at least 2 are needed.")


def _check_recovery(config: "Config") -> None:
    levels = config.levels
    names = ("median", "spread", "derivative_weight", "p_y_given_x_weight")
    _check_unused(config, [f"levels.{name}" for name in names], "objective.method=dual-score-matching")
    checks.integer("levels.count", levels.count, 2)
    checks.below_two("levels.step_factor", levels.step_factor, "longer steps of the chains diverge")
    least = min(config.evaluation.sample_steps)
    if least < levels.count:
        raise ValueError(
            f"evaluation.sample_steps={least}: chains through levels.count={levels.count} levels take at "
            f"least {levels.count} steps."
        )


def _check_unused(config: "Config", names: Sequence[str], purpose: str) -> None:
    """Raises if a setting that serves another purpose differs from its default."""
    defaults = type(config)()
    for name in names:
        if _setting(config, name) != _setting(defaults, name):
            raise ValueError(f"{name} is for {purpose}.")
