"""ChaCha20's key stream on the device where training is: the same bits as on the CPU, thousands of blocks at a time.

Bernstein 2008, in the layout of RFC 8439 with a counter of 64 bits and no nonce: a key is used for one stream alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_KEY_BYTES = 32
_BLOCK_WORDS = 8
"""Words of 64 bits in a block of 64 bytes."""
_LOW = (1 << 32) - 1


class DeviceWords:
    """The key stream as words of 64 bits, (words,) int64 on the device, from block 0 on."""

    def __init__(self, key: bytes, words: int, device: torch.device) -> None:
        assert len(key) == _KEY_BYTES
        self._words, self._blocks, self._first = words, -(-words // _BLOCK_WORDS), 0
        numbers = torch.frombuffer(bytearray(key), dtype=torch.int32).tolist()
        start = torch.tensor([*_CONSTANTS, *numbers], dtype=torch.int32, device=device).view(3, 4, 1)
        self._start = start.expand(3, 4, self._blocks)
        self._numbers = torch.arange(self._blocks, dtype=torch.int64, device=device)

    def next(self) -> Tensor:
        """As many words as were asked for; what is left of the last block is thrown away."""
        counter = self._numbers + self._first
        self._first += self._blocks
        halves = torch.stack([counter, counter >> 32]).bitwise_and_(_LOW).to(torch.int32)
        last = torch.cat([halves, torch.zeros_like(halves)])
        rows = [*(row.clone() for row in self._start), last.clone()]
        for _ in range(10):
            _quarter_rounds(*rows)
            rows = _shifted(rows, 1)
            _quarter_rounds(*rows)
            rows = _shifted(rows, -1)
        blocks = torch.cat([row + was for row, was in zip(rows, [*self._start, last], strict=True)])
        return blocks.t().flatten().view(torch.int64)[: self._words]


def _quarter_rounds(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """A round of all four columns, in place."""
    for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        first.add_(second)
        third.bitwise_xor_(first)
        low = (third >> (32 - bits)).bitwise_and_((1 << bits) - 1)  # the shift of a signed number repeats its sign
        third.bitwise_left_shift_(bits).bitwise_or_(low)


def _shifted(rows: list[Tensor], by: int) -> list[Tensor]:
    """Rows two to four turned so that diagonals stand in columns, or back."""
    return [rows[0], *(row.roll(-by * number, 0) for number, row in enumerate(rows[1:], start=1))]
