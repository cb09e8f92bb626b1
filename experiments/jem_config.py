"""The flags of experiments/jem.py, each with its help text, and the checks that need no data."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line import ResumableFlags
from devices import DeviceFlags
from jaxebm import checks

__all__ = ["RECIPES", "Config", "recipe_for"]


@dataclass(frozen=True)
class Config(DeviceFlags, ResumableFlags):
    """Train and evaluate a joint energy-based model (JEM) on images."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, or npz:PATH, your own file
    with arrays `image` and `label`."""
    exclude_classes: tuple[int, ...] = ()
    """Classes left out of training and kept as an out-of-distribution set."""
    labels_per_class: int | None = None
    """Semi-supervised: labelled training images each class keeps; log p(x) still learns from all images."""
    output: Path = Path("runs/jem")
    """Folder of this run."""

    network: Literal["mlp", "convnet", "wide-resnet"] = "mlp"
    """Architecture."""
    widths: tuple[int, ...] = (384, 384, 384)
    """Of the hidden layers of `mlp`."""
    channels: tuple[int, ...] = (64, 128)
    """Of the levels of `convnet`."""
    depth: int = 28
    """Of `wide-resnet`, 6 n + 4."""
    width: int = 10
    """Of `wide-resnet`, the widening factor."""
    activation: str = "swish"
    """swish, gelu, softplus, elu, relu or leaky_relu; smooth ones keep Langevin dynamics stable."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation in `convnet` and `wide-resnet`."""
    spectral_norm: bool = False
    """Bound each layer's largest singular value, in `convnet` and `wide-resnet`."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; parameters, energies and chains stay float32. bfloat16 is for GPUs."""
    remat: bool = False
    """Compute a `wide-resnet`'s blocks again for its gradients, instead of keeping them in memory."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 64
    """Images a batch, labelled and unlabelled alike."""
    learning_rate: float = 1.5e-3
    """Peak of the schedule: linear warm-up, then cosine decay to a hundredth."""
    warmup_steps: int = 100
    """Updates of warm-up."""
    weight_decay: float = 0.1
    """Decoupled (AdamW), times the learning rate."""
    gradient_clip_norm: float | None = None
    """Clip the global norm of the parameters' gradient."""
    ema_decay: float = 0.999
    """Of the average of the weights, which the evaluation uses."""
    input_noise: float = 0.03
    """Standard deviation of the Gaussian noise on training images, pixels in [-1, 1]."""

    max_shift: float = 0.25
    """Random translation of labelled images by up to this many pixels, bilinear, for the cross-entropy."""
    max_shift_p_x: float = 0.25
    """The same for the images that log p(x) learns from; much more makes it learn blur, and may diverge."""

    p_y_given_x_weight: float = 1.0
    """Weight of log p(y|x), the cross-entropy."""
    p_x_weight: float = 0.5
    """Weight of log p(x); 0 trains a plain classifier."""
    p_xy_weight: float = 0.0
    """Weight of log p(x, y) through class-conditional samples; needs --chains conditional."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    negatives: Literal["persistent", "short-run", "contrastive-divergence"] = "persistent"
    """Where chains start: a replay buffer, the initial distribution, or the data."""
    chains: Literal["marginal", "conditional"] = "marginal"
    """Sample from p(x), or from p(x|y) with as many chains a class."""
    num_chains: int = 64
    """Negatives an update (contrastive divergence: the batch size)."""
    sampler_steps: int = 20
    """Langevin steps an update."""
    sampler_step_size: float = 0.2
    """Factor of the gradient, x <- x - step_size dE/dx + noise n."""
    sampler_noise: float = 0.1
    """Standard deviation of the noise; the pair's temperature is noise^2 / (2 step_size)."""
    sampler_gradient_clip: float | None = 1.0
    """Clip each entry of dE/dx to +- this."""
    sampler_clamp: bool = True
    """Keep pixels inside [-1, 1]."""
    initial: Literal["uniform", "gaussian", "class-gaussian"] = "uniform"
    """Where new chains start: uniform noise, or a Gaussian of the training images, as a whole or by class."""
    buffer_size: int = 2000
    """Slots of the replay buffer, a multiple of the number of classes."""
    restart_probability: float = 0.05
    """Chance that a chain drawn from the buffer starts anew."""

    steps_per_dispatch: int = 100
    """Updates a compiled call; metrics are means over them."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""
    select: Literal["last", "best"] = "last"
    """What is evaluated: the last weights, or those of the checkpoint with the least validation NLL."""
    snapshots: Literal["device", "host"] = "device"
    """Where the states are kept that recovery goes back to."""

    telemetry_every: int = 200
    """Updates between looks at the chains: energy gap on validation data, drift at ten times the length, MMD,
    KSD, buffer age; 0 takes none."""

    twin: bool = True
    """Also train the same network by cross-entropy alone, for comparison."""
    samples_per_class: int = 140
    """Fresh class-conditional chains of the evaluation."""
    sample_steps: tuple[int, ...] = (100, 1000)
    """Lengths, in Langevin steps, at which fresh chains are judged."""

    likelihood_temperatures: tuple[float, ...] = (1.0,)
    """T of exp(-E / T), for each of which the test images' likelihood is bounded; 1 is the model itself."""
    likelihood_steps: int = 500
    """Temperatures of the annealing between noise and model that log Z comes from; 0 leaves it out."""
    likelihood_chains: int = 64
    """Annealed chains in each direction."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range or does not fit another."""
        for name in (
            "epochs",
            "batch_size",
            "num_chains",
            "sampler_steps",
            "buffer_size",
            "samples_per_class",
        ):
            checks.positive_integer(name, getattr(self, name))
        for name in ("learning_rate", "sampler_step_size", "likelihood_temperatures"):
            checks.positive(name, getattr(self, name))
        for name in (
            "sampler_noise",
            "input_noise",
            "telemetry_every",
            "max_shift",
            "max_shift_p_x",
            "weight_decay",
            "energy_l2",
        ):
            checks.non_negative(name, getattr(self, name))
        for name in ("p_y_given_x_weight", "p_x_weight", "p_xy_weight"):
            checks.non_negative(name, getattr(self, name))
        if self.remat and self.network != "wide-resnet":
            raise ValueError(f"remat is for --network wide-resnet; {self.network} has no blocks.")
        if self.p_xy_weight > 0 and self.chains != "conditional":
            raise ValueError("p_xy_weight needs samples of p(x, y): add --chains conditional.")
        if self.negatives == "persistent" and self.buffer_size < self.num_chains:
            raise ValueError(
                f"buffer_size={self.buffer_size} is smaller than num_chains={self.num_chains}: every chain "
                f"needs a slot of its own; use a buffer_size of at least {self.num_chains}."
            )
        if self.likelihood_steps < 0 or self.likelihood_steps == 1 or self.likelihood_chains < 2:
            raise ValueError(
                f"likelihood_steps={self.likelihood_steps}, likelihood_chains={self.likelihood_chains}: 0 "
                f"steps (no likelihood) or at least 2, and at least 2 chains, are needed."
            )
        steps = list(self.sample_steps)
        if not steps or steps != sorted(set(steps)) or steps[0] < 1:
            raise ValueError(
                f"sample_steps={steps}: increasing numbers of at least 1 are needed, such as 100 1000."
            )

    @property
    def generative(self) -> bool:
        """Whether anything goes through the sampler."""
        return self.p_x_weight > 0 or self.p_xy_weight > 0


RECIPES = {
    "mlp": Config(),
    "convnet": Config(
        network="convnet", epochs=120, learning_rate=2e-3, p_x_weight=0.3, max_shift=0.6, max_shift_p_x=0.0
    ),
    "wide-resnet": Config(network="wide-resnet"),
}
"""The defaults of each ``--network``; `mlp` and `convnet` were tuned on the validation split of digits."""


def recipe_for(arguments: Sequence[str]) -> Config:
    """Returns the defaults that belong to the ``--network`` named in command-line arguments.

    Args:
      arguments: as in ``sys.argv[1:]``; what is not ``--network`` is left for the real parser.

    Returns:
      A recipe; that of `mlp` where none is named, or an unknown one, which the real parser will refuse.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--network", default="mlp")
    return RECIPES.get(parser.parse_known_args(list(arguments))[0].network, Config())
