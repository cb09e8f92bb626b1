"""Other people's step and noise, in this package's two numbers.

The same two letters mean different chains in different papers: a step may or may not be halved, noise may be
given as a variance, a standard deviation or a factor, and what is printed is not always what was released.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxebm import checks

__all__ = ["CONVENTIONS", "Convention", "LangevinNumbers", "from_convention"]


class LangevinNumbers(NamedTuple):
    """The numbers of ``sgld``, and the temperature at which it then samples.

    Attributes:
      step_size: epsilon, the factor of the gradient, ``()``.
      noise_scale: sigma, the standard deviation of the noise of one step, ``()``.
      temperature: sigma^2 / (2 epsilon), ``()``, as of ``langevin_temperature``: nominal where the recipe
        also clips or clamps.
    """

    step_size: Any
    noise_scale: Any
    temperature: Any


class Convention(NamedTuple):
    """How one source writes its Langevin step.

    Attributes:
      source: who writes so, and the line itself, in one line.
      step_size: its step -> epsilon.
      noise_scale: its step and its noise -> sigma.
      noise: the noise that goes with it unless another is given; ``None`` where the step alone decides it,
        and a noise of one's own is refused.
    """

    source: str
    step_size: Callable[[Any], Any]
    noise_scale: Callable[[Any, Any], Any]
    noise: float | None = None


def _whole(step: Any) -> Any:
    return step


def _half(step: Any) -> Any:
    return step / 2


def _half_square(step: Any) -> Any:
    return step**2 / 2


def _root_of_twice_the_step(step: Any, noise: Any) -> Any:
    del noise
    return (2 * step) ** 0.5


def _root_of_the_step(step: Any, noise: Any) -> Any:
    del noise
    return step**0.5


def _the_step(step: Any, noise: Any) -> Any:
    del noise
    return step


def _the_noise(step: Any, noise: Any) -> Any:
    del step
    return noise


def _factor_of_true_noise(step: Any, noise: Any) -> Any:
    return (2 * step) ** 0.5 * noise


CONVENTIONS: dict[str, Convention] = {
    "ula": Convention(
        "Unadjusted Langevin, step h; BlackJAX's mala and sgld: x - h dE + sqrt(2 h) n.",
        _whole,
        _root_of_twice_the_step,
    ),
    "welling-teh": Convention(
        "Welling & Teh 2011, eq. 4, step eps: x - (eps / 2) dE + N(0, eps).", _half, _root_of_the_step
    ),
    "roberts-tweedie": Convention(
        "MALA's proposal in Roberts & Tweedie 1996, step h: N(x - (h / 2) dE, h I).", _half, _root_of_the_step
    ),
    "leapfrog": Convention(
        "One leapfrog step of size h with a fresh momentum (HMC, Neal 2011): x - (h^2 / 2) dE + h n.",
        _half_square,
        _the_step,
    ),
    "short-run": Convention(
        "Nijkamp et al. 2019 (arXiv:1904.09770), step s: x - (s^2 / 2) dE + s n.", _half_square, _the_step
    ),
    "igebm-printed": Convention(
        "Du & Mordatch 2019 (arXiv:1903.08689), eq. 1, step lambda: x - (lambda / 2) dE + N(0, lambda).",
        _half,
        _root_of_the_step,
    ),
    "igebm-released": Convention(
        "Du & Mordatch's code for CIFAR-10: x - step_lr dE + 0.005 n, step_lr = 10; the noise comes first.",
        _whole,
        _the_noise,
        0.005,
    ),
    "jem-printed": Convention(
        "Grathwohl et al. 2019 (arXiv:1912.03263), eq. 3, step alpha: x - (alpha / 2) dE + N(0, alpha).",
        _half,
        _root_of_the_step,
    ),
    "jem-released": Convention(
        "Grathwohl et al.'s code: x - sgld_lr dE + sgld_std n, sgld_lr = 1, sgld_std = 0.01.",
        _whole,
        _the_noise,
        0.01,
    ),
    "jem++-released": Convention(
        "Yang & Ji 2021's code: x - rate dE, clipped to 1, without noise; inner rate 0.2.",
        _whole,
        _the_noise,
        0.0,
    ),
    "sada-jem": Convention(
        "Yang et al. 2022 (arXiv:2209.07959): x - rate dE, clipped to 1, without noise; rate 1.",
        _whole,
        _the_noise,
        0.0,
    ),
    "song-ermon": Convention(
        "Song & Ermon 2019 (arXiv:1907.05600), step alpha: x + (alpha / 2) score + sqrt(alpha) n.",
        _half,
        _root_of_the_step,
    ),
    "ncsn-released": Convention(
        "Song & Ermon's code, step_size: x + step_size score + sqrt(2 step_size) n.",
        _whole,
        _root_of_twice_the_step,
    ),
    "torchebm": Convention(
        "TorchEBM 0.8.9's LangevinDynamics: x - step_size dE + sqrt(2 step_size) noise_scale n.",
        _whole,
        _factor_of_true_noise,
        1.0,
    ),
}
"""Every convention that ``from_convention`` knows, by name."""


def from_convention(name: str, step: Any, noise: Any = None) -> LangevinNumbers:
    """Translates a published step and noise into ``sgld``'s.

    Args:
      name: a key of ``CONVENTIONS``, whose ``source`` has the formula of its step.
      step: the source's own step > 0, ``()``, or a schedule of any shape.
      noise: the source's own noise >= 0, ``()`` or of the shape of the step; ``None`` means what was
        published. Most sources tie their noise to their step, and take none.

    Returns:
      ``LangevinNumbers(step_size, noise_scale, temperature)``: floats for floats, arrays for arrays, and
      traced values for traced values.

    Raises:
      ValueError: if the name is unknown, the step not positive, the noise negative, or a noise is given to a
        convention whose step decides it.

    Example:
      JEM's paper and its code both have alpha = 1, but give two very different chains:

      >>> from_convention("jem-printed", 1.0)
      LangevinNumbers(step_size=0.5, noise_scale=1.0, temperature=1.0)
      >>> from_convention("jem-released", 1.0)
      LangevinNumbers(step_size=1.0, noise_scale=0.01, temperature=5e-05)
      >>> print(CONVENTIONS["jem-released"].source)
      Grathwohl et al.'s code: x - sgld_lr dE + sgld_std n, sgld_lr = 1, sgld_std = 0.01.
    """
    checks.one_of("name", name, sorted(CONVENTIONS))
    convention = CONVENTIONS[name]
    checks.positive("step", step)
    if noise is None:
        noise = convention.noise
    elif convention.noise is None:
        raise ValueError(
            f"noise={noise!r}: the convention {name!r} decides its noise by its step ({convention.source}), "
            f"so noise must be None."
        )
    else:
        checks.non_negative("noise", noise)
    step_size = convention.step_size(step)
    noise_scale = convention.noise_scale(step, noise)
    return LangevinNumbers(step_size, noise_scale, noise_scale**2 / (2 * step_size))
