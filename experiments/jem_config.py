"""The flags of experiments/jem.py, each with its help text, and the checks that need no data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from command_line import ResumableFlags
from devices import DeviceFlags
from evaluation_config import EvaluationFlags
from jaxebm import checks
from recipes import settings_for

__all__ = ["Config", "has_small_network", "recipe_for"]


@dataclass(frozen=True)
class Config(EvaluationFlags, DeviceFlags, ResumableFlags):
    """Train and evaluate a joint energy-based model (JEM) on images."""

    recipe: Literal["tuned", "jem", "jempp", "sadajem", "dat", "igebm", "improved_cd"] = "tuned"
    """A paper's method, and on --network wide-resnet its network, optimiser and epochs (recipes.py has the
    numbers and where they stand); flags that are given override it."""
    task: Literal["supervised", "unconditional"] = "supervised"
    """Learn classes and images, or images alone with an energy of one output; see --labels-per-class, too."""

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
    freeze_statistics: bool = False
    """Leave the statistics of --norm batch as they are after --pretrain-epochs, and normalise by them."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; parameters, energies and chains stay float32. bfloat16 is for GPUs."""
    remat: bool = False
    """Compute a `wide-resnet`'s blocks again for its gradients, instead of keeping them in memory."""

    epochs: int = 100
    """Passes over the training images."""
    pretrain_epochs: int = 0
    """Passes of cross-entropy alone before them, in a run of its own in the folder `pretraining`."""
    batch_size: int = 64
    """Images a batch, labelled and unlabelled alike."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW, Adam, or SGD with --momentum."""
    momentum: float = 0.9
    """Of `sgd`."""
    adam_b1: float = 0.9
    """Decay of the first moment, in `adam` and `adamw`."""
    learning_rate: float = 1.5e-3
    """Peak of the schedule, after a linear warm-up."""
    warmup_steps: int = 100
    """Updates of warm-up, at most a tenth of all."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """After warm-up: down to --learning-rate-floor, times --decay-factor after --decay-epochs, or flat."""
    learning_rate_floor: float = 0.01
    """Where `cosine` ends, as a part of the peak."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs at which `steps` lowers the rate."""
    decay_factor: float = 0.2
    """By which it does."""
    weight_decay: float = 0.1
    """Decoupled and times the learning rate in `adamw`, added to the gradient in `adam` and `sgd`."""
    sharpness_rho: float = 0.0
    """Sharpness-aware minimisation: the gradient is taken where the loss is highest within this radius."""
    sharpness_adaptive: bool = True
    """Measure that radius relative to the weights (ASAM)."""
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
    crop_padding: int = 0
    """Pixels that are reflected beyond each edge before a window of the old size is cut out at random."""
    flip: bool = False
    """Mirror half of the images; not for digits."""
    augment_p_x: bool = True
    """Whether the images that log p(x) learns from are moved, cropped and mirrored, too."""

    p_y_given_x_weight: float = 1.0
    """Weight of log p(y|x), the cross-entropy."""
    p_x_weight: float = 0.5
    """Weight of log p(x); 0 trains a plain classifier."""
    p_xy_weight: float = 0.0
    """Weight of log p(x, y) through class-conditional samples; needs --chains conditional."""
    p_x_objective: Literal["likelihood", "binary"] = "likelihood"
    """How energies learn from data and samples: as maximum likelihood, or by telling the two apart with
    sigmoid(-E)."""
    adversarial_radius: float = 0.0
    """Learn classes from adversarial images within this L2 distance, pixels in [-1, 1]; 0 takes them as they
    are."""
    adversarial_steps: int = 10
    """Steps of that attack, each two radii by their number long."""
    last_step_weight: float = 0.0
    """Weight of the sampler's own KL term, the gradient through one more step (improved CD)."""
    neighbour_entropy_weight: float = 0.3
    """Times that, the weight of the samples' nearest-neighbour entropy in it."""
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
    sampler: Literal["sgld", "first-layer", "descent"] = "sgld"
    """Langevin dynamics; JEM++'s --inner-steps through the first layer a full gradient; or steps of one
    length down the energy (PGD), --sampler-step-size long."""
    inner_steps: int = 5
    """Of `first-layer`."""
    sampler_steps: int = 20
    """Sampler steps an update."""
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
    augment_buffer: bool = False
    """Mirror (with --flip), recolour and blur what is drawn from the buffer, so that chains mix."""

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

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range or does not fit another."""
        EvaluationFlags.check(self)
        counts = ("epochs", "batch_size", "num_chains", "sampler_steps", "inner_steps", "buffer_size")
        for name in (*counts, "adversarial_steps"):
            checks.positive_integer(name, getattr(self, name))
        for name in ("learning_rate", "sampler_step_size", "decay_factor"):
            checks.positive(name, getattr(self, name))
        for name in (
            *("sampler_noise", "input_noise", "telemetry_every", "max_shift", "max_shift_p_x"),
            *("weight_decay", "energy_l2", "pretrain_epochs", "sharpness_rho", "crop_padding"),
            *("adversarial_radius", "last_step_weight", "neighbour_entropy_weight"),
            *("p_y_given_x_weight", "p_x_weight", "p_xy_weight"),
        ):
            checks.non_negative(name, getattr(self, name))
        for name in ("momentum", "adam_b1", "learning_rate_floor"):
            checks.in_range(name, getattr(self, name), 0.0, 1.0)
        self._check_network()
        self._check_sampler()

    def _check_network(self) -> None:
        if self.remat and self.network != "wide-resnet":
            raise ValueError(f"remat is for --network wide-resnet; {self.network} has no blocks.")
        if self.network == "mlp" and (self.norm != "none" or self.spectral_norm):
            wanted = "spectral_norm" if self.spectral_norm else f"norm={self.norm}"
            raise ValueError(
                f"{wanted} is for --network convnet or wide-resnet, not mlp; recipe {self.recipe} with mlp: "
                f"add --norm none --no-spectral-norm."
            )
        if self.freeze_statistics and self.norm != "batch":
            raise ValueError("freeze_statistics is about batch normalisation: add --norm batch.")
        if self.freeze_statistics and self.spectral_norm:
            raise ValueError("freeze_statistics would freeze what spectral_norm measures: leave one out.")
        if self.freeze_statistics and self.generative and self.pretrain_epochs == 0:
            raise ValueError("freeze_statistics needs statistics: add --pretrain-epochs of at least 1.")
        if self.schedule == "steps" and not self.decay_epochs:
            raise ValueError("schedule=steps needs --decay-epochs, such as 60 90.")

    def _check_sampler(self) -> None:
        if self.task == "unconditional":
            if self.p_y_given_x_weight or self.p_xy_weight or self.p_x_weight == 0:
                raise ValueError(
                    "task=unconditional knows no classes: use --p-x-weight 1 --p-y-given-x-weight 0 "
                    "--p-xy-weight 0."
                )
            if self.select == "best":
                raise ValueError("select=best goes by the validation NLL of classes: use --select last.")
            for name in ("labels_per_class", "adversarial_radius", "twin", "pretrain_epochs"):
                if getattr(self, name):
                    raise ValueError(f"{name} is about classes, which --task unconditional does not learn.")
            if self.chains == "conditional" or self.initial == "class-gaussian":
                raise ValueError(
                    "task=unconditional knows no classes: use --chains marginal, and --initial uniform or "
                    "gaussian."
                )
        if self.p_xy_weight > 0 and self.chains != "conditional":
            raise ValueError("p_xy_weight needs samples of p(x, y): add --chains conditional.")
        if self.sampler == "descent" and (self.sampler_noise > 0 or self.sampler_gradient_clip is not None):
            raise ValueError(
                "sampler=descent takes steps of one length without noise: use --sampler-noise 0 "
                "--sampler-gradient-clip None."
            )
        if self.last_step_weight > 0 and not self.generative:
            raise ValueError("last_step_weight is about the sampler: give a --p-x-weight above 0.")
        if self.negatives == "persistent" and self.buffer_size < self.num_chains:
            raise ValueError(
                f"buffer_size={self.buffer_size} is smaller than num_chains={self.num_chains}: every chain "
                f"needs a slot of its own; use a buffer_size of at least {self.num_chains}."
            )

    @property
    def generative(self) -> bool:
        """Whether anything goes through the sampler."""
        return self.p_x_weight > 0 or self.p_xy_weight > 0


def recipe_for(arguments: Sequence[str]) -> Config:
    """Returns the defaults that belong to the network, recipe, task and data set in command-line arguments.

    Args:
      arguments: as in ``sys.argv[1:]``; other flags are left for the real parser.

    Returns:
      The configuration that the arguments then change.
    """
    return Config(**settings_for(arguments))


def has_small_network(config: Config) -> bool:
    """Whether XLA's settings for small networks suit it."""
    return config.network == "mlp" or (config.network == "convnet" and config.dataset == "digits")
