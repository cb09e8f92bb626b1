"""The configuration of a JEM run: what matters most at the top, the rest in groups."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxebm import checks
from jaxebm.recipes.devices import GENERATORS, ParallelConfig
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
    """Settings of the network."""

    widths: tuple[int, ...] = (384, 384, 384)
    """Widths of the hidden layers of `mlp`."""
    channels: tuple[int, ...] = (64, 128)
    """Channels of each level of `convnet`."""
    depth: int = 28
    """Depth of `wide-resnet`, 6 n + 4."""
    width: int = 10
    """Widening factor of `wide-resnet`."""
    activation: str = "swish"
    """swish, gelu, softplus, elu, relu or leaky_relu; smooth ones keep Langevin dynamics stable."""
    norm: Literal["none", "group", "batch"] = "none"
    """Normalisation in `convnet` and `wide-resnet`."""
    spectral_norm: bool = False
    """Bound each layer's largest singular value, in `convnet` and `wide-resnet`."""
    freeze_statistics: bool = False
    """Keep the statistics of batch normalisation fixed after pretraining, and normalise by them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network; parameters, energies and chains stay float32. bfloat16 is for GPUs."""
    remat: bool = False
    """Recompute the blocks of `wide-resnet` for its gradients, to save memory."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser and of the average of the weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW, Adam, or SGD with momentum."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    adam_b1: float = 0.9
    """Decay of the first moment, in `adam` and `adamw`."""
    learning_rate: float = 1.5e-3
    """Peak of the schedule, after a linear warm-up."""
    warmup_steps: int = 100
    """Updates of warm-up, at most a tenth of all."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """After warm-up: cosine decay to the floor, steps by decay-factor at decay-epochs, or constant."""
    learning_rate_floor: float = 0.01
    """Final rate of `cosine`, as a fraction of the peak."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs at which `steps` lowers the rate."""
    decay_factor: float = 0.2
    """Factor by which `steps` lowers the rate."""
    weight_decay: float = 0.1
    """Decoupled and times the learning rate in `adamw`, added to the gradient in `adam` and `sgd`."""
    sharpness_rho: float = 0.0
    """Sharpness-aware minimisation: the gradient is taken where the loss is highest within this radius."""
    sharpness_adaptive: bool = True
    """Measure that radius relative to the weights (ASAM)."""
    gradient_clip_norm: float | None = None
    """Clip the global norm of the parameters' gradient."""
    ema_decay: float = 0.999
    """Decay of the average of the weights, which the evaluation uses."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the training images and their augmentation."""

    exclude_classes: tuple[int, ...] = ()
    """Classes left out of training and kept as an out-of-distribution set."""
    labels_per_class: int | None = None
    """Semi-supervised: labelled images of each class; log p(x) still learns from all images."""
    batch_size: int = 64
    """Images in a batch, of labelled and of unlabelled images."""
    noise: float = 0.03
    """Standard deviation of the Gaussian noise on training images, pixels in [-1, 1]."""
    max_shift: float = 0.25
    """Random translation of labelled images by up to this many pixels (bilinear)."""
    max_shift_p_x: float = 0.25
    """The same for the images of log p(x); large values teach it blur, and may make it diverge."""
    crop_padding: int = 0
    """Random crop: pixels of reflection padding at each edge; 0 crops nothing."""
    flip: bool = False
    """Mirror half of the images; not for digits."""
    augment_p_x: bool = True
    """Whether the images of log p(x) are augmented too."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the loss."""

    p_y_given_x_weight: float = 1.0
    """Weight of log p(y|x), the cross-entropy."""
    p_x_weight: float = 0.5
    """Weight of log p(x); 0 trains a plain classifier."""
    p_xy_weight: float = 0.0
    """Weight of log p(x, y) through class-conditional samples; needs sampler.chains conditional."""
    contrast: Literal["likelihood", "binary"] = "likelihood"
    """Maximum likelihood, or the binary cross-entropy of data against samples, sigmoid(-E)."""
    adversarial_radius: float = 0.0
    """Adversarial training: L2 radius of the attack, pixels in [-1, 1]; 0 trains on clean images."""
    adversarial_steps: int = 10
    """Steps of the attack; each has the length 2 radius / steps."""
    last_step_weight: float = 0.0
    """Weight of the sampler's KL term, the gradient through one more step (improved CD)."""
    neighbour_entropy_weight: float = 0.3
    """Weight of the nearest-neighbour entropy of the samples within the KL term."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the chains that draw the negatives of training."""

    negatives: Literal["persistent", "short-run", "contrastive-divergence"] = "persistent"
    """Where chains start: a replay buffer, the initial distribution, or the data."""
    chains: Literal["marginal", "conditional"] = "marginal"
    """Sample from p(x), or from p(x|y) with as many chains per class."""
    num_chains: int = 64
    """Negatives per update (contrastive divergence: the batch size)."""
    kernel: Literal["sgld", "first-layer", "descent"] = "sgld"
    """Langevin dynamics, JEM++'s inner steps through the first layer, or steps of fixed length (PGD)."""
    inner_steps: int = 5
    """Inner steps of `first-layer` for each full gradient."""
    num_steps: int = 20
    """Sampler steps per update."""
    step_size: float = 0.2
    """Factor of the gradient, x <- x - step_size dE/dx + noise n."""
    noise: float = 0.1
    """Standard deviation of the noise; the pair's temperature is noise^2 / (2 step_size)."""
    gradient_clip: float | None = 1.0
    """Clip each entry of dE/dx to +- this."""
    clamp: bool = True
    """Keep pixels inside [-1, 1]."""
    initial: Literal["uniform", "gaussian", "class-gaussian"] = "uniform"
    """Where new chains start: uniform noise, or a Gaussian fitted to all images or to each class."""
    buffer_size: int = 2000
    """Slots of the replay buffer, a multiple of the number of classes."""
    restart_probability: float = 0.05
    """Probability that a chain drawn from the buffer is restarted."""
    augment_buffer: bool = False
    """Mirror (with data.flip), recolour and blur chains drawn from the buffer, so that they mix."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of the run and of what it stores."""

    pretrain_epochs: int = 0
    """Epochs of cross-entropy alone before training, stored in the folder `pretraining`."""
    steps_per_dispatch: int = 100
    """Updates in one compiled call; metrics are means over them."""
    checkpoint_every: int = 1000
    """Updates between checkpoints."""
    resume_step: int | None = None
    """Resume from this checkpoint instead of the newest; newer ones are removed."""
    select: Literal["last", "best"] = "last"
    """Which weights are evaluated: the last, or those of the checkpoint with the least validation NLL."""
    recovery: bool = True
    """If training diverges, return to the last healthy state with a remedy; else stop."""
    snapshots: Literal["device", "host"] = "device"
    """Where the states that recovery returns to are stored."""
    telemetry_every: int = 200
    """Updates between measurements of the chains (energy gap, drift, MMD, KSD, buffer age); 0 for none."""
    twin: bool = True
    """Also train the same network by cross-entropy alone, for comparison."""
    progress: bool = True
    """Show a progress bar (lines of text without a terminal), and print the card."""


@dataclass(frozen=True)
class Config:
    """Train a joint energy-based model (JEM) on images, and evaluate it."""

    recipe: Literal["tuned", "jem", "jempp", "sadajem", "dat", "igebm", "improved_cd"] = "tuned"
    """Method of a paper; with `wide-resnet` also its network, optimiser and epochs. Flags override it."""
    task: Literal["supervised", "unconditional"] = "supervised"
    """Learn classes and images, or images alone with an energy of one output."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, or npz:PATH with `image` and `label`."""
    network: Literal["mlp", "convnet", "wide-resnet"] = "mlp"
    """Kind of network; its sizes are in the group `architecture`."""
    epochs: int = 100
    """Passes over the training images."""
    seed: int = 0
    """Seed of all random numbers: weights, batches, chains. The splits of data sets are fixed."""
    output: Path = Path("runs/jem")
    """Folder of this run."""
    resume: bool = False
    """Continue the run in the folder, bit for bit as if it had not stopped."""
    overwrite: bool = False
    """Replace the run in the folder."""
    devices: int | None = None
    """Devices that share the chains, batches and buffer; 1 by default, all in a distributed run."""
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
        try:
            self.evaluation.check()
        except ValueError as error:
            raise ValueError(f"evaluation.{error}") from None
        checks.positive_integer("epochs", self.epochs)
        checks.seed("seed", self.seed)
        checks.text("dataset", self.dataset)
        for name in ("architecture.widths", "architecture.channels"):
            sizes = self._setting(name)
            if not sizes or min(sizes) < 1:
                raise ValueError(
                    f"{name}={sizes}: a positive integer for each of one or more layers is needed."
                )
        for name in (
            "data.batch_size",
            "sampler.num_chains",
            "sampler.num_steps",
            "sampler.inner_steps",
            "sampler.buffer_size",
            "objective.adversarial_steps",
            "run.steps_per_dispatch",
            "run.checkpoint_every",
        ):
            checks.positive_integer(name, self._setting(name))
        for name in (
            "devices",
            "data.labels_per_class",
            "run.resume_step",
            "parallel.strata",
            "parallel.processes",
        ):
            if self._setting(name) is not None:
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
            "optimizer.warmup_steps",
        ):
            checks.non_negative(name, self._setting(name))
        for name in ("sampler.gradient_clip", "optimizer.gradient_clip_norm"):
            if self._setting(name) is not None:
                checks.positive(name, self._setting(name))
        decays = list(self.optimizer.decay_epochs)
        if decays != sorted(set(decays)) or (decays and decays[0] < 1):
            raise ValueError(f"optimizer.decay_epochs={decays}: increasing epochs, at least 1, are needed.")
        if self.parallel.generator not in GENERATORS:
            raise ValueError(
                f"parallel.generator={self.parallel.generator!r}: choose one of {', '.join(GENERATORS)}."
            )
        for name in (
            "optimizer.momentum",
            "optimizer.adam_b1",
            "optimizer.learning_rate_floor",
            "optimizer.ema_decay",
            "objective.label_smoothing",
            "sampler.restart_probability",
        ):
            checks.in_range(name, self._setting(name), 0.0, 1.0)
        if self.optimizer.adam_b1 == 1.0:  # the first moment is divided by 1 - adam_b1^n
            raise ValueError("optimizer.adam_b1=1.0: optimizer.adam_b1 must be below 1.")
        if self.run.resume_step is not None and not self.resume:
            raise ValueError("run.resume_step is the checkpoint to go on from: it needs resume=True.")
        self._check_network()
        self._check_task()
        self._check_sampler()

    def _setting(self, name: str) -> Any:
        group, _, setting = name.rpartition(".")
        return getattr(getattr(self, group) if group else self, setting)

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
        weights = self.objective
        if not (self.generative or weights.p_y_given_x_weight):
            raise ValueError(
                "objective.p_y_given_x_weight, p_x_weight and p_xy_weight are all 0: nothing would be learnt."
            )
        if self.task != "unconditional":
            return
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
