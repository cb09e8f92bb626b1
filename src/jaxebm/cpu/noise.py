"""The noise of a step: ``jax.random``'s numbers, bit for bit, in a form that fuses into the step on a CPU.

JAX lowers its default generator, threefry, to loops on a CPU, which nothing fuses with: some twenty small
programs a step. Written out, the same integer arithmetic becomes part of the program that moves the chain,
and compiles sooner. Measured on two cores, noise alone, for 1000 chains of two numbers: 72 microseconds a
step before and 16 after, 32 where only the normals are written out and not the keys; for 64 images of 8x8x1:
52 and 20. Large positions are left to ``jax.random``, and so are other platforms and other generators.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxebm import checks
from jaxebm.types import Array

__all__ = ["fold_in", "standard_normal", "threefry"]

# Salmon et al. 2011, table 2 (Threefry-2x32) and the key schedule's constant, as in the Random123 library.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
# The fused program loops over the position's own shape, where short last axes leave little to vectorise; the
# loops of jax.random run over flat arrays. So written out it is faster for 64 entries (8x8x1: 2 times), even
# for 784 (28x28x1), and slower where the last axis is 3 (8x8x3: 1.5 times, 32x32x3: 2 times).
_MOST_ENTRIES = 128


def threefry(key_words: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Encrypts two words by Threefry-2x32 of 20 rounds, each round written out.

    Every fourth round adds the key: x0 <- x0 + x1; x1 <- rotate(x1, r) xor x0, and k2 = k0 xor k1 xor a
    constant.

    Args:
      key_words: k0 and k1, uint32, each ``()`` or of the counter's shape.
      counter: x0 and x1, uint32, of one shape.

    Returns:
      Two words of the counter's shape.

    Example:
      The known answer of the Random123 library for zeros:

      >>> zero = jnp.uint32(0)
      >>> [hex(int(word)) for word in threefry((zero, zero), (zero, zero))]
      ['0x6b200159', '0x99ba4efe']

    Reference:
      Salmon, Moraes, Dror & Shaw 2011, Parallel random numbers: as easy as 1, 2, 3, section 4.
    """
    schedule = (*key_words, key_words[0] ^ key_words[1] ^ _PARITY)
    first, second = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = (second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
            second = second ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def fold_in(rng_key: Array, index: Array | int) -> Array:
    """Returns ``jax.random.fold_in(rng_key, index)``, the same key.

    Args:
      rng_key: one typed key.
      index: an integer below 2^32, ``()``.

    Returns:
      One key.

    Raises:
      TypeError: if rng_key is not a typed key.

    Example:
      >>> bool(fold_in(jax.random.key(0), 7) == jax.random.fold_in(jax.random.key(0), 7))
      True
    """
    checks.rng_key("rng_key", rng_key)
    if not _is_threefry(rng_key):
        return jax.random.fold_in(rng_key, index)
    return _fold_in(rng_key, jnp.uint32(index))


def standard_normal(rng_key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Returns ``jax.random.normal(rng_key, shape, dtype)``, the same numbers.

    n = sqrt(2) erf^-1(u), u uniform on (-1, 1) on a grid of 2^-22. Written out for float32 and at most 128
    entries.

    Args:
      rng_key: one typed key.
      shape: of the result.
      dtype: floating-point.

    Returns:
      Independent standard normals of that shape.

    Raises:
      TypeError: if rng_key is not a typed key: the noise of every kernel is drawn here.

    Example:
      >>> rng_key = jax.random.key(0)
      >>> bool(jnp.all(standard_normal(rng_key, (3,)) == jax.random.normal(rng_key, (3,))))
      True
    """
    checks.rng_key("rng_key", rng_key)
    if not _is_threefry(rng_key) or dtype != jnp.float32 or math.prod(shape) > _MOST_ENTRIES:
        return jax.random.normal(rng_key, shape, dtype)
    return _standard_normal(rng_key, shape)


def _is_threefry(rng_key: Array) -> bool:
    return str(jax.random.key_impl(rng_key)) == "threefry2x32"


def _words(key_data: Array) -> tuple[Array, Array]:
    # Slices that XLA can cancel against the concatenation in _fold_in, so that a folded key is never laid out
    # in memory. What key_data[0] becomes under vmap hides it.
    first, second = (jax.lax.index_in_dim(key_data, index, keepdims=False) for index in (0, 1))
    return first, second


# Both are compiled on their own, so that calls outside of any ``jit`` find them compiled, as jax.random's do.
@jax.jit
def _fold_in(rng_key: Array, index: Array) -> Array:
    def written_out(key_data: Array, index: Array) -> Array:
        first, second = threefry(_words(key_data), (jnp.zeros_like(index), index))
        # Not jnp.stack, which under vmap transposes, and would be a program of its own.
        return jax.lax.concatenate([first[None], second[None]], dimension=0)

    def loops(key_data: Array, index: Array) -> Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=impl), index))

    impl = jax.random.key_impl(rng_key)
    folded = jax.lax.platform_dependent(jax.random.key_data(rng_key), index, cpu=written_out, default=loops)
    return jax.random.wrap_key_data(folded, impl=impl)


@partial(jax.jit, static_argnames="shape")
def _standard_normal(rng_key: Array, shape: tuple[int, ...]) -> Array:
    def written_out(key_data: Array) -> Array:
        index = jnp.arange(math.prod(shape), dtype=jnp.uint32)
        first, second = threefry(_words(key_data), (jnp.zeros_like(index), index))
        # 23 random bits below the exponent of 1 are uniform on [1, 2).
        mantissa = ((first ^ second) >> np.uint32(9)) | np.uint32(0x3F800000)
        uniform = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)
        lowest = np.nextafter(np.float32(-1), np.float32(0))  # erf^-1(-1) is infinite
        uniform = jnp.maximum(lowest, uniform * (np.float32(1) - lowest) + lowest)
        return (np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)).reshape(shape)

    def loops(key_data: Array) -> Array:
        # With its dtype: by default it would be float64 where x64 is enabled, and the branches would differ.
        return jax.random.normal(jax.random.wrap_key_data(key_data, impl=impl), shape, jnp.float32)

    impl = jax.random.key_impl(rng_key)
    return jax.lax.platform_dependent(jax.random.key_data(rng_key), cpu=written_out, default=loops)
