"""Conventions: each source's own line, written out again, moves a state to the same place."""

import jax
import numpy as np
import pytest

from jaxebm.samplers.conventions import CONVENTIONS, from_convention
from jaxebm.samplers.langevin import langevin_temperature, sgld

# What each source writes: (x, dE, n, step, noise) -> next x, with n standard normal.
LINES = {
    "ula": lambda x, g, n, h, _: x - h * g + np.sqrt(2 * h) * n,
    "welling-teh": lambda x, g, n, eps, _: x + eps / 2 * -g + np.sqrt(eps) * n,
    "roberts-tweedie": lambda x, g, n, h, _: x + h / 2 * -g + np.sqrt(h) * n,
    # p = n; p <- p - (h / 2) dE; x <- x + h p
    "leapfrog": lambda x, g, n, h, _: x + h * (n - h / 2 * g),
    "short-run": lambda x, g, n, s, _: x - s**2 / 2 * g + s * n,
    "igebm-printed": lambda x, g, n, lam, _: x - lam / 2 * g + np.sqrt(lam) * n,
    "igebm-released": lambda x, g, n, step_lr, std: x - step_lr * g + std * n,
    "jem-printed": lambda x, g, n, alpha, _: x - alpha / 2 * g + np.sqrt(alpha) * n,
    "jem-released": lambda x, g, n, sgld_lr, sgld_std: x - sgld_lr * g + sgld_std * n,
    "jem++-released": lambda x, g, n, rate, std: x - rate * g + std * n,
    "sada-jem": lambda x, g, n, rate, std: x - rate * g + std * n,
    "song-ermon": lambda x, g, n, alpha, _: x + alpha / 2 * -g + np.sqrt(alpha) * n,
    "ncsn-released": lambda x, g, n, size, _: x + size * -g + np.sqrt(size * 2) * n,
    "torchebm": lambda x, g, n, size, scale: x - size * g + np.sqrt(2 * size) * (scale * n),
}
PUBLISHED_NOISE = {
    "igebm-released": 0.005,
    "jem-released": 0.01,
    "jem++-released": 0.0,
    "sada-jem": 0.0,
    "torchebm": 1.0,
}


def test_every_convention_has_its_line_here():
    assert set(LINES) == set(CONVENTIONS)
    for convention in CONVENTIONS.values():
        assert "\n" not in convention.source
        assert convention.source.endswith(".")


@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("noise", [None, 0.3])
def test_a_convention_is_its_sources_line(name, noise):
    if noise is not None and name not in PUBLISHED_NOISE:
        with pytest.raises(ValueError, match=rf"noise=0.3.*{name}"):
            from_convention(name, 0.6, noise)
        return
    numbers = from_convention(name, 0.6, noise)
    x, gradient, normal = np.random.default_rng(0).normal(size=(3, 5))
    theirs = LINES[name](x, gradient, normal, 0.6, PUBLISHED_NOISE.get(name) if noise is None else noise)
    ours = x - numbers.step_size * gradient + numbers.noise_scale * normal
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert numbers.temperature == pytest.approx(numbers.noise_scale**2 / (2 * numbers.step_size))
    assert isinstance(numbers.temperature, float)


@pytest.mark.parametrize("name", sorted(set(CONVENTIONS) - set(PUBLISHED_NOISE)))
def test_what_ties_noise_to_step_is_at_temperature_one(name):
    assert from_convention(name, 0.37).temperature == pytest.approx(1.0)


def test_the_released_recipes_are_those_of_sglds_table():
    assert from_convention("jem-released", 1.0)[:2] == (1.0, 0.01)
    assert from_convention("jem-released", 1.0).temperature == pytest.approx(5e-5)
    assert from_convention("igebm-released", 10.0)[:2] == (10.0, 0.005)
    assert from_convention("igebm-released", 10.0).temperature == pytest.approx(1.25e-6)
    assert from_convention("sada-jem", 1.0) == (1.0, 0.0, 0.0)
    assert from_convention("torchebm", 0.1, 0.5).temperature == pytest.approx(0.25)


def test_traced_steps_pass_and_reach_sgld():
    @jax.jit
    def run(step, noise):
        numbers = from_convention("torchebm", step, noise)
        kernel = sgld(lambda x: 0.0 * x, numbers.step_size, numbers.noise_scale)
        state, _ = kernel.step(jax.random.key(0), kernel.init(0.0))
        return state.position, numbers.temperature

    moved, temperature = run(0.5, 0.2)
    twice, _ = run(0.5, 0.4)
    assert float(temperature) == pytest.approx(0.04)
    assert float(twice) == pytest.approx(2 * float(moved))
    assert float(langevin_temperature(*from_convention("torchebm", 0.5, 0.2)[:2])) == pytest.approx(0.04)


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"name='jem'.*igebm-printed.*jem-released.*welling-teh"):
        from_convention("jem", 1.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0.0, None), "step=0.0"), ((float("nan"), None), "step"), ((1.0, -0.1), "noise=-0.1")],
)
def test_bad_numbers_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        from_convention("jem-released", *arguments)
