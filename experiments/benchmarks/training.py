"""The workload of one JEM update: jaxebm, the same step with BlackJAX's sampler, PyTorch, bare gradients.

An update is: a labelled and an unlabelled batch, chains from a replay buffer and back into it, cross-entropy
+ p(x), Adam, and the running average of the parameters. Images and labels are random numbers, because only
time and agreement are measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax

from benchmarks import training_peers as peers
from benchmarks.harness import Contender, Workload, compiled_peer, peer
from jaxebm import checks
from jaxebm.data import Examples
from jaxebm.energies import ConvNet, marginal_energy
from jaxebm.objectives import Batch, Negatives, NegativeSampler, jem, joint_loss, persistent
from jaxebm.samplers import UniformInitial, sgld
from jaxebm.training import Learner, TrainState, TrainStep, compile_steps, learner
from jaxebm.types import Array, Kernel, LogitsFn, MakeKernel, Metrics, Params

__all__ = ["JemProblem", "JemSizes", "Updates", "check_same_update", "jem_problem", "jem_workload"]

NUM_CLASSES = 10
OURS = "jaxebm, `compile_steps`"


@dataclass(frozen=True)
class JemSizes:
    """Sizes of an update."""

    batch_size: int = 64
    """Number of labelled images, of unlabelled images, and of chains."""
    sampler_steps: int = 20
    """Steps of SGLD per update."""
    channels: tuple[int, ...] = (64, 128)
    """Channels of the convolutional network."""
    buffer_size: int = 10_000
    """Slots of the replay buffer."""
    num_examples: int = 2000
    """Training images."""
    updates: int = 5
    """Updates per call, which is one dispatch."""

    def check(self) -> None:
        """Raises ``ValueError`` naming what is out of range."""
        for name in ("batch_size", "sampler_steps", "buffer_size", "num_examples", "updates"):
            checks.positive_integer(name, getattr(self, name))
        for number in self.channels:
            checks.positive_integer("channels", number)
        if self.batch_size > min(self.num_examples, self.buffer_size):
            raise ValueError(f"batch_size={self.batch_size} exceeds num_examples or buffer_size.")


class JemProblem(NamedTuple):
    """A training problem.

    Attributes:
      sizes: sizes of the update.
      shape: shape of an image, (height, width, channels), square.
      logits: ``(params, x) -> (K,)``.
      params: initial parameters.
      images: ``(num_examples, *shape)`` in [-1, 1].
      labels: their classes.
      seed: seed of all random numbers.
      step_size, noise_scale: numbers of SGLD, those of JEM.
      restart_probability: probability that a chain is restarted.
      learning_rate: learning rate of Adam.
      ema_decay: decay of the running average of the parameters.
    """

    sizes: JemSizes
    shape: tuple[int, int, int]
    logits: LogitsFn
    params: Params
    images: Array
    labels: Array
    seed: int
    step_size: float = 1.0
    noise_scale: float = 0.01
    restart_probability: float = 0.05
    learning_rate: float = 1e-4
    ema_decay: float = 0.999


def jem_problem(sizes: JemSizes, pixels: int, channels: int, seed: int) -> JemProblem:
    """Makes the network and random images for it."""
    shape = (pixels, pixels, channels)
    network = ConvNet(NUM_CLASSES, channels=sizes.channels)
    keys = jax.random.split(jax.random.key(seed), 3)
    images = jax.random.uniform(keys[0], (sizes.num_examples, *shape), minval=-1.0)
    labels = jax.random.randint(keys[1], (sizes.num_examples,), 0, NUM_CLASSES)
    params = jax.jit(network.init)(keys[2], images[0])
    return JemProblem(sizes, shape, cast(LogitsFn, network.apply), params, images, labels, seed)


def joint_objective(
    problem: JemProblem, params: Params, batch: Batch, x_model: Array
) -> tuple[Array, Metrics]:
    """Cross-entropy + p(x)."""
    labels = cast(Array, batch.labels)
    return joint_loss(problem.logits, params, batch.x_labelled, labels, batch.x_data, x_model)


def make_learner(problem: JemProblem, negatives: NegativeSampler) -> Learner:
    """Returns the learner with the given negatives."""
    return learner(
        jem(problem.logits),
        optimizer=optax.adam(problem.learning_rate),
        negatives=negatives,
        batch_size=problem.sizes.batch_size,
        ema_decay=problem.ema_decay,
    )


class Updates:
    """Calls that continue from the end of the last one, as in training: the state is donated."""

    def __init__(self, dispatch: TrainStep, state: TrainState, data: Any) -> None:
        self.dispatch, self.state, self.data = dispatch, state, data

    def __call__(self) -> Metrics:
        """Dispatches once; raises ``RuntimeError`` if training diverged, because the times would be wrong."""
        self.state, metrics = self.dispatch(self.state, self.data)
        if not np.isfinite(metrics["loss"]):
            raise RuntimeError("The benchmark's own training diverged: its times mean nothing.")
        return metrics


def _blackjax_kernel(problem: JemProblem) -> MakeKernel:
    """BlackJAX's SGLD as a kernel of ours: its states are bare positions, and it has no info."""
    import blackjax

    temperature = problem.noise_scale**2 / (2 * problem.step_size)

    class State(NamedTuple):
        position: Array

    def make_kernel(target: Callable[[Array], Array]) -> Kernel:
        slope = jax.grad(target)
        algorithm: Any = blackjax.sgld(lambda x, minibatch: -slope(x))  # pyright: ignore[reportArgumentType]

        def step(rng_key: Array, state: State) -> tuple[State, None]:
            moved = algorithm.step(rng_key, state.position, None, problem.step_size, temperature)
            return State(moved), None

        return Kernel(lambda position, rng_key=None: State(position), step)

    return make_kernel


def run_in_jax(problem: JemProblem, make_kernel: MakeKernel) -> Updates:
    """Makes `updates` updates of one dispatch, with chains of the given kernel."""
    sizes = problem.sizes
    negatives = persistent(
        make_kernel,
        num_steps=sizes.sampler_steps,
        initial=UniformInitial(-1.0, 1.0, problem.shape),
        num_chains=sizes.batch_size,
        capacity=sizes.buffer_size,
        restart_probability=problem.restart_probability,
    )
    learn, data = make_learner(problem, negatives), (problem.images, problem.labels)
    state = learn.init(jax.random.key(problem.seed), problem.params, data)
    return Updates(compile_steps(learn.step, sizes.updates), state, learn.place(data))


def bare_gradients(problem: JemProblem) -> Callable[[], Any]:
    """Makes the bare gradients: the same number of gradients, without drawing, storing or averaging."""
    slopes = jax.vmap(jax.grad(marginal_energy(problem.logits), argnums=1), (None, 0))
    sizes = problem.sizes
    x, labels = problem.images[: sizes.batch_size], problem.labels[: sizes.batch_size]

    def descend(params: Params, x: Array) -> tuple[Params, Array]:
        def update(carry: tuple[Params, Array], _: None) -> tuple[tuple[Params, Array], None]:
            params, chains = carry
            chains, _ = jax.lax.scan(
                lambda at, _: (at - 1e-3 * slopes(params, at), None), chains, length=sizes.sampler_steps
            )
            objective = partial(joint_objective, problem, batch=Batch(x, labels, x), x_model=chains)
            gradient, _ = jax.grad(objective, has_aux=True)(params)
            return (optax.tree.add_scale(params, -1e-6, gradient), chains), None

        return jax.lax.scan(update, (params, x), length=sizes.updates)[0]

    return partial(jax.jit(descend), problem.params, x)


def jem_workload(problem: JemProblem, *, torch_compile: bool) -> Workload:
    """Returns the contenders; a time is of one update. Results differ, because each draws its own noise."""
    options: dict[str, Any] = {"items": problem.sizes.updates, "agrees": False}
    ours = partial(sgld, step_size=problem.step_size, noise_scale=problem.noise_scale)
    contenders = [
        Contender(OURS, run_in_jax(problem, ours), **options),
        Contender("bare gradients, JAX", bare_gradients(problem), **options),
        Contender("BlackJAX's SGLD in our step", run_in_jax(problem, _blackjax_kernel(problem)), **options),
        peer("PyTorch, eager", "torch", lambda: peers.run_in_torch(problem), **options),
        peer(
            "PyTorch, eager, channels last",
            "torch",
            lambda: peers.run_in_torch(problem, channels_last=True),
            **options,
        ),
    ]
    if torch_compile:
        compiled = partial(peers.run_in_torch, problem, compiled=True)
        contenders.append(compiled_peer("PyTorch, torch.compile", compiled, **options))
    sampled = partial(peers.run_in_torch, problem, torchebm=True)
    contenders.append(peer("TorchEBM's Langevin in PyTorch's step", "torch torchebm", sampled, **options))
    sizes = problem.sizes
    shape = " x ".join(map(str, problem.shape))
    title = f"JEM update: images {shape}, ConvNet, batch {sizes.batch_size}, {sizes.sampler_steps} steps"
    return Workload(title, contenders, "update")


def _relative_difference(ours: Any, theirs: Any) -> float:
    """The largest difference of any leaf, relative to the leaf's largest number."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs)


def check_same_update(problem: JemProblem) -> dict[str, float]:
    """Compares energies, their gradients and one whole update from equal negatives with PyTorch's.

    The update goes through `jaxebm.training.learner` here and through the twin's own there, Adam and the
    running average included. Adam's first step divides a gradient by its own size, so that where the gradient
    is rounding error the step is, too: the mean difference is compared, in learning rates.

    Returns:
      The differences, relative to the largest number of a leaf; nothing where PyTorch is missing.

    Raises:
      RuntimeError: if one exceeds 1e-4, or 1e-3 for the update.
    """
    size = problem.sizes.batch_size
    x_model = jax.random.uniform(jax.random.key(problem.seed + 1), (size, *problem.shape), minval=-1.0)
    batch = Batch(problem.images[:size], problem.labels[:size], problem.images[-size:])
    try:
        twin = peers.TorchJem(problem)
    except ModuleNotFoundError:
        return {}

    energy = jax.vmap(jax.value_and_grad(marginal_energy(problem.logits), argnums=1), (None, 0))
    energies, slopes = jax.jit(energy)(problem.params, x_model)
    objective = partial(joint_objective, problem, batch=batch, x_model=x_model)
    gradient = jax.jit(jax.grad(objective, has_aux=True))(problem.params)[0]
    given = NegativeSampler(lambda key, example: (), lambda *arguments: (Negatives(x_model, None), ()))
    # As many examples as a batch holds: it is all of them, in another order.
    learn, data = make_learner(problem, given), Examples(*batch)
    state = learn.init(jax.random.key(problem.seed), problem.params, data)
    state, _ = jax.jit(learn.step)(state, learn.place(data))

    found = twin.energies_and_slopes(np.asarray(x_model))
    x_labelled, labels, x_data = map(np.array, batch)
    in_torch = twin.update(x_labelled, labels, x_data, np.array(x_model))
    ours = (energies, slopes), gradient["params"], (state.params["params"], state.ema_params["params"])
    differences = {"energies": _relative_difference(ours[0][0], found[0])}
    differences["slopes"] = _relative_difference(ours[0][1], found[1])
    differences["gradient"] = _relative_difference(ours[1], in_torch[0])
    apart = jax.tree.map(lambda a, b: float(np.mean(np.abs(a - b))), ours[2], in_torch[1:])
    differences["update"] = max(jax.tree.leaves(apart)) / problem.learning_rate
    for name, difference in differences.items():
        allowed = 1e-3 if name == "update" else 1e-4
        if not difference <= allowed:
            raise RuntimeError(
                f"JEM update on images {problem.shape}: {name} in PyTorch differ by {difference:.2g}, more "
                f"than {allowed:g}."
            )
    return differences
