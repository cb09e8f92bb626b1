"""What the tests of associative memories share."""

import numpy as np
import pytest


@pytest.fixture
def random_spins():
    """``random_spins(seed, *shape)``: independent fair spins, float32."""

    def draw(seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).choice([-1.0, 1.0], shape).astype(np.float32)

    return draw


@pytest.fixture(scope="session")
def all_spins():
    """``all_spins(D)``: the 2^D states of D spins, (2^D, D), float32."""

    def states(dimension: int) -> np.ndarray:
        bits = (np.arange(2**dimension)[:, None] >> np.arange(dimension)) & 1
        return (2.0 * bits - 1.0).astype(np.float32)

    return states
