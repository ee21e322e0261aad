"""Random numbers that nobody can guess or repeat: noise, sampling and all other randomness of private work.

ChaCha20 under a key from the operating system, a new one for every call; there is nothing to seed. torch's own CPU
generator will not do: it is set by 32 bits of its seed, so whoever knows a part of the noise can search for the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

_CHUNK = 1 << 20
"""Numbers drawn at a time, so that the noise of a large tensor needs little memory beside it."""


def uniform(count: int) -> NDArray[np.float64]:
    """`count` independent numbers, uniform on [0, 1) in steps of 2^-53."""
    return _in_chunks(_uniform, count)


def normal(count: int) -> NDArray[np.float64]:
    """`count` independent standard normal numbers (Box-Muller; none beyond 8.6 deviations)."""
    return _in_chunks(_normal, count)


def seed() -> int:
    """A 63-bit seed for a generator whose draws need only be unknown to others, such as that of augmentation."""
    return int.from_bytes(_key()[:8], "big") >> 1


def _in_chunks(draw: Callable[[int], NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    if count <= _CHUNK:
        return draw(count)
    return np.concatenate([draw(min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)])


def _normal(count: int) -> NDArray[np.float64]:
    draws = _uniform(count + count % 2)
    one, two = draws[: len(draws) // 2], draws[len(draws) // 2 :]
    radius = np.sqrt(-2 * np.log1p(-one))
    angle = 2 * math.pi * two
    np.multiply(radius, np.cos(angle), out=one)
    np.multiply(radius, np.sin(angle, out=angle), out=two)
    return draws[:count]


def _uniform(count: int) -> NDArray[np.float64]:
    stream = Cipher(ChaCha20(_key(), bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    drawn: NDArray[np.float64] = (np.frombuffer(stream, dtype=np.uint64) >> np.uint64(11)) * np.float64(2.0**-53)
    return drawn


def _key() -> bytes:
    return os.urandom(32)
