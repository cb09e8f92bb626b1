"""The JEM update of `benchmarks.training` in plain PyTorch, with the same parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.sampler_problems import convnet_in_torch

__all__ = ["TorchJem", "run_in_torch"]


class TorchJem:
    """A JEM run: network, optimiser, running average and replay buffer.

    Args:
      problem: a `benchmarks.training.JemProblem`.
      compiled: whether the network, forward and backward, goes through ``torch.compile``.
      channels_last: whether kernels and images are laid out that way.
      torchebm: whether TorchEBM's ``LangevinDynamics`` runs the chains.
    """

    def __init__(
        self, problem: Any, *, compiled: bool = False, channels_last: bool = False, torchebm: bool = False
    ) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        self.torch, self.problem, self.torchebm = torch, problem, torchebm
        layers = jax.tree.map(np.array, problem.params["params"])
        tensors, logits = convnet_in_torch(layers, problem.shape[0])
        self.layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self.parameters = [
            (one.to(memory_format=self.layout) if one.ndim == 4 else one).requires_grad_() for one in tensors
        ]
        self.averages = [one.detach().clone() for one in self.parameters]
        self.logits = torch.compile(logits) if compiled else logits
        self.optimizer = torch.optim.Adam(self.parameters, lr=problem.learning_rate)
        self.step_count = 0
        self.images = self._image_tensor(np.array(problem.images))
        self.labels = torch.tensor(np.array(problem.labels), dtype=torch.int64)
        height, width, channels = problem.shape
        buffer = torch.empty(problem.sizes.buffer_size, channels, height, width)
        self.buffer = buffer.uniform_(-1, 1).to(memory_format=self.layout)

    def _image_tensor(self, images: np.ndarray) -> Any:
        """(n, H, W, C) of NumPy as (n, C, H, W) in the chosen layout."""
        return self.torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)

    def energies(self, parameters: list[Any], x: Any) -> Any:
        """E(x) = -logsumexp f(x) of a batch."""
        return -self.torch.logsumexp(self.logits(parameters, x), dim=1)

    def energies_and_slopes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) and their gradients (n, H, W, C)."""
        batch = self._image_tensor(x).requires_grad_()
        energies = self.energies(self.parameters, batch)
        (slopes,) = self.torch.autograd.grad(energies.sum(), batch)
        return energies.detach().numpy(), slopes.permute(0, 2, 3, 1).numpy()

    def chains(self, x: Any) -> Any:
        """Advances the chains; parameters take no gradient meanwhile."""
        torch, problem = self.torch, self.problem
        fixed = [one.detach() for one in self.parameters]
        if self.torchebm:
            return self._torchebm_chains(fixed, x)
        for _ in range(problem.sizes.sampler_steps):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energies(fixed, x).sum(), x)
            with torch.no_grad():
                noise = torch.randn_like(x)
                x = torch.add(x, slope, alpha=-problem.step_size).add_(noise, alpha=problem.noise_scale)
        return x.detach()

    def _torchebm_chains(self, fixed: list[Any], x: Any) -> Any:
        from torchebm.core import BaseModel  # pyright: ignore[reportMissingImports]
        from torchebm.samplers import LangevinDynamics  # pyright: ignore[reportMissingImports]

        energies, problem = self.energies, self.problem

        class Model(BaseModel):
            def forward(self, x: Any) -> Any:
                return energies(fixed, x)

        cpu = {"device": self.torch.device("cpu")}
        # Its noise is sqrt(2 step_size) times noise_scale.
        noise_scale = problem.noise_scale / (2 * problem.step_size) ** 0.5
        model: Any = Model(**cpu)
        sampler: Any = LangevinDynamics(model, step_size=problem.step_size, noise_scale=noise_scale, **cpu)
        return sampler.sample(x=x, n_steps=problem.sizes.sampler_steps)

    def learn(self, x_labelled: Any, labels: Any, x_data: Any, x_model: Any) -> Any:
        """Cross-entropy + p(x), Adam, and the running average; returns the loss."""
        torch = self.torch
        self.optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.logits(self.parameters, x_labelled), labels)
        energies = [self.energies(self.parameters, x).mean() for x in (x_data, x_model)]
        loss = loss + energies[0] - energies[1]
        loss.backward()
        self.optimizer.step()
        decay = min(self.problem.ema_decay, (1 + self.step_count) / (10 + self.step_count))
        self.step_count += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)
        return loss.detach()

    def step(self) -> Any:
        """One update: batches, chains out of the buffer and back, learning."""
        torch, problem = self.torch, self.problem
        size, count = problem.sizes.batch_size, len(self.images)
        rows, others = torch.randint(count, (size,)), torch.randint(count, (size,))
        slots = torch.randperm(len(self.buffer))[:size]
        kept = self.buffer[slots]
        restarted = torch.rand(size, 1, 1, 1) < problem.restart_probability
        x_model = self.chains(torch.where(restarted, torch.empty_like(kept).uniform_(-1, 1), kept))
        self.buffer[slots] = x_model
        return self.learn(self.images[rows], self.labels[rows], self.images[others], x_model)

    def update(
        self, x_labelled: np.ndarray, labels: np.ndarray, x_data: np.ndarray, x_model: np.ndarray
    ) -> Any:
        """Learns from given negatives.

        Returns:
          The gradient, the parameters and their running averages after it, each as our layers have them.
        """
        images = [self._image_tensor(x) for x in (x_labelled, x_data, x_model)]
        self.learn(images[0], self.torch.tensor(labels, dtype=self.torch.int64), *images[1:])
        gradients = [one.grad for one in self.parameters]
        return tuple(map(self._as_layers, (gradients, self.parameters, self.averages)))

    def _as_layers(self, tensors: list[Any]) -> dict[str, dict[str, np.ndarray]]:
        arrays = [one.detach().contiguous().numpy() for one in tensors]
        layers = {
            f"level_{level}": {"bias": bias, "kernel": kernel.transpose(2, 3, 1, 0)}
            for level, (kernel, bias) in enumerate(zip(arrays[:-2:2], arrays[1:-2:2], strict=True))
        }
        features = len(arrays[-3])
        side = round((arrays[-2].shape[1] / features) ** 0.5)
        last = arrays[-2].reshape(-1, features, side, side).transpose(2, 3, 1, 0)
        layers["output"] = {"bias": arrays[-1], "kernel": last.reshape(-1, last.shape[-1])}
        return layers


def run_in_torch(problem: Any, **options: bool) -> Callable[[], float]:
    """Makes ``problem.sizes.updates`` updates of one run; the options are those of `TorchJem`.

    Raises ``ModuleNotFoundError`` where a package is missing, and where training diverged ``RuntimeError``.
    """
    twin = TorchJem(problem, **options)
    if options.get("torchebm"):
        import torchebm  # noqa: F401  # pyright: ignore[reportMissingImports]

    def run() -> float:
        loss = [float(twin.step()) for _ in range(problem.sizes.updates)][-1]
        if not np.isfinite(loss):
            raise RuntimeError("The benchmark's own training diverged in PyTorch: its times mean nothing.")
        return loss

    return run
