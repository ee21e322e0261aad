"""Random numbers that nobody can guess or repeat: noise, sampling and all other randomness of private work.

ChaCha20 under a key from the operating system, a new one for every call; there is nothing to seed. torch's own CPU
generator will not do: it is set by 32 bits of its seed, so whoever knows a part of the noise can search for the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray
from torch import Tensor

from fedgraft.client.privacy.dp.chacha import DeviceWords

_PIECE = 1 << 15
"""Numbers drawn at a time on a CPU: all that is done to them is done while they are in its cache."""
_PIECE_ON_DEVICE = 1 << 24
"""The same where each operation has to be started on a device, which takes longer than a few numbers are worth."""

_HEAD, _STATE = 24, 624
"""Of the state of a generator of torch on the CPU: bytes before the words of the Mersenne twister, and their number."""

_WITHOUT_SIGN = (1 << 63) - 1


def uniform(count: int) -> NDArray[np.float64]:
    """`count` independent numbers, uniform on [0, 1) in steps of 2^-53."""
    words = Words(count).next().numpy().view(np.uint64)
    drawn: NDArray[np.float64] = (words >> np.uint64(11)) * np.float64(2.0**-53)
    return drawn


def normal(count: int) -> NDArray[np.float64]:
    """`count` independent standard normal numbers; see `normals`."""
    return np.concatenate([np.empty(0), *(piece.numpy().copy() for piece in normals(count))])


def normals(count: int, device: torch.device | None = None, deviation: float = 1.0) -> Iterator[Tensor]:
    """`count` independent normal numbers of this deviation around 0 (Box-Muller; none beyond 9.4 of them), in pieces.

    Each piece is (numbers,), float64, on the device, where its random bits are made too; the next overwrites it. In
    double precision, so their last digits say how they were made: what is released with them belongs on a grid (see
    `noise`).
    """
    device = device or torch.device("cpu")
    size = max(2, min(_PIECE if device.type == "cpu" else _PIECE_ON_DEVICE, count + count % 2))
    words, half = Words(size) if device.type == "cpu" else DeviceWords(_key(), size, device), size // 2
    drawn = torch.empty(size, dtype=torch.float64, device=device)
    radius, first, second = torch.empty_like(drawn[:half]), drawn[:half], drawn[half:]
    for start in range(0, count, size):
        bits = words.next()
        # A uniform number on (0, 1], as fine as 2^-63 near 0, where the tails come from.
        radius.copy_(bits[:half].bitwise_and_(_WITHOUT_SIGN)).add_(1.0).mul_(2.0**-63)
        radius.log_().mul_(-2.0 * deviation**2).sqrt_()
        second.copy_(bits[half:]).mul_(math.pi * 2.0**-63)
        torch.cos(second, out=first)
        first.mul_(radius)
        second.sin_().mul_(radius)
        yield drawn[: count - start]


def generator() -> torch.Generator:
    """One of torch's generators on the CPU, for draws that need only be unknown to others, such as augmentation's.

    Of a seed torch takes 32 bits there (of `5` and `5 + 2**32` come the same numbers): whoever sees enough of what was
    done with the draws could try all. So all 624 words of its state are drawn.
    """
    made = torch.Generator().manual_seed(0)
    state = made.get_state()
    words = state[_HEAD : _HEAD + 8 * _STATE].view(torch.int64)
    words.copy_(Words(_STATE).next().bitwise_and(0xFFFFFFFF))
    made.set_state(state)
    return made


@contextmanager
def torch_seeded() -> Iterator[None]:
    """Let torch's global streams begin where nobody knows, and give the old ones back.

    Whatever draws from them: layers of dropout are of many makes, and a network may call a function.
    """
    with torch.random.fork_rng():
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(int.from_bytes(_key()[:8], "big") >> 1)  # all of its bits count there
        torch.set_rng_state(generator().get_state())
        yield


class Words:
    """Words of 64 random bits, (words,) int64, under a key of their own; the next ones overwrite those before."""

    def __init__(self, count: int) -> None:
        self._stream = Cipher(ChaCha20(_key(), bytes(16)), mode=None).encryptor()
        self._zeros, self._bytes = bytes(8 * count), bytearray(8 * count)
        self._words = torch.frombuffer(self._bytes, dtype=torch.int64) if count else torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """As many as were asked for, none of them given before."""
        self._stream.update_into(self._zeros, self._bytes)
        return self._words


def _key() -> bytes:
    return os.urandom(32)
