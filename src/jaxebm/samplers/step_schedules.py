"""Step sizes that change along a chain, as ``run_annealed_chain`` takes them."""

import jax.numpy as jnp

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["cyclical_schedule", "polynomial_schedule"]


def polynomial_schedule(
    num_steps: int,
    first: Array | float,
    last: Array | float,
    *,
    exponent: Array | float = 0.55,
    temperature: Array | float = 1.0,
) -> dict[str, Array]:
    r"""Steps that shrink polynomially, so that the chain's bias goes to zero as it runs.

    .. math:: \epsilon_t = a\, (b + t)^{-\gamma}, \qquad \sigma_t = \sqrt{2 \epsilon_t T}, \qquad
              t = 0 \dots N - 1

    a and b are those with which the first and the last step are the given ones. With 1/2 < gamma <= 1 the
    sum of the steps diverges and that of their squares converges, and averages over the chain tend to the
    model's, each state weighted by its step: sum(step_size * f) / sum(step_size). The error of such averages
    falls fastest, as N^(-1/3), with gamma = 1/3.

    Args:
      num_steps: N, a Python integer of at least 1.
      first: epsilon_0 > 0, ``()``, as ``sgld``'s step_size: half of Welling & Teh's.
      last: epsilon_{N-1} > 0, ``()``, at most ``first``.
      exponent: gamma in (0, 1], ``()``.
      temperature: T >= 0, ``()``.

    Returns:
      ``{"step_size": (num_steps,), "noise_scale": (num_steps,)}``.

    Raises:
      ValueError: if num_steps is not a positive integer, a step is not positive, last is above first, the
        exponent is outside of (0, 1] or the temperature negative (numbers only: traced values pass).

    Example:
      >>> from jaxebm.samplers.chains import run_annealed_chain
      >>> from jaxebm.samplers.langevin import sgld
      >>> import jax
      >>> schedule = polynomial_schedule(100, 0.1, 0.001)
      >>> [round(float(schedule["step_size"][t]), 4) for t in (0, 10, 99)]
      [0.1, 0.0035, 0.001]
      >>> kernel_at = lambda at: sgld(lambda x: 0.5 * jnp.sum(x**2), **at)
      >>> state, _ = run_annealed_chain(jax.random.key(0), kernel_at, schedule, jnp.ones(2))
      >>> state.position.shape
      (2,)

    Reference:
      Welling & Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics; for gamma = 1/3, Teh,
      Thiery & Vollmer 2016, Consistency and fluctuations for stochastic gradient Langevin dynamics
      (arXiv:1409.0578).
    """
    checks.positive_integer("num_steps", num_steps)
    checks.positive_number("first", first)
    checks.positive_number("last", last)
    if not (checks.is_traced(first) or checks.is_traced(last)) and last > first:
        raise ValueError(f"last={last!r}: last must be at most first={first!r}.")
    checks.positive_number("exponent", exponent)
    checks.in_range("exponent", exponent, 0.0, 1.0)
    checks.non_negative_number("temperature", temperature)
    # a (b + t)^-gamma = first (1 + t / b)^-gamma; 1 / b is finite where last = first, and b is not.
    inverse_offset = ((jnp.asarray(first) / last) ** (1 / exponent) - 1) / max(num_steps - 1, 1)
    step_size = first * (1 + inverse_offset * jnp.arange(num_steps)) ** (-exponent)
    return {"step_size": step_size, "noise_scale": jnp.sqrt(2 * step_size * temperature)}


def cyclical_schedule(
    num_steps: int,
    peak: Array | float,
    num_cycles: int,
    *,
    exploration_fraction: Array | float = 0.8,
    temperature: Array | float = 1.0,
) -> dict[str, Array]:
    r"""Steps that restart large again and again: to another mode without noise, then sampling there.

    .. math:: \epsilon_t = \frac{\epsilon_0}{2}
              \left[\cos\!\left(\frac{\pi\,(t \bmod L)}{L}\right) + 1\right], \qquad
              L = \lceil N / M \rceil, \qquad t = 0 \dots N - 1

    .. math:: \sigma_t = 0 \;\text{ while }\; (t \bmod L) / L < \beta, \qquad
              \sigma_t = \sqrt{2 \epsilon_t T} \;\text{ after that}

    In the first part of each cycle the chain is gradient descent with large steps; collect states from the
    second part only, where ``noise_scale > 0``. How often a mode is visited follows its basin of attraction
    under descent, not its probability: the chain finds modes, it does not weigh them.

    Args:
      num_steps: N, a Python integer of at least 1.
      peak: epsilon_0 > 0, ``()``: the first and largest step of each cycle, as ``sgld``'s step_size.
      num_cycles: M, a Python integer of at least 1 and at most num_steps. If it does not divide num_steps,
        the last cycle is cut short.
      exploration_fraction: beta in [0, 1], ``()``: the part of a cycle that runs without noise.
      temperature: T >= 0, ``()``.

    Returns:
      ``{"step_size": (num_steps,), "noise_scale": (num_steps,)}``.

    Raises:
      ValueError: if num_steps or num_cycles is not a positive integer, num_cycles is above num_steps, the
        peak is not positive, the fraction outside of [0, 1] or the temperature negative (numbers only: traced
        values pass).

    Example:
      >>> schedule = cyclical_schedule(8, 1.0, 2, exploration_fraction=0.5)
      >>> [round(float(step), 2) for step in schedule["step_size"]]
      [1.0, 0.85, 0.5, 0.15, 1.0, 0.85, 0.5, 0.15]
      >>> (schedule["noise_scale"] > 0).tolist()
      [False, False, True, True, False, False, True, True]

    Reference:
      Zhang, Li, Zhang, Chen & Wilson 2020, Cyclical stochastic gradient MCMC for Bayesian deep learning
      (arXiv:1902.03932), eq. 1 and algorithm 1.
    """
    checks.positive_integer("num_steps", num_steps)
    checks.positive_integer("num_cycles", num_cycles)
    if num_cycles > num_steps:
        raise ValueError(f"num_cycles={num_cycles!r}: num_cycles must be at most num_steps={num_steps!r}.")
    checks.positive_number("peak", peak)
    checks.in_range("exploration_fraction", exploration_fraction, 0.0, 1.0)
    checks.one_number("exploration_fraction", exploration_fraction)
    checks.non_negative_number("temperature", temperature)
    length = -(-num_steps // num_cycles)
    elapsed = (jnp.arange(num_steps) % length) / length
    step_size = 0.5 * peak * (jnp.cos(jnp.pi * elapsed) + 1)
    noise_scale = jnp.where(elapsed < exploration_fraction, 0.0, jnp.sqrt(2 * step_size * temperature))
    return {"step_size": step_size, "noise_scale": noise_scale}
