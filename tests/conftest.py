"""Settings that every test runs under."""

import os

# Before JAX starts: tests run on the CPU, in as many processes as there are cores.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_shapes():
    """Silent broadcasting between ranks hides bugs: (n,) against (n, 1) gives (n, n)."""
    with jax.numpy_rank_promotion("raise"):
        yield
