"""Published recipes of training, as what they change in the flags of experiments/jem.py.

A recipe has two halves. Its *method* is what the paper invented: sampler, buffer, objective, normalisation.
Its *learning* is what the paper's network took to be learnt: size, optimiser, rate, epochs. On the paper's
network (`--network wide-resnet`) both are in force, to the number; on another one the method is, and rate and
epochs stay those that suit that network. Any flag overrides either: an ablation is one flag.

Pixels lie in [-1, 1] here. What a paper says of pixels in [0, 1] is translated: lengths are twice as long,
gradients half as large, and a step, which is position squared by energy, is four times as large.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["RECIPES", "Recipe", "settings_for"]


class Recipe(NamedTuple):
    """What a paper does, as values of flags.

    Attributes:
      method: in force on every network.
      learning: in force on the paper's network, `wide-resnet`.
      reference: the paper, and where in it.
    """

    method: Mapping[str, Any]
    learning: Mapping[str, Any]
    reference: str


PLAIN = {"p_y_given_x_weight": 1.0, "p_x_weight": 1.0, "p_xy_weight": 0.0, "chains": "marginal"}
"""log p(y|x) + log p(x), equation 6 of JEM."""
PROXIMAL = {
    **PLAIN,
    "sampler_noise": 0.0,
    "sampler_gradient_clip": 1.0,
    "sampler_clamp": True,
    "initial": "class-gaussian",
    "buffer_size": 10_000,
    "restart_probability": 0.05,
    "norm": "batch",
}
"""JEM++'s "proximal" steps, entries of the gradient within +-1 and pixels within [-1, 1], its informative
start of chains, a Gaussian of each class with full covariance plus 1e-4 I, and batch normalisation."""
WIDE = {"network": "wide-resnet", "depth": 28, "width": 10, "activation": "leaky_relu", "batch_size": 64}
SGD = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "schedule": "steps", "warmup_steps": 1000}
STAIRS = {**SGD, "decay_factor": 0.2, "ema_decay": 0.0, "num_chains": 64}

RECIPES: dict[str, Recipe] = {
    "tuned": Recipe(
        method={},
        learning={},
        reference="this package's own: JEM's objective, chains hot enough to stay on the data",
    ),
    "jem": Recipe(
        method={
            **PLAIN,
            "sampler": "sgld",
            "sampler_steps": 20,
            "sampler_step_size": 1.0,
            "sampler_noise": 0.01,
            "sampler_gradient_clip": None,
            "sampler_clamp": False,
            "initial": "uniform",
            "buffer_size": 10_000,
            "restart_probability": 0.05,
            "input_noise": 0.03,
        },
        learning={
            **WIDE,
            "norm": "none",
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "schedule": "steps",
            "decay_epochs": (160, 180),
            "decay_factor": 0.3,
            "warmup_steps": 1000,
            "epochs": 200,
            "ema_decay": 0.0,
            "num_chains": 64,
        },
        reference="Grathwohl et al. 2020, arXiv 1912.03263: equations 4 to 7, algorithm 1, appendix A",
    ),
    "jempp": Recipe(
        method={
            **PROXIMAL,
            "sampler": "first-layer",
            "sampler_steps": 10,
            "inner_steps": 5,
            "sampler_step_size": 0.2,
            "input_noise": 0.03,
        },
        learning={
            **WIDE,
            **STAIRS,
            "weight_decay": 4e-4,
            "decay_epochs": (50, 100, 125),
            "epochs": 150,
        },
        reference="Yang & Ji 2021, arXiv 2109.09032: section 3.1 (proximal SGLD), 3.2 (inner updates), 3.3",
    ),
    "sadajem": Recipe(
        method={
            **PROXIMAL,
            "sampler": "sgld",
            "sampler_steps": 5,
            "sampler_step_size": 1.0,
            "input_noise": 0.0,
            "augment_p_x": False,
            "sharpness_rho": 2.0,
            "sharpness_adaptive": True,
        },
        learning={
            **WIDE,
            **STAIRS,
            "weight_decay": 5e-4,
            "decay_epochs": (60, 120, 180),
            "epochs": 200,
        },
        reference="Yang, Su & Ji 2022, arXiv 2209.07959: equation 8 (sharpness), section 4 (two batches)",
    ),
    "dat": Recipe(
        # From steps of .1 and a ball of .5 for pixels in [0, 1]. The paper starts chains from 80 million tiny
        # images, which are withdrawn, and lets the steps grow to their number as the energy learns.
        method={
            **PLAIN,
            "p_x_objective": "binary",
            "sampler": "descent",
            "sampler_steps": 40,
            "sampler_step_size": 0.2,
            "sampler_noise": 0.0,
            "sampler_gradient_clip": None,
            "sampler_clamp": True,
            "negatives": "short-run",
            "initial": "gaussian",
            "adversarial_radius": 1.0,
            "adversarial_steps": 10,
            "norm": "batch",
            "freeze_statistics": True,
            "pretrain_epochs": 20,
            "input_noise": 0.0,
            "augment_p_x": False,
        },
        learning={
            **WIDE,
            **SGD,
            "depth": 34,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "weight_decay": 5e-4,
            "batch_size": 128,
            "num_chains": 128,
            "epochs": 100,
            "pretrain_epochs": 100,
            "ema_decay": 0.999,
        },
        reference="Yin et al. 2025, arXiv 2510.13872: sections 3.1 (binary cross-entropy on PGD), 3.2, 3.3",
    ),
    "igebm": Recipe(
        # Pixels in [0, 1]: step 10, noise .005, gradients within .01.
        method={
            "adam_b1": 0.0,
            "p_y_given_x_weight": 0.0,
            "p_x_weight": 0.0,
            "p_xy_weight": 1.0,
            "chains": "conditional",
            "energy_l2": 1.0,
            "spectral_norm": True,
            "sampler": "sgld",
            "sampler_steps": 60,
            "sampler_step_size": 40.0,
            "sampler_noise": 0.01,
            "sampler_gradient_clip": 0.005,
            "sampler_clamp": True,
            "initial": "uniform",
            "buffer_size": 10_000,
            "restart_probability": 0.05,
            "input_noise": 0.03,
        },
        learning={
            **WIDE,
            "norm": "none",
            "optimizer": "adam",
            "adam_b1": 0.0,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "schedule": "constant",
            "batch_size": 128,
            "num_chains": 128,
            "epochs": 200,
            "ema_decay": 0.999,
        },
        reference="Du & Mordatch 2019, arXiv 1903.08689: equations 1 to 3, algorithm 1, appendix A.4",
    ),
    "improved_cd": Recipe(
        # Pixels in [0, 1]: step 100, noise .001, without a clip.
        method={
            **PLAIN,
            "energy_l2": 1.0,
            "sampler": "sgld",
            "sampler_steps": 40,
            "sampler_step_size": 400.0,
            "sampler_noise": 0.002,
            "sampler_gradient_clip": None,
            "sampler_clamp": True,
            "initial": "uniform",
            "buffer_size": 10_000,
            "restart_probability": 0.001,
            "augment_buffer": True,
            "last_step_weight": 1.0,
            "neighbour_entropy_weight": 0.3,
            "gradient_clip_norm": 0.5,
        },
        learning={
            **WIDE,
            "norm": "group",
            "optimizer": "adam",
            "adam_b1": 0.0,
            "learning_rate": 2e-4,
            "weight_decay": 0.0,
            "schedule": "constant",
            "batch_size": 128,
            "num_chains": 128,
            "epochs": 200,
            "ema_decay": 0.99,
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
        "learning_rate": 2e-3,
        "p_x_weight": 0.3,
        "max_shift": 0.6,
        "max_shift_p_x": 0.0,
    },
    "wide-resnet": {"network": "wide-resnet"},
}
"""What suits a network on digits; `mlp` and `convnet` were tuned on the validation split."""

UNCONDITIONAL = {
    "p_y_given_x_weight": 0.0,
    "p_x_weight": 1.0,
    "p_xy_weight": 0.0,
    "chains": "marginal",
    "twin": False,
}
"""log p(x) alone."""

CROPPED: Mapping[str, Any] = {"crop_padding": 4, "max_shift": 0.0, "max_shift_p_x": 0.0}
"""JEM's augmentation of images of 32 x 32: reflect four pixels and crop."""
MIRRORED: Mapping[str, Any] = {**CROPPED, "flip": True}
"""And mirror, which makes no digit of a digit."""
AUGMENTATION = {"cifar10": MIRRORED, "cifar100": MIRRORED, "svhn_cropped": CROPPED}

LARGER: Mapping[str, Any] = {
    # Hundreds of pixels make energies steep and chains slow: larger and fewer steps, a low weight of p(x),
    # gradients kept from jumping. Chains live long, in a small buffer: with restarts of 5% few get to 1000
    # steps, what lies beyond is not learnt from, and long chains end in thin strokes. The fourth level sees
    # the whole image: without it energies are sums over windows of 16 pixels, and any strokes are likely. The
    # rate stays up, for chains mix because energies change: as it fell to a hundredth, Omniglot came nearer.
    "channels": (32, 64, 128, 128),
    "batch_size": 128,
    "epochs": 16,
    "learning_rate": 2e-3,
    "learning_rate_floor": 0.2,
    "warmup_steps": 300,
    "ema_decay": 0.9995,
    "gradient_clip_norm": 10.0,
    "weight_decay": 0.03,
    "p_x_weight": 0.1,
    "max_shift": 1.5,
    "sampler_steps": 10,
    "sampler_step_size": 1.0,
    "sampler_noise": 0.05,
    "buffer_size": 1000,
    "restart_probability": 0.002,
    "telemetry_every": 1000,
    # What the card costs, so that it takes minutes on two processors.
    "samples_per_class": 60,
    "attack_images": 20,
    "likelihood_steps": 250,
}
"""What suits `convnet` on larger images than digits; chosen on MNIST and Fashion-MNIST, see RESULTS.md."""
CIFAR10: Mapping[str, Any] = {
    **LARGER,
    # What 20 minutes on two processors hold, card included.
    "epochs": 5,
    "learning_rate_floor": 0.01,
    "ema_decay": 0.999,
    "samples_per_class": 20,
    "attack_images": 10,
    "likelihood_steps": 100,
    "likelihood_chains": 32,
    # Pixels seldom lie at the ends of their range, where the clamp takes noise away: more of it than the
    # input noise tells samples from images whatever they show, and the energy of images falls without end.
    "sampler_noise": 0.01,
    "initial": "gaussian",
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
    if method.get("energy_l2", 0.0) > 0.0:
        share = ENTRIES.get(dataset, 32 * 32 * 3) / (32 * 32 * 3)
        method["sampler_step_size"] *= share
        if method["sampler_gradient_clip"] is not None:
            method["sampler_gradient_clip"] /= share
    return method


def settings_for(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the flags' defaults that belong to the network, recipe, task and data set that are named.

    Args:
      arguments: as in ``sys.argv[1:]``; what else is there is left for the real parser.

    Returns:
      Values of fields of `jem_config.Config`. An unknown name changes nothing: the real parser refuses it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in (("network", None), ("recipe", "tuned"), ("task", ""), ("dataset", "digits")):
        parser.add_argument(f"--{name}", default=default)
    named = parser.parse_known_args(list(arguments))[0]
    name = named.recipe if named.recipe in RECIPES else "tuned"
    recipe = RECIPES[name]
    settings = dict(NETWORKS.get(named.network or "mlp", {}))
    if named.network == "convnet":
        settings.update(CONVNET.get(named.dataset, {}))
    settings |= AUGMENTATION.get(named.dataset, {}) | _method_for(recipe, named.dataset) | {"recipe": name}
    if named.network == "wide-resnet":
        settings.update(recipe.learning)
    if named.task == "unconditional":
        settings.update(UNCONDITIONAL, task=named.task)
    if named.dataset != "digits":
        settings["dataset"] = named.dataset
    return settings
