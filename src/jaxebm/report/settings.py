"""The settings of an evaluation: what the card shows, and what that may cost."""

from dataclasses import dataclass

from jaxebm import checks

__all__ = ["ReportSettings"]


@dataclass(frozen=True)
class ReportSettings:
    """What the card shows, and what that may cost; the same settings on the same weights give the same card.

    Example:
      >>> ReportSettings(sample_steps=(100,), attack_images=0).check()
    """

    samples_per_class: int = 140
    """Fresh class-conditional chains of the evaluation; as many in all are unconditional."""
    sample_steps: tuple[int, ...] = (100, 1000)
    """Lengths, in sampler steps, at which fresh chains are judged."""
    export_samples: int = 0
    """Fresh samples written as PNG files too, the first ones; samples.npz holds all."""
    features: bool = True
    """Also judge samples in the features of an independent network, trained on real images alone."""
    long_run_factors: tuple[int, ...] = (10, 100)
    """Lengths of the long chains, in multiples of the sampler's steps in one update; none leaves them out."""
    long_run_chains: int = 40
    """Long chains, which start anew."""

    likelihood_temperatures: tuple[float, ...] = (1.0,)
    """T of exp(-E / T), for each of which the test images' likelihood is bounded; 1 is the model itself."""
    likelihood_steps: int = 500
    """Temperatures of the annealing between noise and model that log Z comes from; 0 leaves it out."""
    likelihood_chains: int = 64
    """Annealed chains in each direction."""

    ood_sets: tuple[str, ...] = ()
    """Further out-of-distribution sets, tensorflow-datasets names such as mnist or omniglot, resized."""
    ood_images: int = 1000
    """At most this many images of each of them, the first ones."""

    attack_radii_linf: tuple[float, ...] = (0.0627, 0.1255, 0.251)
    """Radii of L-infinity attacks, pixels in [-1, 1]: 8/255 of pixels in [0, 1] is 16/255 = 0.0627 here."""
    attack_radii_l2: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Radii of L2 attacks, pixels in [-1, 1]: twice those of pixels in [0, 1]."""
    attack_steps: int = 20
    """Steps of projected gradient descent."""
    attack_restarts: int = 4
    """Random starts of each attack, of which the best counts."""
    attack_images: int = 50
    """Test images that are attacked, the first ones; 0 leaves the attacks out."""
    attack_expectation_samples: int = 1
    """Draws of the refinement's noise over which the attack averages its gradient (EOT)."""
    refinement_steps: tuple[int, ...] = (0, 1, 10)
    """Sampler steps before the classifier, a curve for each; attacks differentiate through them."""

    tasks: bool = True
    """Also inpainting, denoising and composition of classes by the sampler."""
    task_images: int = 100
    """Test images of these tasks, the first ones; as many samples of each composition."""
    task_steps: int = 100
    """Sampler steps of inpainting and composition; denoising takes `refinement_steps`."""
    task_noise: float = 0.3
    """Standard deviation of the Gaussian noise that is to be removed, pixels in [-1, 1]."""

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
        for name in ("likelihood_temperatures", "attack_radii_linf", "attack_radii_l2"):
            checks.positive(name, getattr(self, name))
        for name in ("export_samples", "attack_images", "task_noise"):
            checks.non_negative(name, getattr(self, name))
        if self.likelihood_steps < 0 or self.likelihood_steps == 1 or self.likelihood_chains < 2:
            raise ValueError(
                f"likelihood_steps={self.likelihood_steps}, likelihood_chains={self.likelihood_chains}: 0 "
                f"steps (no likelihood) or at least 2, and at least 2 chains, are needed."
            )
        for name, least, example in (
            ("sample_steps", 1, "100 1000"),
            ("long_run_factors", 1, "10 100"),
            ("refinement_steps", 0, "0 1 10"),
            ("attack_radii_linf", 0, "0.0627 0.1255"),
            ("attack_radii_l2", 0, "0.5 1"),
        ):
            values = list(getattr(self, name))
            if values != sorted(set(values)) or (values and values[0] < least):
                raise ValueError(
                    f"{name}={values}: increasing numbers of at least {least} are needed, such as {example}."
                )
        for name in ("sample_steps", "refinement_steps"):
            if not getattr(self, name):
                raise ValueError(f"{name}=(): one number at least is needed.")
        if len(set(self.ood_sets)) < len(self.ood_sets):
            raise ValueError(f"ood_sets={list(self.ood_sets)}: each set must be named once.")
