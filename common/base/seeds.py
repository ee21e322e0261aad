"""Randomness is an argument: every stream is derived from (seed, site, stage, round, purpose)."""

from __future__ import annotations

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream named by `path`; equal paths give equal streams on every machine."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
