"""Published recipes of training, as what they change in a configuration, by dotted name of the setting.

A recipe has two halves. Its *method* is what the paper invented: sampler, buffer, objective, normalisation.
Its *learning* is what the paper's network took to be learnt: size, optimiser, rate, epochs. On the paper's
network (``network="wide-resnet"``) both are in force, to the number; on another one the method is, and rate
and epochs stay those that suit that network. Any setting overrides either: an ablation is one setting.

Pixels lie in [-1, 1] here. What a paper says of pixels in [0, 1] is translated: lengths are twice as long,
gradients half as large, and a step, which is position squared by energy, is four times as large.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxebm.recipes.config import Config
from jaxebm.recipes.serialisation import replace_settings

__all__ = ["RECIPES", "Recipe", "base_config"]


class Recipe(NamedTuple):
    """What a paper does, as values of settings.

    Attributes:
      method: in force on every network.
      learning: in force on the paper's network, `wide-resnet`.
      reference: the paper, and where in it.
    """

    method: Mapping[str, Any]
    learning: Mapping[str, Any]
    reference: str


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
"""JEM++'s "proximal" steps, entries of the gradient within +-1 and pixels within [-1, 1], its informative
start of chains, a Gaussian of each class with full covariance plus 1e-4 I, and batch normalisation."""
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
        reference="this package's own: JEM's objective, chains hot enough to stay on the data",
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
        # images, which are withdrawn, and lets the steps grow to their number as the energy learns.
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
"""What suits a network on digits; `mlp` and `convnet` were tuned on the validation split."""

UNCONDITIONAL = {
    "objective.p_y_given_x_weight": 0.0,
    "objective.p_x_weight": 1.0,
    "objective.p_xy_weight": 0.0,
    "sampler.chains": "marginal",
    "run.twin": False,
}
"""log p(x) alone."""

CROPPED: Mapping[str, Any] = {"data.crop_padding": 4, "data.max_shift": 0.0, "data.max_shift_p_x": 0.0}
"""JEM's augmentation of images of 32 x 32: reflect four pixels and crop."""
MIRRORED: Mapping[str, Any] = {**CROPPED, "data.flip": True}
"""And mirror, which makes no digit of a digit."""
AUGMENTATION = {"cifar10": MIRRORED, "cifar100": MIRRORED, "svhn_cropped": CROPPED}

LARGER: Mapping[str, Any] = {
    # Hundreds of pixels make energies steep and chains slow: larger and fewer steps, a low weight of p(x),
    # gradients kept from jumping. Chains live long, in a small buffer: with restarts of 5% few get to 1000
    # steps, what lies beyond is not learnt from, and long chains end in thin strokes. The fourth level sees
    # the whole image: without it energies are sums over windows of 16 pixels, and any strokes are likely. The
    # rate stays up, for chains mix because energies change: as it fell to a hundredth, Omniglot came nearer.
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
    # What the card costs, so that it takes minutes on two processors.
    "evaluation.samples_per_class": 60,
    "evaluation.attack_images": 20,
    "evaluation.likelihood_steps": 250,
}
"""What suits `convnet` on larger images than digits; chosen on MNIST and Fashion-MNIST, see RESULTS.md."""
CIFAR10: Mapping[str, Any] = {
    **LARGER,
    # What 20 minutes on two processors hold, card included.
    "epochs": 5,
    "optimizer.learning_rate_floor": 0.01,
    "optimizer.ema_decay": 0.999,
    "evaluation.samples_per_class": 20,
    "evaluation.attack_images": 10,
    "evaluation.likelihood_steps": 100,
    "evaluation.likelihood_chains": 32,
    # Pixels seldom lie at the ends of their range, where the clamp takes noise away: more of it than the
    # input noise tells samples from images whatever they show, and the energy of images falls without end.
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


ENTRIES = {"digits": 8 * 8, "mnist": 28 * 28, "fashion_mnist": 28 * 28}
"""Numbers in an image of a data set; of all others the papers' 32 x 32 x 3."""


def _method_for(recipe: Recipe, dataset: str) -> dict[str, Any]:
    """Returns a recipe's method, its steps those that move pixels of this data set as far as the paper's.

    An energy-L2 term keeps energies of order one whatever the image; shared by d entries, gradients go as
    1 / d. There steps are multiplied by d / 3072, and bounds of the gradient divided by it: steps of 400,
    right for CIFAR-10, throw digits from one end of their range to the other.
    """
    method = dict(recipe.method)
    if method.get("objective.energy_l2", 0.0) > 0.0:
        share = ENTRIES.get(dataset, 32 * 32 * 3) / (32 * 32 * 3)
        method["sampler.step_size"] *= share
        if method["sampler.gradient_clip"] is not None:
            method["sampler.gradient_clip"] /= share
    return method


def base_config(
    recipe: str = "tuned", *, network: str = "mlp", dataset: str = "digits", task: str = "supervised"
) -> Config:
    """Returns the configuration of a recipe on a network, a data set and a task, all else at its default.

    Args:
      recipe: one of `RECIPES`.
      network: ``"mlp"``, ``"convnet"`` or ``"wide-resnet"``.
      dataset: as `jaxebm.data.load_dataset` takes it.
      task: ``"supervised"`` or ``"unconditional"``.

    Returns:
      The configuration; change it with `jaxebm.recipes.replace_settings`.

    Raises:
      ValueError: for an unknown recipe, network or task.

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
    settings: dict[str, Any] = {"recipe": recipe, "network": network, "dataset": dataset, "task": task}
    settings |= NETWORKS[network]
    if network == "convnet":
        settings |= CONVNET.get(dataset, {})
    settings |= AUGMENTATION.get(dataset, {}) | _method_for(RECIPES[recipe], dataset)
    if network == "wide-resnet":
        settings |= RECIPES[recipe].learning
    if task == "unconditional":
        settings |= UNCONDITIONAL
    return replace_settings(Config(), settings)
