"""The large pieces of messages as files of the server: Flower and its database carry references to them.

Flower cuts a model into pieces of 5 MiB, and every one would be encrypted and copied between the server's own processes
and written into its database, once on its way to the sites and once more for each answer. Here the process that has a
piece, the run or the gate, writes it to a file, and the process that wants it reads that; in between travels its
reference. A file's name says whose content it is, by digest, and ends in a number that nobody outside the server can
guess, and no reference ever leaves the server.

A reference is given out only when its file is whole, so that a process that is killed leaves at most a file that nobody
refers to; those are swept. Nothing is synced to the disk: what is in transit when the power fails is sent again.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path

from fedgraft.common.base.files import open_private

FOLDER = "FEDGRAFT_BODIES"
"""The variable of the environment that tells the server's processes where bodies are."""

SMALL_BYTES = 1 << 16
"""Pieces up to this size travel as they are."""

FORGOTTEN_S = 600.0
"""A file that nobody refers to after so long was left by a process that was killed."""

_MARK = b"\0body "
"""No piece of Flower's begins so."""

_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}\.[0-9]{1,10}")
_REFERENCE = re.compile(rb"\0body (%s)" % _NAME.pattern.encode())
_PIECE = re.compile(rb"ArrayChunk  ([0-9]{1,10})\0")


class Bodies:
    """The bodies in one folder, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_environment(cls) -> Bodies | None:
        """Those of the server that started this process; None if none did."""
        folder = os.environ.get(FOLDER)
        return cls(Path(folder)) if folder else None

    def keep(self, name: str, *parts: bytes | memoryview) -> bytes:
        """Write a piece down and give the reference to it. OSError if there is no room, and then nothing is left.

        `name` is the SHA-256 of its `parts`, one behind the other, in hex digits.
        """
        file = f"{name}.{secrets.token_hex(16)}.{sum(map(len, parts))}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / file
        try:
            with open_private(path, "wb") as out:
                for part in parts:
                    out.write(part)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return _MARK + file.encode()

    def content(self, held: bytes) -> bytes | None:
        """What a reference stands for, None if it is gone; what is no reference stands for itself."""
        path = self._path(held)
        if path is None:
            return held
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        return content if len(content) == _size(path) else None

    def holds(self, name: str, reference: bytes) -> bool:
        """Whether this is a reference to a file that is there, whole, with the content of this name."""
        path = self._path(reference)
        if path is None or not path.name.startswith(f"{name}."):
            return False
        try:
            return path.stat().st_size == _size(path)
        except FileNotFoundError:
            return False

    def discard(self, reference: bytes) -> None:
        """Forget a body, if it is there."""
        path = self._path(reference)
        if path is not None:
            path.unlink(missing_ok=True)

    def sweep(self, needed: Callable[[], Collection[bytes]]) -> int:
        """Remove what was written long ago and no reference among the `needed` ones speaks of; how many there were."""
        before, count = time.time() - FORGOTTEN_S, 0
        # What else is in the folder, `lost+found` say, is nobody's business here.
        old = [path for path in self._folder.glob("*.*.*") if _NAME.fullmatch(path.name) and _written(path) < before]
        kept = {bytes(reference) for reference in needed()} if old else set()
        for path in old:
            if _MARK + path.name.encode() not in kept:
                path.unlink(missing_ok=True)
                count += 1
        return count

    def _path(self, reference: bytes) -> Path | None:
        found = _REFERENCE.fullmatch(reference) if looks_like_reference(reference) else None
        return self._folder / found[1].decode() if found else None


def looks_like_reference(content: bytes) -> bool:
    """Whether this could be taken for a reference: nobody outside the server may say anything of the kind."""
    return content.startswith(_MARK)


def size_of(held: bytes) -> int:
    """Bytes of what a reference stands for, or of what is none."""
    found = _REFERENCE.fullmatch(held) if looks_like_reference(held) else None
    return int(found[1].rpartition(b".")[2]) if found else len(held)


def is_large_piece(name: str, content: bytes) -> bool:
    """Whether this is a large piece of an array, as Flower writes them, with its own digest for a name."""
    if len(content) <= SMALL_BYTES or (found := _PIECE.match(content)) is None:
        return False
    return len(content) - found.end() == int(found[1]) and hashlib.sha256(content).hexdigest() == name


def _size(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
