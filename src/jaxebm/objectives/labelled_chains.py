"""Many chains at once, each on the energy of its own class, for the negatives and the last-step loss.

The target of a chain is the energy with its parameters and one class bound to it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxebm import checks
from jaxebm.energies.classifier import JointEnergy
from jaxebm.objectives.contrastive import noted
from jaxebm.samplers.chains import run_chain
from jaxebm.types import BATCH_AXIS, Array, JointEnergyFn, LogitsFn, MakeKernel, Params, Position, Target

__all__ = ["run_labelled_chains"]

SHARDING = "It is jaxebm.training.Placement.split."


def class_logits(energy: Any) -> LogitsFn | None:
    """Returns the logits of a joint energy of this package; None where the classes are not known."""
    if isinstance(energy, JointEnergy):
        return energy.logits
    return energy.module.apply if getattr(energy, "kind", None) == "joint" else None


def check_labels(energy: Any, params: Params, positions: Position, labels: Array) -> None:
    """Raises unless labels are integers, and classes of the energy as far as both are known."""
    num_chains = checks.batch_length("positions", positions)
    checks.array("labels", labels, (num_chains,), f"({num_chains},), one class for each of the positions,")
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise TypeError(f"labels has dtype {jnp.result_type(labels)}: integer class labels are needed.")
    logits = class_logits(energy)
    if logits is None or checks.is_traced(labels):
        return
    batched = jax.vmap(logits, (None, 0), axis_name=BATCH_AXIS)
    with noted("energy", params=params, positions=positions):
        num_classes = jax.eval_shape(batched, params, positions).shape[-1]
    checks.integer_labels("labels", labels, num_classes)


def bind_target(energy: JointEnergyFn, params: Params, label: Array) -> Target:
    """Returns the target x -> E(x, y): ``energy.bind(params, label)`` where the energy has it, or a closure.

    Through ``bind`` a kernel can use more of an energy than its values, such as the network's first layer.
    """
    bind = getattr(energy, "bind", None)
    return (lambda x: energy(params, x, label)) if bind is None else bind(params, label)


def map_chains(
    function: Callable[[Array, Position, Array], Any],
    rng_key: Array,
    positions: Position,
    labels: Array,
    sharding: NamedSharding | None,
) -> Any:
    """Maps ``(rng_key, position, label) -> pytree`` over chains, one key per chain, split over devices."""
    checks.rng_key("rng_key", rng_key)
    checks.instance("sharding", sharding, (NamedSharding, type(None)), SHARDING)
    num_chains = checks.batch_length("positions", positions)
    checks.array("labels", labels, (num_chains,), f"({num_chains},), one class for each of the positions,")
    keys = jax.random.split(rng_key, num_chains)
    if sharding is not None:
        if num_chains % sharding.mesh.size:
            raise ValueError(
                f"positions hold {num_chains} chains, which cannot be split over {sharding.mesh.size} "
                "devices: use a multiple of their number."
            )
        keys, positions, labels = jax.lax.with_sharding_constraint((keys, positions, labels), sharding)
    return jax.vmap(function, axis_name=BATCH_AXIS)(keys, positions, labels)


def run_labelled_chains(
    rng_key: Array,
    make_kernel: MakeKernel,
    energy: JointEnergyFn,
    params: Params,
    positions: Position,
    labels: Array,
    num_steps: int,
    sharding: NamedSharding | None = None,
) -> Position:
    """Advances chain i on the target E(x, y_i), all chains at once.

    Args:
      rng_key: split into one key per chain.
      make_kernel: binds a kernel to a target.
      energy: E(params, x, label), shape ``()``. Where it has a method ``bind(params, label) -> target``, the
        kernel gets that target, and otherwise a closure over params and label.
      params: the energy's parameters.
      positions: where the chains start, each leaf ``(n, ...)``.
      labels: one class per chain, ``(n,)``.
      num_steps: kernel steps.
      sharding: how the chains are split over devices, ``jaxebm.training.Placement.split``; None for one.

    Returns:
      The final positions of the chains, in the structure of ``positions``.

    Raises:
      TypeError: if an argument has the wrong type, a function takes other arguments, or ``labels`` are not
        integers.
      ValueError: if ``positions`` hold no chain, ``labels`` are not one per chain or out of range for the
        classes of a `jaxebm.energies.joint_energy`, or the number of devices of the sharding does not divide
        that of the chains. Where labels are traced, chains of a class that does not exist are NaN.

    Example:
      >>> from functools import partial
      >>> import jax, jax.numpy as jnp
      >>> from jaxebm.samplers.langevin import sgld
      >>> energy = lambda params, x, y: 50.0 * jnp.sum((x - y) ** 2)
      >>> x = run_labelled_chains(
      ...     jax.random.key(0), partial(sgld, step_size=0.005, noise_scale=0.0), energy, None,
      ...     jnp.zeros((2, 1)), jnp.array([0, 3]), 50)
      >>> [round(float(v), 2) for v in x[:, 0]]
      [0.0, 3.0]
    """

    checks.kernel_constructor("make_kernel", make_kernel)
    checks.function("energy", energy, "params", "x", "label")
    checks.real_arrays("positions", positions)
    checks.positive_integer("num_steps", num_steps)
    check_labels(energy, params, positions, labels)

    def one_chain(key: Array, position: Position, label: Array) -> Position:
        kernel = make_kernel(bind_target(energy, params, label))
        return run_chain(key, kernel, position, num_steps)[0].position

    with noted("energy", params=params, positions=positions):
        return map_chains(one_chain, rng_key, positions, labels, sharding)
