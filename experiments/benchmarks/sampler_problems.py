"""The targets of `benchmarks.samplers`: each energy in JAX and, with the same parameters, in PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sampler_peers import TorchEnergies
from jaxebm.cpu.convolution import convolve_direct
from jaxebm.energies import MLP, ConvNet
from jaxebm.types import EnergyFn, Params

__all__ = ["Problem", "convnet_in_torch", "gaussian", "images", "mlp"]

Runs = dict[str, tuple[float, int]]


class Problem(NamedTuple):
    """An energy to sample from.

    Attributes:
      title: title of the table.
      energy: ``energy(params, x) -> ()``.
      params: its parameters.
      positions: initial positions of the chains.
      runs: step size and number of transitions of each sampler that is run on it; MALA accepts about 0.7 of
        its proposals and HMC more, so that a wrong test would show.
      in_torch: the same energy in PyTorch, of a batch, from the parameters.
      plain: the same energy without this package's convolution, where it has one.
    """

    title: str
    energy: EnergyFn
    params: Params
    positions: jax.Array
    runs: Runs
    in_torch: Callable[[Any], TorchEnergies]
    plain: EnergyFn | None = None


def mlp(seed: int, num_chains: int, widths: Sequence[int], runs: Runs) -> Problem:
    """A network of two numbers, kept together by half their squared norm."""
    module = MLP(num_outputs=None, widths=widths)
    keys = jax.random.split(jax.random.key(seed))
    positions = jax.random.normal(keys[0], (num_chains, 2))

    def energy(params: Params, x: jax.Array) -> jax.Array:
        return module.apply(params, x) + jnp.sum(x**2) / 2  # pyright: ignore[reportOperatorIssue, reportReturnType]

    def in_torch(params: Any) -> TorchEnergies:
        import torch  # pyright: ignore[reportMissingImports]

        names = [f"hidden_{level}" for level in range(len(widths))]
        layers = [_layer_in_torch(params["params"][name]) for name in (*names, "output")]

        def energies(x: Any) -> Any:
            h = x
            for weights, bias in layers[:-1]:
                h = torch.nn.functional.silu(torch.nn.functional.linear(h, weights, bias))
            return torch.nn.functional.linear(h, *layers[-1])[:, 0] + x.square().sum(1) / 2

        return energies

    hidden = " x ".join(map(str, widths))
    return Problem(
        f"2-D energy, MLP {hidden}, {num_chains} chains",
        energy,
        jax.jit(module.init)(keys[1], positions[0]),
        positions,
        runs,
        in_torch,
    )


def _layer_in_torch(layer: Any) -> tuple[Any, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(np.ascontiguousarray(layer["kernel"].T)), torch.from_numpy(layer["bias"])


def gaussian(seed: int, num_chains: int, dimension: int, runs: Runs) -> Problem:
    """Independent coordinates with standard deviations from 0.5 to 2: next to no work but the sampler's."""
    precisions = jnp.geomspace(0.25, 4.0, dimension)
    positions = jax.random.normal(jax.random.key(seed), (num_chains, dimension))

    def energy(precisions: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(precisions * x**2) / 2

    def in_torch(precisions: Any) -> TorchEnergies:
        import torch  # pyright: ignore[reportMissingImports]

        weights = torch.from_numpy(precisions)
        return lambda x: (weights * x.square()).sum(1) / 2

    return Problem(
        f"Gaussian of {dimension} dimensions, {num_chains} chains",
        energy,
        precisions,
        positions,
        runs,
        in_torch,
    )


def images(seed: int, num_chains: int, pixels: int, channels: Sequence[int], runs: Runs) -> Problem:
    """A small convolutional network: two strided convolutions and a linear layer."""
    module = ConvNet(num_outputs=None, channels=channels)
    keys = jax.random.split(jax.random.key(seed))
    shape = (pixels, pixels, 1)
    positions = jax.random.uniform(keys[0], (num_chains, *shape), minval=-1.0)

    def energy(params: Params, x: jax.Array) -> jax.Array:
        return module.apply(params, x)  # pyright: ignore[reportReturnType]

    def plain(params: Params, x: jax.Array) -> jax.Array:
        layers = params["params"]
        for level in range(len(channels)):
            layer = layers[f"level_{level}"]
            x = convolve_direct(x, layer["kernel"], (2, 2), "SAME") + layer["bias"].reshape(1, 1, -1)
            x = jax.nn.swish(x)
        return (x.reshape(-1) @ layers["output"]["kernel"] + layers["output"]["bias"])[0]

    def in_torch(params: Any) -> TorchEnergies:
        tensors, logits = convnet_in_torch(params["params"], pixels)
        return lambda x: logits(tensors, x.permute(0, 3, 1, 2))[:, 0]

    return Problem(
        f"images {pixels} x {pixels} x 1, ConvNet, {num_chains} chains",
        energy,
        jax.jit(module.init)(keys[1], positions[0]),
        positions,
        runs,
        in_torch,
        plain,
    )


def convnet_in_torch(layers: Any, pixels: int) -> tuple[list[Any], Callable[[Sequence[Any], Any], Any]]:
    """Returns `jaxebm.energies.ConvNet` with swish in PyTorch, as its tensors and a function of them.

    Args:
      layers: the network's parameters ``level_0``, ``level_1``, ... and ``output``, as arrays of NumPy.
      pixels: height and width of an image.

    Returns:
      ``(tensors, logits)`` with ``logits(tensors, x)``, (n, C, H, W) to (n, K); tensors are kernels and
      biases in turns, the last layer's among them, laid out as PyTorch's layers have them.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional as nn  # pyright: ignore[reportMissingImports]

    tensors, paddings, side = [], [], pixels
    for level in range(len(layers) - 1):
        layer = layers[f"level_{level}"]
        total = max((-(-side // 2) - 1) * 2 + layer["kernel"].shape[0] - side, 0)
        paddings.append([total // 2, total - total // 2] * 2)
        side = -(-side // 2)
        tensors += [torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy()), torch.tensor(layer["bias"])]
    # PyTorch lays features before rows and columns; the last layer's weights are put in that order.
    last = layers["output"]["kernel"].reshape(side, side, -1, layers["output"]["kernel"].shape[1])
    last = last.transpose(3, 2, 0, 1).reshape(last.shape[3], -1)
    tensors += [torch.tensor(last), torch.tensor(layers["output"]["bias"])]

    def logits(tensors: Sequence[Any], x: Any) -> Any:
        for kernel, bias, padding in zip(tensors[:-2:2], tensors[1:-2:2], paddings, strict=True):
            if len(set(padding)) == 1:
                x = nn.conv2d(x, kernel, bias, stride=2, padding=padding[0])
            else:
                x = nn.conv2d(nn.pad(x, padding), kernel, bias, stride=2)
            x = nn.silu(x)
        return nn.linear(x.flatten(1), tensors[-2], tensors[-1])

    return tensors, logits
