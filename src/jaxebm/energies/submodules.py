"""A Flax module split at one of its submodules: the input of the submodule, its output, and the rest.

Nothing of the module is rewritten: Flax lets a call be watched, and its result replaced. So this works for
every ``flax.linen`` module that is called as ``module.apply(variables, x)`` on one example, a user's own
included.

A submodule is named as it is in the variables: ``"stem"``, ``"level_0"``, ``"Dense_0"``; one inside of
another by its path, ``"encoder/Dense_0"``. A layer inside of ``nn.SpectralNorm`` may be named by itself or by
its wrapper, ``"SpectralNorm_0"``, which is called for the same result. Running statistics are used, and never
moved: modules with ``norm="batch"`` are in inference mode.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxebm import checks
from jaxebm.energies.classifier import joint_energy, marginal_energy
from jaxebm.types import Array, Params, Position

__all__ = [
    "SplitEnergy",
    "SplitTarget",
    "first_submodule",
    "split_energy",
    "submodule_input",
    "submodule_output",
]

EnergyKind = Literal["marginal", "joint"]
_COLLECTION = "jaxebm_submodules"


def submodule_output(module: nn.Module, name: str) -> Callable[[Params, Position], Any]:
    """Returns f(variables, x) = what the named submodule returns when the module is applied to x.

    Args:
      module: a Flax module on one example.
      name: of the submodule, which must be called exactly once.

    Returns:
      ``(variables, x) -> output``; equal for equal modules and names, fit to be a static argument of
      ``jax.jit``. It raises ``ValueError`` where the submodule is unknown, with the names that there are, or
      called more than once.

    Raises:
      ValueError: if the name is empty.
      TypeError: if ``module`` is no Flax module.

    Example:
      >>> from jaxebm.energies.networks import ConvNet
      >>> module = ConvNet(num_outputs=10, channels=(8,))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> submodule_output(module, "level_0")(variables, jnp.ones((8, 8, 1))).shape
      (4, 4, 8)
    """
    _check_module(module)
    _check_name(name)
    return _Capture(module, name, "output")


def submodule_input(module: nn.Module, name: str) -> Callable[[Params, Position], Any]:
    """Returns f(variables, x) = the input of the named submodule; at ``"output"``, a classifier's features.

    Args:
      module: a Flax module on one example.
      name: of the submodule, which must be called exactly once.

    Returns:
      ``(variables, x) -> input``, the first argument of the submodule; equal for equal modules and names. It
      raises ``ValueError`` as that of ``submodule_output`` does.

    Raises:
      ValueError: if the name is empty.
      TypeError: if ``module`` is no Flax module.

    Example:
      >>> from jaxebm.energies.networks import ConvNet
      >>> module = ConvNet(num_outputs=10, channels=(8,))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((8, 8, 1)))
      >>> submodule_input(module, "output")(variables, jnp.ones((8, 8, 1))).shape
      (128,)
    """
    _check_module(module)
    _check_name(name)
    return _Capture(module, name, "input")


def first_submodule(module: nn.Module, example: Position) -> str:
    """Returns the name of the module's first layer: the direct submodule that returns before all others.

    Nothing is computed but shapes. Of a wrapped layer it is the layer's own name.

    Args:
      module: a Flax module on one example.
      example: one x, or its ``jax.ShapeDtypeStruct``.

    Returns:
      A name for ``split_energy``.

    Raises:
      ValueError: if the module calls no submodule.
      TypeError: if ``module`` is no Flax module, or ``example`` holds no real numbers.

    Example:
      >>> from jaxebm.energies.networks import WideResNet
      >>> first_submodule(WideResNet(num_outputs=10, depth=10, width=1), jnp.zeros((8, 8, 3)))
      'stem'
    """
    _check_module(module)
    _check_example(example)
    returned: list[str] = []

    def watch(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        result = next_function(*arguments, **keywords)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            returned.append(context.module.path[0])
        return result

    with checks.shapes_noted(example=example), nn.intercept_methods(watch):
        jax.eval_shape(module.init, jax.random.key(0), example)
    if not returned:
        raise ValueError(f"{type(module).__name__} calls no submodule: there is no first layer to name.")
    return returned[0]


def split_energy(module: nn.Module, name: str, kind: EnergyKind = "marginal") -> "SplitEnergy":
    """Returns the energy that a network defines, open at one of its submodules.

    E(x) = rest(x, first(x)), where first(x) = h is the output of the submodule. ``kind`` names the energy:

    - ``"marginal"``: E(x) = -logsumexp f(x), or the module's own output where that is a scalar;
    - ``"joint"``: E(x, y) = -f(x)[y].

    Args:
      module: a Flax module on one example, with logits (K,) or a scalar energy.
      name: of the submodule, which must be called exactly once.
      kind: ``"marginal"`` or ``"joint"``.

    Returns:
      ``energy(variables, x[, label]) -> ()``, whose ``bind`` makes the target that can be taken apart.

    Raises:
      ValueError: if ``kind`` is unknown or the name empty.
      TypeError: if ``module`` is no Flax module.

    Example:
      >>> from jaxebm.energies.networks import MLP
      >>> module = MLP(num_outputs=10, widths=(32, 32))
      >>> variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros(4))
      >>> target = split_energy(module, "hidden_0", "joint").bind(variables, 3)
      >>> h = target.first(jnp.ones(4))
      >>> h.shape, bool(target.rest(jnp.ones(4), h) == target(jnp.ones(4)))
      ((32,), True)

    Reference:
      Zhang et al. 2019, You only propagate once (arXiv:1905.00877), which splits a network after its first
      layer so.
    """
    return SplitEnergy(module, name, kind)


@dataclass(frozen=True)
class SplitEnergy:
    """An ``EnergyFn`` and ``JointEnergyFn`` of a Flax module, made by ``split_energy``.

    Equal for equal modules, names and kinds, so that ``jax.jit`` does not trace again.

    Attributes:
      module: the network.
      name: the submodule after which it is open.
      kind: ``"marginal"`` or ``"joint"``.

    Raises:
      ValueError: if ``kind`` is unknown or the name empty.
      TypeError: if ``module`` is no Flax module.

    Example:
      >>> from jaxebm.energies.networks import MLP
      >>> energy = SplitEnergy(MLP(num_outputs=3, widths=(8,)), "hidden_0", "joint")
      >>> float(energy.of_output(jnp.array([1.0, 2.0, 3.0]), 2))
      -3.0
    """

    module: nn.Module
    name: str
    kind: EnergyKind

    def __post_init__(self) -> None:
        _check_module(self.module)
        _check_name(self.name)
        checks.one_of("kind", self.kind, get_args(EnergyKind))

    def __call__(self, params: Params, x: Position, label: Array | int | None = None, /) -> Array:
        """Returns E(x), or for ``"joint"`` E(x, label), shape ``()``; a marginal energy ignores the label."""
        with checks.shapes_noted(params=params, x=x):
            output = self.module.apply(params, x)
        return self.of_output(output, label)

    def bind(self, params: Params, label: Array | int | None = None) -> "SplitTarget":
        """Returns the target of these parameters and, for ``"joint"``, this class; both may be traced."""
        return SplitTarget(self, params, label)

    def of_output(self, output: Any, label: Array | int | None = None) -> Array:
        """Returns the energy, given what the module returned."""
        if self.kind == "joint":
            self._check_label(label)
            if jnp.ndim(output) == 1:
                checks.integer_labels("label", label, jnp.shape(output)[0])
            return joint_energy(lambda _, values: values)(None, output, label)  # type: ignore[arg-type]
        # Not only for num_outputs=None: a module of a user may return a scalar without saying so beforehand.
        return output if jnp.ndim(output) == 0 else marginal_energy(lambda _, values: values)(None, output)

    def _check_label(self, label: Array | int | None) -> None:
        if self.kind == "joint":
            if label is None:
                raise ValueError(
                    "label=None: a joint energy is that of a pair; give the class, an integer of shape ()."
                )
            checks.array("label", label, (), "one class, shape (),")
            if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
                raise TypeError(f"label has dtype {jnp.result_type(label)}: an integer class is needed.")
            if not checks.is_traced(label) and int(label) < 0:
                raise ValueError(f"label={label!r}: a class number 0..K-1 is needed.")
            num_classes = getattr(self.module, "num_outputs", None)
            if isinstance(num_classes, int):
                checks.integer_labels("label", label, num_classes)


@dataclass(frozen=True, eq=False)
class SplitTarget:
    """A target x -> E(x) in two parts: E(x) = rest(x, first(x)).

    Attributes:
      energy: the energy that it was bound from.
      params: the module's variables.
      label: the class, of a joint energy.

    Raises:
      TypeError: if ``energy`` is no ``SplitEnergy``, or the label of a joint energy no integer.
      ValueError: if that label is missing, negative or, where the network says its ``num_outputs``, not below
        them.

    Example:
      >>> from jaxebm.energies.networks import MLP
      >>> module = MLP(num_outputs=3, widths=(8,))
      >>> params = jax.jit(module.init)(jax.random.key(0), jnp.zeros(4))
      >>> target = SplitTarget(split_energy(module, "hidden_0", "joint"), params, 2)
      >>> target.first(jnp.ones(4)).shape, target(jnp.ones(4)).shape
      ((8,), ())
    """

    energy: SplitEnergy
    params: Params
    label: Array | int | None

    def __post_init__(self) -> None:
        checks.instance("energy", self.energy, SplitEnergy, "split_energy makes one.")
        self.energy._check_label(self.label)

    def __call__(self, x: Position, /) -> Array:
        """Returns E(x), shape ``()``."""
        return self.energy(self.params, x, self.label)

    def first(self, x: Position, /) -> Any:
        """Returns h, the output of the submodule that the energy is split at."""
        return _Capture(self.energy.module, self.energy.name, "output")(self.params, x)

    def rest(self, x: Position, h: Any, /) -> Array:
        """Returns E(x) with h in the place of the submodule's output, which is not computed, shape ``()``."""
        module, name = self.energy.module, self.energy.name
        called: list[str] = []

        def replace(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            if context.method_name == "__call__":
                called.append("/".join(context.module.path))
                if called[-1] == name:
                    return h
            return next_function(*arguments, **keywords)

        with checks.shapes_noted(params=self.params, x=x, h=h), nn.intercept_methods(replace):
            output = module.apply(self.params, x)
        _check_called_once(module, name, called)
        return self.energy.of_output(output, self.label)


@dataclass(frozen=True)
class _Capture:
    """A frozen class instead of a closure: equal for equal modules, so ``jit`` does not trace again."""

    module: nn.Module
    name: str
    what: Literal["input", "output"]

    def __call__(self, params: Params, x: Position, /) -> Any:
        called: list[str] = []

        def keep(next_function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
            result = next_function(*arguments, **keywords)
            if context.method_name == "__call__":
                called.append("/".join(context.module.path))
                if called[-1] == self.name:
                    # Sown and not put into a Python variable: that would leak out of a submodule which Flax
                    # calls under a transformation, as nn.remat.
                    entering = arguments[0] if arguments else next(iter(keywords.values()))
                    context.module.sow(_COLLECTION, "kept", entering if self.what == "input" else result)
            return result

        with checks.shapes_noted(params=params, x=x), nn.intercept_methods(keep):
            _, kept = self.module.apply(params, x, mutable=[_COLLECTION])
        _check_called_once(self.module, self.name, called)
        found: Mapping[str, Any] = kept[_COLLECTION]
        for part in self.name.split("/"):
            found = found[part]
        return found["kept"][0]


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: the name of a submodule is needed, as 'stem' or 'encoder/Dense_0'.")


def _check_example(example: Any) -> None:
    for leaf in jax.tree.leaves(example) or [None]:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            checks.array("example", leaf)
        elif not jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"example has dtype {leaf.dtype}: real numbers are needed.")


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module={module!r} is no flax.linen.Module, which alone can be watched from outside. Of other "
            f"networks write a target of your own, with first(x) -> h, rest(x, h) -> energy and __call__(x)."
        )


def _check_called_once(module: nn.Module, name: str, called: list[str]) -> None:
    times = called.count(name)
    if times == 0:
        names = dict.fromkeys(path for path in called if path and "/" not in path)
        there = f"it calls {', '.join(names)}" if names else "it calls none"
        raise ValueError(f"name={name!r}: {type(module).__name__} calls no such submodule; {there}.")
    if times > 1:
        raise ValueError(
            f"name={name!r}: {type(module).__name__} calls this submodule {times} times for one example: it "
            f"has no one input and output; name one that is called once."
        )
