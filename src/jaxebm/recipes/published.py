"""Published training recipes, as settings that they change in a configuration, by dotted name.

A recipe has two parts. Its *method* is the contribution of the paper: sampler, buffer, objective,
normalisation. Its *learning* is how the paper trained its network: size, optimiser, learning rate, epochs. On
the paper's network (``network="wide-resnet"``) both apply, with the numbers of the paper. On another network
only the method applies, with the learning rate and epochs of that network. Any setting overrides both, so an
ablation changes one setting.

Pixels lie in [-1, 1] here. Values of a paper for pixels in [0, 1] are converted: lengths are multiplied by 2,
gradients by 1/2, and step sizes, which have the unit of position squared per energy, by 4.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxebm import checks
from jaxebm.recipes.config import Config
from jaxebm.recipes.config_checks import NEGATIVES
from jaxebm.recipes.serialisation import replace_settings

__all__ = ["RECIPES", "Recipe", "base_config"]


class Recipe(NamedTuple):
    """The recipe of a paper, as values of settings.

    Attributes:
      method: settings for every network.
      learning: settings for the paper's network, `wide-resnet`.
      reference: the paper, with the sections.
      convnet: settings for `convnet` alone.
      larger: settings for `convnet` on the data sets of `CONVNET`, images larger than digits.
      colour: settings for `convnet` on CIFAR-10, above these.
      networks: the networks that it has.
    """

    method: Mapping[str, Any]
    learning: Mapping[str, Any]
    reference: str
    convnet: Mapping[str, Any] = {}
    larger: Mapping[str, Any] = {}
    colour: Mapping[str, Any] = {}
    networks: tuple[str, ...] = ("mlp", "convnet", "wide-resnet")


PLAIN = {
    "objective.p_y_given_x_weight": 1.0,
    "objective.p_x_weight": 1.0,
    "objective.p_xy_weight": 0.0,
    "sampler.chains": "marginal",
}
"""log p(y|x) + log p(x), equation 6 of JEM."""
PROXIMAL = {
    **PLAIN,
    "sampler.noise": 0.0,
    "sampler.gradient_clip": 1.0,
    "sampler.clamp": True,
    "sampler.initial": "class-gaussian",
    "sampler.buffer_size": 10_000,
    "sampler.restart_probability": 0.05,
    "architecture.norm": "batch",
}
"""The "proximal" steps of JEM++ (entries of the gradient within +-1, pixels within [-1, 1]), its informative
initialisation (one Gaussian per class, with full covariance plus 1e-4 I), and batch normalisation."""
MATCHED = {
    "objective.p_y_given_x_weight": 0.1,
    "objective.p_x_weight": 0.0,
    "objective.p_xy_weight": 1.0,
    "objective.matching_scale": 30.0,
    "sampler.chains": "conditional",
    "sampler.kernel": "heated",
    "sampler.num_steps": 100,
    "sampler.step_size": 0.6,  # steps of .02 in the time from noise to data, times the scale
    "sampler.noise": 0.0,
    "sampler.stop_after": 100,
    "sampler.gradient_clip": None,
    "sampler.clamp": True,
    "sampler.initial": "normal",
    "optimizer.kind": "adam",
    "optimizer.weight_decay": 0.0,
    "optimizer.learning_rate": 1e-3,
    "data.batch_size": 128,
}
"""Potentials of E(x, y) whose slope is the velocity from noise to data, beside the cross-entropy."""
TOLD_LEVELS = {
    "objective.p_y_given_x_weight": 0.1,
    "objective.p_x_weight": 0.0,
    "objective.p_xy_weight": 1.0,
    "sampler.chains": "conditional",
    "sampler.kernel": "sgld",
    "sampler.step_size": 0.0009,  # a quarter of the lowest level's variance, and noise of temperature 1
    "sampler.noise": 0.0424,
    "sampler.gradient_clip": None,
    "sampler.clamp": True,
    "sampler.initial": "normal",
    "optimizer.kind": "muon",
    "optimizer.weight_decay": 0.0,
    "optimizer.learning_rate": 2e-3,
    "optimizer.learning_rate_floor": 0.01,
    "optimizer.warmup_steps": 100,
    "data.batch_size": 64,
    # A gradient costs more than in a plain network: shorter chains, and attacks through fewer steps.
    "evaluation.long_run_factors": (10,),
    "evaluation.refinement_steps": (0, 1),
}
"""E(x, y; level) of a network that is told noise levels, beside the cross-entropy at the lowest one."""
DENOISED = {
    **TOLD_LEVELS,
    "objective.method": "dual-score-matching",
    "sampler.num_steps": 50,  # levels of a sample
    "evaluation.sample_steps": (25, 50),
}
"""Learnt by removing noise of all levels."""
RECOVERED = {
    **TOLD_LEVELS,
    "objective.method": "recovery-likelihood",
    "levels.highest": 6.0,
    "levels.guidance": 1.0,
    "architecture.widths": (256, 256),
    "epochs": 50,
    "sampler.num_steps": 15,  # of a chain, at one level
    "evaluation.sample_steps": (91, 301),
}
"""Learnt by recovering images from noisier ones."""
WIDE = {
    "network": "wide-resnet",
    "architecture.depth": 28,
    "architecture.width": 10,
    "architecture.activation": "leaky_relu",
    "data.batch_size": 64,
}
SGD = {
    "optimizer.kind": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.learning_rate": 0.1,
    "optimizer.schedule": "steps",
    "optimizer.warmup_steps": 1000,
}
STAIRS = {**SGD, "optimizer.decay_factor": 0.2, "optimizer.ema_decay": 0.0, "sampler.num_chains": 64}

RECIPES: dict[str, Recipe] = {
    "tuned": Recipe(
        method={},
        learning={},
        reference="of this package: JEM's objective, at a temperature at which chains stay near the data",
    ),
    "jem": Recipe(
        method={
            **PLAIN,
            "sampler.kernel": "sgld",
            "sampler.num_steps": 20,
            "sampler.step_size": 1.0,
            "sampler.noise": 0.01,
            "sampler.gradient_clip": None,
            "sampler.clamp": False,
            "sampler.initial": "uniform",
            "sampler.buffer_size": 10_000,
            "sampler.restart_probability": 0.05,
            "data.noise": 0.03,
        },
        learning={
            **WIDE,
            "architecture.norm": "none",
            "optimizer.kind": "adam",
            "optimizer.learning_rate": 1e-4,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "steps",
            "optimizer.decay_epochs": (160, 180),
            "optimizer.decay_factor": 0.3,
            "optimizer.warmup_steps": 1000,
            "epochs": 200,
            "optimizer.ema_decay": 0.0,
            "sampler.num_chains": 64,
        },
        reference="Grathwohl et al. 2020, arXiv 1912.03263: equations 4 to 7, algorithm 1, appendix A",
    ),
    "jempp": Recipe(
        method={
            **PROXIMAL,
            "sampler.kernel": "first-layer",
            "sampler.num_steps": 10,
            "sampler.inner_steps": 5,
            "sampler.step_size": 0.2,
            "data.noise": 0.03,
        },
        learning={
            **WIDE,
            **STAIRS,
            "optimizer.weight_decay": 4e-4,
            "optimizer.decay_epochs": (50, 100, 125),
            "epochs": 150,
        },
        reference="Yang & Ji 2021, arXiv 2109.09032: section 3.1 (proximal SGLD), 3.2 (inner updates), 3.3",
    ),
    "sadajem": Recipe(
        method={
            **PROXIMAL,
            "sampler.kernel": "sgld",
            "sampler.num_steps": 5,
            "sampler.step_size": 1.0,
            "data.noise": 0.0,
            "data.augment_p_x": False,
            "optimizer.sharpness_rho": 2.0,
            "optimizer.sharpness_adaptive": True,
        },
        learning={
            **WIDE,
            **STAIRS,
            "optimizer.weight_decay": 5e-4,
            "optimizer.decay_epochs": (60, 120, 180),
            "epochs": 200,
        },
        reference="Yang, Su & Ji 2022, arXiv 2209.07959: equation 8 (sharpness), section 4 (two batches)",
    ),
    "dat": Recipe(
        # From steps of .1 and a ball of .5 for pixels in [0, 1]. The paper starts chains from 80 million tiny
        # images, which are withdrawn, and increases the number of steps during training.
        method={
            **PLAIN,
            "objective.contrast": "binary",
            "sampler.kernel": "descent",
            "sampler.num_steps": 40,
            "sampler.step_size": 0.2,
            "sampler.noise": 0.0,
            "sampler.gradient_clip": None,
            "sampler.clamp": True,
            "sampler.negatives": "short-run",
            "sampler.initial": "gaussian",
            "objective.adversarial_radius": 1.0,
            "objective.adversarial_steps": 10,
            "architecture.norm": "batch",
            "architecture.freeze_statistics": True,
            "run.pretrain_epochs": 20,
            "data.noise": 0.0,
            "data.augment_p_x": False,
        },
        learning={
            **WIDE,
            **SGD,
            "architecture.depth": 34,
            "optimizer.learning_rate": 1e-3,
            "optimizer.schedule": "constant",
            "optimizer.weight_decay": 5e-4,
            "data.batch_size": 128,
            "sampler.num_chains": 128,
            "epochs": 100,
            "run.pretrain_epochs": 100,
            "optimizer.ema_decay": 0.999,
        },
        reference="Yin et al. 2025, arXiv 2510.13872: sections 3.1 (binary cross-entropy on PGD), 3.2, 3.3",
    ),
    "igebm": Recipe(
        # Pixels in [0, 1]: step 10, noise .005, gradients within .01.
        method={
            "optimizer.adam_b1": 0.0,
            "objective.p_y_given_x_weight": 0.0,
            "objective.p_x_weight": 0.0,
            "objective.p_xy_weight": 1.0,
            "sampler.chains": "conditional",
            "objective.energy_l2": 1.0,
            "architecture.spectral_norm": True,
            "sampler.kernel": "sgld",
            "sampler.num_steps": 60,
            "sampler.step_size": 40.0,
            "sampler.noise": 0.01,
            "sampler.gradient_clip": 0.005,
            "sampler.clamp": True,
            "sampler.initial": "uniform",
            "sampler.buffer_size": 10_000,
            "sampler.restart_probability": 0.05,
            "data.noise": 0.03,
        },
        learning={
            **WIDE,
            "architecture.norm": "none",
            "optimizer.kind": "adam",
            "optimizer.adam_b1": 0.0,
            "optimizer.learning_rate": 1e-4,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "constant",
            "data.batch_size": 128,
            "sampler.num_chains": 128,
            "epochs": 200,
            "optimizer.ema_decay": 0.999,
        },
        reference="Du & Mordatch 2019, arXiv 1903.08689: equations 1 to 3, algorithm 1, appendix A.4",
    ),
    "energy_matching": Recipe(
        method={**MATCHED, "objective.method": "energy-matching", "objective.coupling": "optimal"},
        learning={
            **WIDE,
            "architecture.norm": "none",
            "architecture.activation": "swish",
            "optimizer.kind": "adam",
            "optimizer.learning_rate": 1.2e-3,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 10_000,
            "optimizer.ema_decay": 0.9999,
            "objective.matching_scale": 1000.0,
            "sampler.step_size": 20.0,
            "data.batch_size": 128,
            "epochs": 370,
        },
        reference="Balcerak et al. 2025, arXiv 2504.10612: equation 4 (phase 1), with the classes of JEM",
    ),
    "equilibrium_matching": Recipe(
        method={
            **MATCHED,
            "objective.method": "equilibrium-matching",
            "objective.coupling": "independent",
            "sampler.step_size": 0.15,  # a quarter: the published velocity is four times as high
        },
        learning={
            **WIDE,
            "architecture.norm": "none",
            "architecture.activation": "swish",
            "optimizer.kind": "adamw",
            "optimizer.learning_rate": 1e-4,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "constant",
            "optimizer.ema_decay": 0.9999,
            "data.batch_size": 256,
            "epochs": 200,
        },
        reference="Wang & Du 2025, arXiv 2510.02300: equations 4 to 7, with the classes of JEM",
    ),
    "dual_score_matching": Recipe(
        method=DENOISED,
        learning={},
        reference="Guth et al. 2025, arXiv 2506.05310: section 2; the levels, weights and network inputs of "
        "Karras et al. 2022, arXiv 2206.00364, section 5; the classes of JEM and classifier guidance",
        convnet={"architecture.blocks": (1, 1), "architecture.hidden_widths": (256,)},
        # 15 minutes on two processors: training, and the card without refinements.
        larger={
            "epochs": 6,
            "run.twin": False,
            "evaluation.refinement_steps": (0,),
            "evaluation.likelihood_steps": 100,
            "evaluation.likelihood_chains": 32,
        },
        # An hour on two processors, card included. A learning rate of 2e-3 diverges after 1,000 updates.
        colour={
            "architecture.channels": (48, 96, 192, 192),
            "epochs": 12,
            "optimizer.learning_rate": 7e-4,
            "optimizer.warmup_steps": 300,
        },
        networks=("mlp", "convnet"),  # those that can be told a noise level
    ),
    "drl": Recipe(
        method=RECOVERED,
        learning={},
        reference="Gao, Song, Poole, Wu & Kingma 2021, arXiv 2012.08125: equations 5 to 10, algorithms 1 and "
        "2; the network inputs of Karras et al. 2022, arXiv 2206.00364, section 5; the classes of JEM",
        convnet={"architecture.blocks": (1, 1), "architecture.hidden_widths": (256,)},
        # The greatest standard deviation along one direction is that of 28 x 28 pixels: more noise hides it.
        # An update takes twice the gradients of dual_score_matching, whose time half of its epochs take.
        larger={
            "epochs": 3,
            "levels.highest": 20.0,
            "levels.count": 9,
            "run.twin": False,
            "evaluation.sample_steps": (121, 401),
            "evaluation.refinement_steps": (0,),
        },
        networks=("mlp", "convnet"),
    ),
    "improved_cd": Recipe(
        # Pixels in [0, 1]: step 100, noise .001, without a clip.
        method={
            **PLAIN,
            "objective.energy_l2": 1.0,
            "sampler.kernel": "sgld",
            "sampler.num_steps": 40,
            "sampler.step_size": 400.0,
            "sampler.noise": 0.002,
            "sampler.gradient_clip": None,
            "sampler.clamp": True,
            "sampler.initial": "uniform",
            "sampler.buffer_size": 10_000,
            "sampler.restart_probability": 0.001,
            "sampler.augment_buffer": True,
            "objective.last_step_weight": 1.0,
            "objective.neighbour_entropy_weight": 0.3,
            "optimizer.gradient_clip_norm": 0.5,
        },
        learning={
            **WIDE,
            "architecture.norm": "group",
            "optimizer.kind": "adam",
            "optimizer.adam_b1": 0.0,
            "optimizer.learning_rate": 2e-4,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "constant",
            "data.batch_size": 128,
            "sampler.num_chains": 128,
            "epochs": 200,
            "optimizer.ema_decay": 0.99,
        },
        reference="Du, Li, Tenenbaum & Mordatch 2021, arXiv 2012.01316: equations 4 to 9, section 3.3",
    ),
}
"""By name. The numbers are the papers', or their released code's where the two differ."""

NETWORKS: dict[str, Mapping[str, Any]] = {
    "mlp": {},
    "convnet": {
        "network": "convnet",
        "epochs": 120,
        "optimizer.learning_rate": 2e-3,
        "objective.p_x_weight": 0.3,
        "data.max_shift": 0.6,
        "data.max_shift_p_x": 0.0,
    },
    "wide-resnet": {"network": "wide-resnet"},
}
"""Settings of each network on digits; those of `mlp` and `convnet` were tuned on the validation split."""

UNCONDITIONAL = {
    "objective.p_y_given_x_weight": 0.0,
    "objective.p_x_weight": 1.0,
    "objective.p_xy_weight": 0.0,
    "sampler.chains": "marginal",
    "run.twin": False,
}
"""log p(x) alone."""

CROPPED: Mapping[str, Any] = {"data.crop_padding": 4, "data.max_shift": 0.0, "data.max_shift_p_x": 0.0}
"""JEM's augmentation of images of 32 x 32: pad by four reflected pixels and crop."""
MIRRORED: Mapping[str, Any] = {**CROPPED, "data.flip": True}
"""The same with mirroring, which is not for digits."""
AUGMENTATION = {"cifar10": MIRRORED, "cifar100": MIRRORED, "svhn_cropped": CROPPED}

LARGER: Mapping[str, Any] = {
    # With hundreds of pixels energies are steep and chains are slow: larger and fewer steps, a low weight of
    # p(x), clipped gradients. Chains are long, in a small buffer: with 5% restarts few reach 1000 steps,
    # longer chains are not trained on, and they end in thin strokes. The fourth level covers the whole image:
    # without it energies are sums over windows of 16 pixels, and any strokes are likely. The learning rate
    # stays high, because chains mix while energies change: with a decay to 1%, Omniglot was harder to detect.
    "architecture.channels": (32, 64, 128, 128),
    "data.batch_size": 128,
    "epochs": 16,
    "optimizer.learning_rate": 2e-3,
    "optimizer.learning_rate_floor": 0.2,
    "optimizer.warmup_steps": 300,
    "optimizer.ema_decay": 0.9995,
    "optimizer.gradient_clip_norm": 10.0,
    "optimizer.weight_decay": 0.03,
    "objective.p_x_weight": 0.1,
    "data.max_shift": 1.5,
    "sampler.num_steps": 10,
    "sampler.step_size": 1.0,
    "sampler.noise": 0.05,
    "sampler.buffer_size": 1000,
    "sampler.restart_probability": 0.002,
    "run.telemetry_every": 1000,
    # Smaller settings of the card, so that it takes minutes on two processors.
    "evaluation.samples_per_class": 60,
    "evaluation.attack_images": 20,
    "evaluation.likelihood_steps": 250,
}
"""Settings of `convnet` on images larger than digits; tuned on MNIST and Fashion-MNIST, see RESULTS.md."""
CIFAR10: Mapping[str, Any] = {
    **LARGER,
    # As much as 20 minutes on two processors allow, card included.
    "epochs": 5,
    "optimizer.learning_rate_floor": 0.01,
    "optimizer.ema_decay": 0.999,
    "evaluation.samples_per_class": 20,
    "evaluation.attack_images": 10,
    "evaluation.likelihood_steps": 100,
    "evaluation.likelihood_chains": 32,
    # Pixels are rarely at the ends of their range, where the clamp removes noise. With more sampler noise
    # than input noise, samples differ from images by their noise alone, and the energy of images diverges.
    "sampler.noise": 0.01,
    "sampler.initial": "gaussian",
}
"""The same on colour images of 32 x 32."""
CONVNET: dict[str, Mapping[str, Any]] = {
    "mnist": LARGER,
    "fashion_mnist": LARGER,
    "cifar10": CIFAR10,
}
"""By data set."""


PIXEL_MOMENTS = {"digits": (-0.39, 0.75), "mnist": (-0.74, 0.62), "fashion_mnist": (-0.43, 0.71)}
"""Mean and standard deviation of the training images' pixels, in [-1, 1]; 0 and .5 for other data sets."""
ENTRIES = {"digits": 8 * 8, "mnist": 28 * 28, "fashion_mnist": 28 * 28}
"""Entries of an image of each data set; for other data sets 32 x 32 x 3, as in the papers."""


def _method_for(recipe: Recipe, dataset: str) -> dict[str, Any]:
    """Returns a recipe's method, with step sizes that move pixels of this data set as far as in the paper.

    With an energy-L2 term energies are of order one for images of any size d, so gradients scale as 1 / d.
    There step sizes are multiplied by d / 3072, and bounds of the gradient divided by it: a step size of 400,
    right for CIFAR-10, would move pixels of digits from one end of their range to the other.

    A matched potential V = c E has slopes of the order of the velocity from noise to data, and so values of
    the order of d: c is given for 784 entries, and proportional to d. A step of the potential stays the same.
    """
    method = dict(recipe.method)
    entries = ENTRIES.get(dataset, 32 * 32 * 3)
    told_levels = method.get("objective.method") in ("dual-score-matching", "recovery-likelihood")
    if told_levels and dataset in PIXEL_MOMENTS:
        method["levels.data_mean"], method["levels.data_scale"] = PIXEL_MOMENTS[dataset]
    if "objective.matching_scale" in method:
        for name in ("objective.matching_scale", "sampler.step_size"):
            method[name] *= entries / 784
    if method.get("objective.energy_l2", 0.0) > 0.0:
        share = entries / (32 * 32 * 3)
        method["sampler.step_size"] *= share
        if method["sampler.gradient_clip"] is not None:
            method["sampler.gradient_clip"] /= share
    return method


def base_config(
    recipe: str = "tuned", *, network: str = "mlp", dataset: str = "digits", task: str = "supervised"
) -> Config:
    """Returns the configuration of a recipe on a network, a data set and a task; all else is at its default.

    Args:
      recipe: one of `RECIPES`.
      network: ``"mlp"``, ``"convnet"`` or ``"wide-resnet"``.
      dataset: a name for `jaxebm.data.load_dataset`.
      task: ``"supervised"`` or ``"unconditional"``.

    Returns:
      The configuration; change it with `jaxebm.recipes.replace_settings`.

    Raises:
      ValueError: for an unknown recipe, network or task, or a network that the recipe does not have.

    Example:
      >>> base_config("sadajem", network="convnet").sampler.num_steps
      5
    """
    for name, value, known in (
        ("recipe", recipe, RECIPES),
        ("network", network, NETWORKS),
        ("task", task, ("supervised", "unconditional")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: choose among {', '.join(known)}.")
    checks.text("dataset", dataset)
    if network not in RECIPES[recipe].networks:
        raise ValueError(
            f"network={network!r}: recipe {recipe} has {' and '.join(RECIPES[recipe].networks)}."
        )
    settings: dict[str, Any] = {"recipe": recipe, "network": network, "dataset": dataset, "task": task}
    settings |= NETWORKS[network]
    if network == "convnet":
        settings |= CONVNET.get(dataset, {})
    if RECIPES[recipe].method.get("objective.method", "chains") != "chains":
        settings = {name: value for name, value in settings.items() if name not in NEGATIVES}
    settings |= AUGMENTATION.get(dataset, {}) | _method_for(RECIPES[recipe], dataset)
    if network == "convnet":
        settings |= RECIPES[recipe].convnet
        settings |= RECIPES[recipe].larger if dataset in CONVNET else {}
        settings |= RECIPES[recipe].colour if dataset == "cifar10" else {}
    if network == "wide-resnet":
        settings |= RECIPES[recipe].learning
    if task == "unconditional":
        settings |= UNCONDITIONAL
    return replace_settings(Config(), settings)
