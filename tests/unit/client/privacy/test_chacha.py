"""The secret stream that is made on a device is ChaCha20's, bit by bit."""

from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedgraft.client.privacy.dp.chacha import DeviceWords

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 8, 9, 4001])
def test_it_is_the_stream_of_a_library(count: int):
    key = bytes(range(7, 39))
    words, stream = DeviceWords(key, count, CPU), Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    for _ in range(3):
        block_bytes = 64 * -(-count // 8)
        expected = torch.frombuffer(bytearray(stream.update(bytes(block_bytes))), dtype=torch.int64)[:count]
        assert torch.equal(words.next(), expected)


def test_the_counter_goes_on_beyond_32_bits():
    key = bytes(range(32))
    words = DeviceWords(key, 16, CPU)
    words._first = (1 << 32) - 1
    stream = Cipher(ChaCha20(key, (((1 << 32) - 1).to_bytes(8, "little") + bytes(8))), mode=None).encryptor()
    first = torch.frombuffer(bytearray(stream.update(bytes(64))), dtype=torch.int64)
    beyond = Cipher(ChaCha20(key, (1 << 32).to_bytes(8, "little") + bytes(8)), mode=None).encryptor()
    second = torch.frombuffer(bytearray(beyond.update(bytes(64))), dtype=torch.int64)
    assert torch.equal(words.next(), torch.cat([first, second]))
