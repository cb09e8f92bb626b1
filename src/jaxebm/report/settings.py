"""The settings of an evaluation: the contents of the card and the cost of computing it."""

from dataclasses import dataclass

import numpy as np

from jaxebm import checks

__all__ = ["ReportSettings"]


@dataclass(frozen=True)
class ReportSettings:
    """Settings of the evaluation; the same settings and weights give the same card.

    Example:
      >>> ReportSettings(sample_steps=(100,), attack_images=0).check()
    """

    samples_per_class: int = 140
    """Fresh chains for each class; also the total number of unconditional chains."""
    sample_steps: tuple[int, ...] = (100, 1000)
    """Lengths of the fresh chains that are evaluated, in sampler steps."""
    export_samples: int = 0
    """Number of fresh samples to write as PNG files, the first ones; samples.npz has all."""
    features: bool = True
    """Also evaluate samples in the features of an independent network, trained on real images only."""
    long_run_factors: tuple[int, ...] = (10, 100)
    """Lengths of the long chains, in multiples of the sampler steps per update; empty: no long chains."""
    long_run_chains: int = 40
    """Number of long chains, which start from new draws."""

    likelihood_temperatures: tuple[float, ...] = (1.0,)
    """Values of T for the likelihood bounds of the test images under exp(-E / T); the model has T = 1."""
    likelihood_steps: int = 500
    """Temperatures of the annealed importance sampling of log Z; 0: no likelihood."""
    likelihood_chains: int = 64
    """Annealed chains in each direction."""

    ood_sets: tuple[str, ...] = ()
    """More out-of-distribution sets, resized: names of tensorflow-datasets, npz:PATH or folder:PATH."""
    ood_images: int = 1000
    """Greatest number of images of each of these sets, the first ones."""

    attack_radii_linf: tuple[float, ...] = (0.0627, 0.1255, 0.251)
    """Radii of L-infinity attacks, pixels in [-1, 1]: 8/255 of pixels in [0, 1] is 16/255 = 0.0627 here."""
    attack_radii_l2: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Radii of L2 attacks, pixels in [-1, 1]: twice those of pixels in [0, 1]."""
    attack_steps: int = 20
    """Steps of projected gradient descent."""
    attack_restarts: int = 4
    """Random starts of each attack; the best one counts."""
    attack_images: int = 50
    """Number of test images that are attacked, the first ones; 0: no attacks."""
    attack_expectation_samples: int = 1
    """Noise draws of the refinement over which the attack averages its gradient (EOT)."""
    refinement_steps: tuple[int, ...] = (0, 1, 10)
    """Sampler steps before the classifier, one curve for each; attacks differentiate through them."""

    tasks: bool = True
    """Also evaluate inpainting, denoising and composition of classes by the sampler."""
    task_images: int = 100
    """Number of test images of these tasks, the first ones, and of samples of each composition."""
    task_steps: int = 100
    """Sampler steps of inpainting and composition, or gradients of a path; denoising: `refinement_steps`."""
    task_noise: float = 0.3
    """Standard deviation of the Gaussian noise to be removed, for pixels in [-1, 1]."""

    def check(self) -> None:
        """Raises ``ValueError`` naming the first setting that is out of range."""
        for name in (
            "samples_per_class",
            "long_run_chains",
            "ood_images",
            "attack_steps",
            "attack_restarts",
            "attack_expectation_samples",
            "task_images",
            "task_steps",
        ):
            checks.positive_integer(name, getattr(self, name))
        for name in ("export_samples", "attack_images", "likelihood_steps"):
            checks.integer(name, getattr(self, name), 0)
        checks.integer("likelihood_chains", self.likelihood_chains, 2)
        if self.likelihood_steps == 1:
            raise ValueError("likelihood_steps=1: 0 (no likelihood), or at least 2, are needed.")
        for name in ("features", "tasks"):
            checks.boolean(name, getattr(self, name))
        checks.number("task_noise", self.task_noise)
        checks.non_negative("task_noise", self.task_noise)
        for name in ("likelihood_temperatures", "attack_radii_linf", "attack_radii_l2"):
            self._check_entries(name, (int, float, np.integer, np.floating), "numbers")
            checks.positive(name, getattr(self, name))
        for name, least, example in (
            ("sample_steps", 1, "100 1000"),
            ("long_run_factors", 1, "10 100"),
            ("refinement_steps", 0, "0 1 10"),
        ):
            self._check_entries(name, (int, np.integer), "integers")
            self._check_increasing(name, least, example)
        for name, example in (("attack_radii_linf", "0.0627 0.1255"), ("attack_radii_l2", "0.5 1")):
            self._check_increasing(name, 0, example)
        needed = ["sample_steps", "refinement_steps"]
        for name in needed + ["likelihood_temperatures"] * (self.likelihood_steps > 0):
            if not getattr(self, name):
                raise ValueError(f"{name}=(): at least one number is needed.")
        self._check_entries("ood_sets", (str,), "names of data sets")
        if len(set(self.ood_sets)) < len(self.ood_sets):
            raise ValueError(f"ood_sets={list(self.ood_sets)}: each set must be named once.")

    def _check_entries(self, name: str, kinds: tuple[type, ...], what: str) -> None:
        values = getattr(self, name)
        checks.sequence(name, values, kinds, what)
        if any(isinstance(value, bool) for value in values):
            raise TypeError(f"{name}={values!r}: {name} must be a tuple or list of {what}.")

    def _check_increasing(self, name: str, least: int, example: str) -> None:
        values = list(getattr(self, name))
        if values != sorted(set(values)) or (values and values[0] < least):
            raise ValueError(
                f"{name}={values}: increasing numbers of at least {least} are needed, such as {example}."
            )
