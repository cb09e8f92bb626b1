"""Placement of a run's arrays: chains, batches and the buffer split over the devices of one or more hosts.

The mesh has one axis, ``"shards"``. Slots, examples and chains are split along their leading axis, in whole
strata (`jaxebm.samplers.replay`, `jaxebm.data.stream`), so the sampler needs no communication. Parameters,
keys and counters are replicated; parameters, their average and the optimiser's state can be split, too.
Results depend on the number of strata and not on that of devices, except for the order of sums.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxebm import checks
from jaxebm.objectives.negatives import SamplerState
from jaxebm.training.manifest import is_key
from jaxebm.training.state import TrainState
from jaxebm.types import Array, Params

__all__ = [
    "SHARDS",
    "SMALLEST_SPLIT",
    "Placement",
    "fetch",
    "initialize_distributed",
    "make_placement",
]

SHARDS = "shards"
"""The name of the axis of the mesh."""
SMALLEST_SPLIT = 1024
"""Smaller parameters stay replicated with ``shard_parameters``: the communication would cost more."""

Tree = TypeVar("Tree")

_PARAMETERS = ("params", "optimizer_state", "ema_params")


@dataclass(frozen=True)
class Placement:
    """The devices of every array of a run; made by `make_placement`.

    Attributes:
      mesh: the devices, one axis ``"shards"``.
      num_strata: blocks into which examples, slots and chains are divided; each device holds equally many.
      shard_parameters: whether parameters, their average and the optimiser's state are split too.
    """

    mesh: Mesh
    num_strata: int
    shard_parameters: bool = False

    @property
    def num_devices(self) -> int:
        """Devices in the mesh, of all processes."""
        return self.mesh.size

    @property
    def split(self) -> NamedSharding:
        """The sharding of examples, slots and chains: along the leading axis."""
        return NamedSharding(self.mesh, PartitionSpec(SHARDS))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds completely."""
        return NamedSharding(self.mesh, PartitionSpec())

    # --- inside the compiled step ---

    def shard_batch(self, batch: Tree) -> Tree:
        """Splits a batch along its leading axis, inside a compiled function.

        Args:
          batch: a pytree; leaves ``(batch_size, ...)`` are split, scalars replicated.

        Returns:
          The batch.

        Raises:
          ValueError: if a leading axis is not a multiple of the number of devices.
        """
        return jax.lax.with_sharding_constraint(batch, self._split_all("batch", batch))

    def gather(self, params: Params) -> Params:
        """Replicates split parameters on each device, inside a compiled function."""
        return jax.lax.with_sharding_constraint(params, jax.tree.map(lambda _: self.replicated, params))

    def scatter(self, gradient: Params) -> Params:
        """Gives each device the part of a gradient that it updates, inside a compiled function."""
        return jax.lax.with_sharding_constraint(gradient, jax.tree.map(self._parameter, gradient))

    def constrain(self, state: TrainState) -> TrainState:
        """Gives a state its `state_shardings`, inside a compiled function, so that it can be donated."""
        return jax.lax.with_sharding_constraint(state, self.state_shardings(state))

    # --- outside of it ---

    def state_shardings(self, state: TrainState) -> TrainState:
        """Returns the sharding of every leaf of a state.

        Args:
          state: arrays or their shapes (``jax.eval_shape``).

        Returns:
          The state's pytree with one `jax.sharding.NamedSharding` per leaf. The chains and the streams are
          split along their leading axis. Parameters, their average and the optimiser's state are replicated
          or, with ``shard_parameters`` and at least `SMALLEST_SPLIT` entries, split along the longest axis
          that the number of devices divides. All else, such as the initial distribution, is replicated.

        Raises:
          ValueError: if a leading axis of the chains or streams is not a multiple of the number of devices.
        """
        shardings = {}
        for name, part in state._asdict().items():
            if name == "sampler_state" and isinstance(part, SamplerState):
                # The chains are split; each device has a copy of the initial distribution.
                shardings[name] = SamplerState(
                    buffer=self._split_all("state.sampler_state.buffer", part.buffer),
                    initial=jax.tree.map(lambda _: self.replicated, part.initial),
                )
            elif name in ("sampler_state", "streams"):
                shardings[name] = self._split_all(f"state.{name}", part)
            else:
                of = self._parameter if name in _PARAMETERS else lambda _: self.replicated
                shardings[name] = jax.tree.map(of, part)
        return state._replace(**shardings)

    def place_state(self, state: TrainState) -> TrainState:
        """Copies a state onto the mesh. With several processes all must hold equal values.

        Args:
          state: on any devices that this process can read.

        Returns:
          The state, each leaf with its sharding of `state_shardings`.

        Raises:
          ValueError: as `state_shardings`; or if a stream has another number of strata.

        Example:
          >>> import jax, optax
          >>> from jaxebm.objectives import classifier
          >>> from jaxebm.training import learner
          >>> objective = classifier(lambda params, x: params * x)
          >>> learn = learner(objective, optimizer=optax.adam(1e-3), batch_size=2)
          >>> state = learn.init(jax.random.key(0), jnp.ones(2), (jnp.eye(2), jnp.arange(2)))
          >>> make_placement(1).place_state(state).params.sharding.is_fully_replicated
          True
        """
        # Copies, even of arrays that are there already: the step donates them and must keep the originals.
        return jax.tree.map(lambda leaf, to: _put(jnp.copy(leaf), to), state, self.state_shardings(state))

    def place_data(self, data: Tree, *, local: bool = False) -> Tree:
        """Puts training arrays onto the mesh; device d gets the d-th contiguous part.

        All strata have the same size: of n examples the last n mod ``num_strata`` are left out.

        Args:
          data: a pytree of arrays, leaves ``(n, ...)``; n may differ between leaves.
          local: whether each process passes only its own block of the examples, in the order of the
            processes and as many as each other process; otherwise each process passes all of them.

        Returns:
          The data as global arrays.

        Raises:
          ValueError: if there are fewer examples than strata, or if processes pass different numbers.

        Example:
          >>> make_placement(1, num_strata=4).place_data(np.zeros((10, 3))).shape
          (8, 3)
        """
        parts = jax.process_count() if local else 1
        strata = self.num_strata // parts
        lengths = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)]
        for length in lengths:
            if not length or length[0] < strata:
                raise ValueError(
                    f"data holds a leaf with {length[0] if length else 'no'} examples: at least {strata} are "
                    f"needed, one for each stratum{' of this process' if local else ''}."
                )
        if parts > 1:
            _check_equal_lengths([length[0] for length in lengths])

        def put(leaf: Any) -> Array:
            kept = leaf[: strata * (leaf.shape[0] // strata)]
            if parts == 1:
                return _put(kept, self.split)
            return jax.make_array_from_process_local_data(self.split, np.asarray(kept))

        return jax.tree.map(put, data)

    def _split_all(self, name: str, tree: Any) -> Any:
        def split(leaf: Any) -> NamedSharding:
            if not leaf.ndim:
                return self.replicated
            if leaf.shape[0] % self.num_devices:
                raise ValueError(
                    f"{name} has a leaf of shape {leaf.shape}, whose leading axis cannot be split over "
                    f"{self.num_devices} devices: use num_strata={self.num_strata} for the streams and the "
                    "negatives, and sizes that are multiples of it."
                )
            return self.split

        return jax.tree.map(split, tree)

    def _parameter(self, leaf: Any) -> NamedSharding:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % self.num_devices == 0]
        if not self.shard_parameters or not axes or math.prod(leaf.shape) < SMALLEST_SPLIT:
            return self.replicated
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, SHARDS))


def make_placement(
    num_devices: int | None = None,
    *,
    num_strata: int | None = None,
    shard_parameters: bool = False,
    devices: Sequence[Any] | None = None,
) -> Placement:
    """Makes the placement of a run over the first available devices.

    Args:
      num_devices: how many to use, of all processes; all of them by default.
      num_strata: a multiple of ``num_devices``; pass the same number to `jaxebm.data.init_stream` and
        `jaxebm.objectives.persistent`; ``num_devices`` by default. Runs with the same number of strata
        compute the same results on any number of devices.
      shard_parameters: split parameters, their average and the optimiser's state over the devices, and gather
        the parameters once per update; for networks that are too large for one device.
      devices: the devices to choose from; ``jax.devices()`` by default.

    Returns:
      A `Placement`.

    Raises:
      TypeError: if ``devices`` is no sequence of devices, or ``shard_parameters`` not True or False.
      ValueError: if a count is not an integer of at least 1, there are fewer devices, ``num_strata`` is not
        a multiple of their number, or the processes would have unequal numbers of them.

    Example:
      >>> placement = make_placement(1, num_strata=4)
      >>> placement.num_devices, placement.mesh.axis_names
      (1, ('shards',))
    """
    checks.boolean("shard_parameters", shard_parameters)
    if devices is not None:
        checks.instance("devices", devices, (Sequence, np.ndarray))
        for index, device in enumerate(devices):
            checks.instance(f"devices[{index}]", device, jax.Device, "jax.devices() has them.")
        if len(devices) == 0:
            raise ValueError("devices is empty: at least one is needed.")
    found = list(jax.devices() if devices is None else devices)
    # A process passes a contiguous block of the data, so its devices must be neighbours.
    found.sort(key=lambda device: (device.process_index, device.id))
    num_devices = len(found) if num_devices is None else num_devices
    checks.positive_integer("num_devices", num_devices)
    if num_devices > len(found):
        raise ValueError(
            f"num_devices={num_devices}: there are {len(found)} ({found[0].platform}); use at most that. To "
            f"simulate them on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}."
        )
    num_strata = num_devices if num_strata is None else num_strata
    checks.positive_integer("num_strata", num_strata)
    if num_strata % num_devices:
        raise ValueError(
            f"num_strata={num_strata} must be a multiple of num_devices={num_devices}: a device holds whole "
            "strata."
        )
    used = found[:num_devices]
    counts = [
        sum(device.process_index == process for device in used) for process in range(jax.process_count())
    ]
    if len(set(counts)) > 1:
        raise ValueError(
            f"num_devices={num_devices} gives the {len(counts)} processes {counts} devices: every process "
            "needs the same number; leave num_devices out to use them all."
        )
    return Placement(
        Mesh(np.array(used), (SHARDS,), axis_types=(AxisType.Auto,)), num_strata, shard_parameters
    )


def initialize_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several that train together; call it before any other function of JAX.

    Without arguments JAX detects the other processes under SLURM, Open MPI, mpi4py, Kubernetes and on TPU
    pods. Afterwards ``jax.devices()`` are those of all processes. On CPUs they communicate through Gloo.

    Args:
      coordinator: ``"host:port"`` of process 0, with a free port.
      num_processes: number of processes.
      process_id: number of this process, from 0.

    Raises:
      ValueError: if some arguments are given and others not, one is out of range, or none is given and JAX
        detects no cluster.
      RuntimeError: if JAX has been used before, or the other processes do not connect.

    Example:
      >>> initialize_distributed("localhost:1234", num_processes=2)
      Traceback (most recent call last):
      ValueError: process_id missing: give all of coordinator, num_processes, process_id, or none of them.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"{', '.join(missing)} missing: give all of {', '.join(given)}, or none of them.")
    if coordinator is not None:
        _check_processes(coordinator, num_processes, process_id)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        if not missing:
            raise
        raise ValueError(
            "no cluster was detected (SLURM, Open MPI, mpi4py, Kubernetes, a TPU pod): give "
            "coordinator='host:port', num_processes and process_id."
        ) from error


def _check_processes(coordinator: str, num_processes: Any, process_id: Any) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={coordinator!r}: 'host:port' of process 0 is needed.")
    checks.positive_integer("num_processes", num_processes)
    if not isinstance(process_id, int) or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id={process_id!r}: an integer in 0..{num_processes - 1} is needed.")


def fetch(tree: Tree) -> Tree:
    """Copies arrays to the host, also those of which this process holds only a part.

    With several processes each must call it, on the same tree.

    Args:
      tree: arrays, placed or not; typed keys included.

    Returns:
      The same pytree of complete NumPy arrays (typed keys as JAX arrays of this process).

    Raises:
      TypeError: if a leaf is no array.

    Example:
      >>> print(fetch(make_placement(1).place_data(np.arange(3))))
      [0 1 2]
    """
    checks.arrays("tree", tree)
    return jax.tree.map(lambda leaf: _on_data(_fetch_array, leaf), tree)


def _fetch_array(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _on_data(function: Callable[[Any], Any], leaf: Any) -> Any:
    """Applies a function of plain arrays; to typed keys, which NumPy does not support, through their bits."""
    if not is_key(leaf):
        return function(leaf)
    bits = function(jax.random.key_data(leaf))
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)

    def put(array: Any) -> Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return _on_data(put, leaf)


def _check_equal_lengths(lengths: list[int]) -> None:
    everywhere = np.asarray(multihost_utils.process_allgather(np.asarray(lengths)))
    if np.any(everywhere != everywhere[0]):
        raise ValueError(
            f"the processes pass {everywhere.tolist()} examples: each must pass the same number."
        )
