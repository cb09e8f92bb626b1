"""The configuration of a JEM run: what matters most at the top, the rest in groups."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxebm import checks
from jaxebm.recipes.devices import ParallelConfig
from jaxebm.recipes.serialisation import as_json, from_json
from jaxebm.report.settings import ReportSettings

__all__ = [
    "UNCOMPARED",
    "ArchitectureConfig",
    "Config",
    "DataConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RunConfig",
    "SamplerConfig",
]

UNCOMPARED = frozenset(
    {
        "output",
        "resume",
        "overwrite",
        "devices",
        "report",
        "run.resume_step",
        "run.progress",
        "parallel.distributed",
        "parallel.coordinator",
        "parallel.processes",
        "parallel.process_id",
    }
)
"""Settings in which a resumed run may differ from the one that it resumes."""


@dataclass(frozen=True)
class ArchitectureConfig:
    """Of the network."""

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
    """Keep the statistics of batch normalisation as they are after pretraining, and normalise by them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; parameters, energies and chains stay float32. bfloat16 is for GPUs."""
    remat: bool = False
    """Compute a `wide-resnet`'s blocks again for its gradients, instead of keeping them in memory."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Of the optimiser, and of the average of the weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW, Adam, or SGD with momentum."""
    momentum: float = 0.9
    """Of `sgd`."""
    adam_b1: float = 0.9
    """Decay of the first moment, in `adam` and `adamw`."""
    learning_rate: float = 1.5e-3
    """Peak of the schedule, after a linear warm-up."""
    warmup_steps: int = 100
    """Updates of warm-up, at most a tenth of all."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """After warm-up: down to the floor, times decay-factor after decay-epochs, or flat."""
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


@dataclass(frozen=True)
class DataConfig:
    """Of the training images and how they are augmented."""

    exclude_classes: tuple[int, ...] = ()
    """Classes left out of training and kept as an out-of-distribution set."""
    labels_per_class: int | None = None
    """Semi-supervised: labelled training images each class keeps; log p(x) still learns from all images."""
    batch_size: int = 64
    """Images a batch, labelled and unlabelled alike."""
    noise: float = 0.03
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


@dataclass(frozen=True)
class ObjectiveConfig:
    """Of what is minimised."""

    p_y_given_x_weight: float = 1.0
    """Weight of log p(y|x), the cross-entropy."""
    p_x_weight: float = 0.5
    """Weight of log p(x); 0 trains a plain classifier."""
    p_xy_weight: float = 0.0
    """Weight of log p(x, y) through class-conditional samples; needs sampler.chains conditional."""
    contrast: Literal["likelihood", "binary"] = "likelihood"
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


@dataclass(frozen=True)
class SamplerConfig:
    """Of the chains that training draws its negatives from."""

    negatives: Literal["persistent", "short-run", "contrastive-divergence"] = "persistent"
    """Where chains start: a replay buffer, the initial distribution, or the data."""
    chains: Literal["marginal", "conditional"] = "marginal"
    """Sample from p(x), or from p(x|y) with as many chains a class."""
    num_chains: int = 64
    """Negatives an update (contrastive divergence: the batch size)."""
    kernel: Literal["sgld", "first-layer", "descent"] = "sgld"
    """Langevin dynamics; JEM++'s inner steps through the first layer a full gradient; or steps of one length
    down the energy (PGD), step-size long."""
    inner_steps: int = 5
    """Of `first-layer`."""
    num_steps: int = 20
    """Sampler steps an update."""
    step_size: float = 0.2
    """Factor of the gradient, x <- x - step_size dE/dx + noise n."""
    noise: float = 0.1
    """Standard deviation of the noise; the pair's temperature is noise^2 / (2 step_size)."""
    gradient_clip: float | None = 1.0
    """Clip each entry of dE/dx to +- this."""
    clamp: bool = True
    """Keep pixels inside [-1, 1]."""
    initial: Literal["uniform", "gaussian", "class-gaussian"] = "uniform"
    """Where new chains start: uniform noise, or a Gaussian of the training images, as a whole or by class."""
    buffer_size: int = 2000
    """Slots of the replay buffer, a multiple of the number of classes."""
    restart_probability: float = 0.05
    """Chance that a chain drawn from the buffer starts anew."""
    augment_buffer: bool = False
    """Mirror (with data.flip), recolour and blur what is drawn from the buffer, so that chains mix."""


@dataclass(frozen=True)
class RunConfig:
    """Of how the run goes, and what it keeps."""

    pretrain_epochs: int = 0
    """Passes of cross-entropy alone before the first epoch, in a run of its own, folder `pretraining`."""
    steps_per_dispatch: int = 100
    """Updates a compiled call; metrics are means over them."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""
    resume_step: int | None = None
    """The checkpoint to go on from when a run is resumed, instead of the newest; newer ones are removed."""
    select: Literal["last", "best"] = "last"
    """What is evaluated: the last weights, or those of the checkpoint with the least validation NLL."""
    recovery: bool = True
    """Take a run that diverges back to its last healthy state, with a remedy, and tell; or let it end."""
    snapshots: Literal["device", "host"] = "device"
    """Where the states are kept that recovery goes back to."""
    telemetry_every: int = 200
    """Updates between looks at the chains: energy gap on validation data, drift at ten times the length, MMD,
    KSD, buffer age; 0 takes none."""
    twin: bool = True
    """Also train the same network by cross-entropy alone, for comparison."""
    progress: bool = True
    """Show how far it is (lines of text where there is no terminal)."""


@dataclass(frozen=True)
class Config:
    """Train a joint energy-based model (JEM) on images, and evaluate it."""

    recipe: Literal["tuned", "jem", "jempp", "sadajem", "dat", "igebm", "improved_cd"] = "tuned"
    """A paper's method, and with wide-resnet its network, optimiser and epochs (jaxebm.recipes.published has
    the numbers and where they stand); settings that are given override it."""
    task: Literal["supervised", "unconditional"] = "supervised"
    """Learn classes and images, or images alone with an energy of one output."""
    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, or npz:PATH, your own file
    with arrays `image` and `label`."""
    network: Literal["mlp", "convnet", "wide-resnet"] = "mlp"
    """Architecture; its sizes are in the group `architecture`."""
    epochs: int = 100
    """Passes over the training images."""
    seed: int = 0
    """Of everything that is drawn: weights, batches, chains. The splits of data sets never change."""
    output: Path = Path("runs/jem")
    """Folder of this run."""
    resume: bool = False
    """Go on with the run in the folder, bit for bit as if it had never stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    devices: int | None = None
    """Devices that share the chains, batches and buffer; 1, or of a distributed run all of all processes."""
    report: bool = True
    """Evaluate the run at its end: card.json, card.md, report.html and pictures."""

    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: ReportSettings = field(default_factory=ReportSettings)

    @property
    def generative(self) -> bool:
        """Whether anything goes through the sampler."""
        return self.objective.p_x_weight > 0 or self.objective.p_xy_weight > 0

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range or does not fit another."""
        from_json(Config, as_json(self))  # types and choices
        self.evaluation.check()
        checks.positive_integer("epochs", self.epochs)
        for name in (
            "data.batch_size",
            "sampler.num_chains",
            "sampler.num_steps",
            "sampler.inner_steps",
            "sampler.buffer_size",
            "objective.adversarial_steps",
        ):
            checks.positive_integer(name, self._setting(name))
        for name in ("optimizer.learning_rate", "optimizer.decay_factor", "sampler.step_size"):
            checks.positive(name, self._setting(name))
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
        ):
            checks.non_negative(name, self._setting(name))
        for name in ("optimizer.momentum", "optimizer.adam_b1", "optimizer.learning_rate_floor"):
            checks.in_range(name, self._setting(name), 0.0, 1.0)
        if self.run.resume_step is not None and not self.resume:
            raise ValueError("run.resume_step is the checkpoint to go on from: it needs resume=True.")
        self._check_network()
        self._check_task()
        self._check_sampler()

    def _setting(self, name: str) -> object:
        group, _, setting = name.partition(".")
        return getattr(getattr(self, group), setting)

    def _check_network(self) -> None:
        parts = self.architecture
        if parts.remat and self.network != "wide-resnet":
            raise ValueError(f"architecture.remat is for network=wide-resnet; {self.network} has no blocks.")
        if self.network == "mlp" and (parts.norm != "none" or parts.spectral_norm):
            wanted = "spectral_norm" if parts.spectral_norm else f"norm={parts.norm}"
            raise ValueError(
                f"architecture.{wanted} is for network=convnet or wide-resnet, not mlp; for recipe "
                f"{self.recipe} with mlp set architecture.norm=none and architecture.spectral_norm=False."
            )
        if parts.freeze_statistics and parts.norm != "batch":
            raise ValueError("architecture.freeze_statistics is about batch normalisation: norm=batch.")
        if parts.freeze_statistics and parts.spectral_norm:
            raise ValueError(
                "architecture.freeze_statistics would freeze what spectral_norm measures: leave one out."
            )
        if parts.freeze_statistics and self.generative and self.run.pretrain_epochs == 0:
            raise ValueError(
                "architecture.freeze_statistics needs statistics: set run.pretrain_epochs to at least 1."
            )
        if self.optimizer.schedule == "steps" and not self.optimizer.decay_epochs:
            raise ValueError("optimizer.schedule=steps needs optimizer.decay_epochs, such as 60 90.")

    def _check_task(self) -> None:
        if self.task != "unconditional":
            return
        weights = self.objective
        if weights.p_y_given_x_weight or weights.p_xy_weight or weights.p_x_weight == 0:
            raise ValueError(
                "task=unconditional knows no classes: set objective.p_x_weight=1, p_y_given_x_weight=0 and "
                "p_xy_weight=0."
            )
        if self.run.select == "best":
            raise ValueError("run.select=best goes by the validation NLL of classes: use select=last.")
        for name in (
            "data.labels_per_class",
            "objective.adversarial_radius",
            "run.twin",
            "run.pretrain_epochs",
        ):
            if self._setting(name):
                raise ValueError(f"{name} is about classes, which task=unconditional does not learn.")
        if self.sampler.chains == "conditional" or self.sampler.initial == "class-gaussian":
            raise ValueError(
                "task=unconditional knows no classes: use sampler.chains=marginal, and "
                "sampler.initial=uniform or gaussian."
            )

    def _check_sampler(self) -> None:
        sampler, weights = self.sampler, self.objective
        if weights.p_xy_weight > 0 and sampler.chains != "conditional":
            raise ValueError(
                "objective.p_xy_weight needs samples of p(x, y): set sampler.chains=conditional."
            )
        if sampler.kernel == "descent" and (sampler.noise > 0 or sampler.gradient_clip is not None):
            raise ValueError(
                "sampler.kernel=descent takes steps of one length without noise: use sampler.noise=0 and "
                "sampler.gradient_clip=None."
            )
        if weights.last_step_weight > 0 and not self.generative:
            raise ValueError(
                "objective.last_step_weight is about the sampler: set objective.p_x_weight above 0."
            )
        if sampler.negatives == "persistent" and sampler.buffer_size < sampler.num_chains:
            raise ValueError(
                f"sampler.buffer_size={sampler.buffer_size} is smaller than "
                f"sampler.num_chains={sampler.num_chains}: every chain needs a slot of its own; use a "
                f"buffer_size of at least {sampler.num_chains}."
            )
