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
    """`count` independent standard normal numbers (Box-Muller; none beyond 9.4 deviations).

    In double precision, so their last digits say how they were made: what is released with them belongs on a grid (see
    `noise`).
    """
    return _in_chunks(_normal, count)


def seed() -> int:
    """A 63-bit seed for a generator whose draws need only be unknown to others, such as that of augmentation."""
    return int.from_bytes(_key()[:8], "big") >> 1


def _in_chunks(draw: Callable[[int], NDArray[np.float64]], count: int) -> NDArray[np.float64]:
    if count <= _CHUNK:
        return draw(count)
    return np.concatenate([draw(min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)])


def _normal(count: int) -> NDArray[np.float64]:
    half = (count + 1) // 2
    words = _words(2 * half)
    draws = np.empty(2 * half)
    # A uniform number on (0, 1], as fine as 2^-64 near 0, where the tails come from.
    radius = words[:half].astype(np.float64)
    radius += 1.0
    radius *= 2.0**-64
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = (words[half:] >> np.uint64(11)) * np.float64(2 * math.pi * 2.0**-53)
    np.multiply(radius, np.cos(angle), out=draws[:half])
    np.multiply(radius, np.sin(angle, out=angle), out=draws[half:])
    return draws[:count]


def _uniform(count: int) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = (_words(count) >> np.uint64(11)) * np.float64(2.0**-53)
    return drawn


def _words(count: int) -> NDArray[np.uint64]:
    stream = Cipher(ChaCha20(_key(), bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype=np.uint64)


def _key() -> bytes:
    return os.urandom(32)
