"""Lock files: every package by version and by the digests of its files, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping

Locked = dict[str, tuple[str, list[str]]]
"""Version and SHA-256 digests by normalised name."""


def normalised(name: str) -> str:
    """A distribution's name as all tools agree on it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> Locked:
    """The entries of a lock file; ValueError for a line that is none."""
    entries: Locked = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        name, equals, version = words[0].partition("==")
        hashes = [word.removeprefix("--hash=sha256:") for word in words[1:]]
        if not equals or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes):
            raise ValueError(f"not an entry with hashes: {line.strip()[:80]}")
        entries[normalised(name)] = version, sorted(hashes)
    return entries


def lock_text(entries: Mapping[str, tuple[str, list[str]]]) -> str:
    """A lock file with these entries, in the order of their names."""
    lines = []
    for name, (version, hashes) in sorted(entries.items()):
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in hashes)]))
    return "\n".join(lines) + "\n"
