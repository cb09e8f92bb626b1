"""The configuration of a JEM run: what matters most at the top, the rest in groups."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxebm.recipes.config_checks import check_config
from jaxebm.recipes.devices import ParallelConfig
from jaxebm.recipes.serialisation import as_json, from_json
from jaxebm.report.settings import ReportSettings

__all__ = [
    "UNCOMPARED",
    "ArchitectureConfig",
    "Config",
    "DataConfig",
    "LevelsConfig",
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
        "run.keep_checkpoints",
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
    blocks: tuple[int, ...] = ()
    """Residual layers at each resolution of `convnet`, the finest first; with dual-score-matching."""
    hidden_widths: tuple[int, ...] = ()
    """Hidden layers of `convnet` after its last resolution; with dual-score-matching."""
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

    kind: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """AdamW, Adam, SGD with momentum, or Muon for the kernels of hidden layers with AdamW for the rest."""
    momentum: float = 0.9
    """Momentum of `sgd`."""
    adam_b1: float = 0.9
    """Decay of the first moment, in `adam`, `adamw` and the AdamW of `muon`."""
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
    """Decoupled and times the learning rate in `adamw`, `muon`; added to the gradient in `adam`, `sgd`."""
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
    """The same for the images of log p(x); large values teach it blur, and may make it diverge. A method that
    learns E(x, y) without chains takes the labelled images for it, at most mirrored."""
    crop_padding: int = 0
    """Random crop: pixels of reflection padding at each edge; 0 crops nothing."""
    flip: bool = False
    """Mirror half of the images; not for digits."""
    augment_p_x: bool = True
    """Whether the images of log p(x) are augmented too."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the loss."""

    method: Literal[
        "chains", "energy-matching", "equilibrium-matching", "dual-score-matching", "recovery-likelihood"
    ] = "chains"
    """How the density is learnt: from samples of chains, from the velocity from noise to data, or with a
    network that is told a noise level (group `levels`): by removing noise of all levels, or from chains that
    recover images of one level from those of the next higher one."""
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
    matching_scale: float = 30.0
    """With energy-matching and equilibrium-matching: the factor c of the matched potential V = c E."""
    coupling: Literal["optimal", "independent"] = "optimal"
    """Pairs of noise and data in a batch: optimal transport, or random."""
    energy_l2: float = 0.0
    """Weight of E(x)^2 on data and samples, against drift."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""


@dataclass(frozen=True)
class LevelsConfig:
    """Settings of the noise levels of objective.method=dual-score-matching and recovery-likelihood, in units
    of pixels in [-1, 1]."""

    lowest: float = 0.06
    """The model's density is that of images with this noise."""
    highest: float = 20.0
    """Where samples start: noise that hides the images."""
    median: float = 0.5
    """Median of the levels of training; of dual-score-matching."""
    spread: float = 1.2
    """Standard deviation of the logarithm of those levels; of dual-score-matching."""
    data_mean: float = 0.0
    """Mean of all pixels, in [-1, 1]."""
    data_scale: float = 0.5
    """Standard deviation of all pixels, in [-1, 1]."""
    derivative_weight: float = 10.0
    """Weight of the derivative of the energy by the level, which makes it a log-density; of
    dual-score-matching."""
    p_y_given_x_weight: float = 0.05
    """Weight of log p(y|x; level) of the noisy images, at all levels; of dual-score-matching."""
    count: int = 7
    """Levels of recovery-likelihood, by equal factors: one energy for each but the highest."""
    step_factor: float = 0.5
    """Steps of the chains of recovery-likelihood, in units of the least variance of an image given a noisier
    one; below 2. Training takes sampler.num_steps of them, at one level."""
    guidance: float = 3.0
    """Samples of a class: weight of log p(y|x; level); 1 draws from p(x|y) itself, more is more typical."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the chains that draw the negatives of training."""

    negatives: Literal["persistent", "short-run", "contrastive-divergence"] = "persistent"
    """Where chains start: a replay buffer, the initial distribution, or the data."""
    chains: Literal["marginal", "conditional"] = "marginal"
    """Sample from p(x), or from p(x|y) with as many chains per class."""
    num_chains: int = 64
    """Negatives per update (contrastive divergence: the batch size)."""
    kernel: Literal["sgld", "first-layer", "descent", "heated"] = "sgld"
    """Langevin dynamics, JEM++'s inner steps through the first layer, steps of fixed length (PGD), or
    descent that turns into Langevin dynamics."""
    cold_steps: int = 0
    """Steps without noise of `heated`."""
    heating_steps: int = 0
    """Steps over which the temperature of `heated` rises."""
    stop_after: int | None = None
    """Steps after which a chain of `heated` stands still: by default it goes on."""
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
    initial: Literal["uniform", "normal", "gaussian", "class-gaussian"] = "uniform"
    """Where new chains start: uniform noise, N(0, I), or a Gaussian fitted to all images or each class."""
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
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; experiments/quality_by_updates.py evaluates each."""
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

    recipe: Literal[
        "tuned",
        "jem",
        "jempp",
        "sadajem",
        "dat",
        "igebm",
        "improved_cd",
        "energy_matching",
        "equilibrium_matching",
        "dual_score_matching",
        "drl",
    ] = "tuned"
    """Method of a paper; with `wide-resnet` also its network, optimiser and epochs. Flags override it."""
    task: Literal["supervised", "unconditional"] = "supervised"
    """Learn classes and images, or images alone with an energy of one output."""
    dataset: str = "digits"
    """digits, mnist, fashion_mnist, cifar10, cifar100, svhn_cropped, npz:PATH, folder:PATH or tfds:NAME."""
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
    levels: LevelsConfig = field(default_factory=LevelsConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: ReportSettings = field(default_factory=ReportSettings)

    @property
    def generative(self) -> bool:
        """Whether a density is learnt."""
        return self.objective.p_x_weight > 0 or self.objective.p_xy_weight > 0

    @property
    def uses_chains(self) -> bool:
        """Whether the density is learnt from samples of chains on the energy itself."""
        return self.generative and self.objective.method == "chains"

    @property
    def uses_levels(self) -> bool:
        """Whether the network is told noise levels."""
        return self.objective.method in ("dual-score-matching", "recovery-likelihood")

    @property
    def recovers(self) -> bool:
        """Whether images of one noise level are recovered from those of the next, by chains."""
        return self.objective.method == "recovery-likelihood"

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range or does not fit another."""
        from_json(Config, as_json(self))  # types and choices
        try:
            self.evaluation.check()
        except ValueError as error:
            raise ValueError(f"evaluation.{error}") from None
        check_config(self)
