"""The files of an egress log: the one that is written, and before it the sealed ones, which never change again.

Together they are one log: positions count bytes from the first line that ever left, and each file's first line follows
the last one of the file before. So a sealed file that was changed or taken away shows in the chain.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fedgraft.common.base.disk import naming
from fedgraft.common.base.files import make_folder
from fedgraft.common.base.locking import lock

_SEALED = re.compile(r"egress-[0-9].*\.jsonl")
SEGMENT_BYTES = 32 << 20
"""A file that is longer is sealed before the next line is written."""


class EgressFiles:
    """Those in a site's state folder. Safe for several processes at once."""

    def __init__(self, state: Path) -> None:
        self.active = state / "egress.jsonl"
        self._folder, self._active = str(state), str(self.active)

    def sealed(self) -> list[Path]:
        """The files that are full, in the order in which they were written."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - asked several times at every visit
        except FileNotFoundError:
            return []
        found = [name for name in names if name.startswith("egress-") and _SEALED.fullmatch(name)]
        return [self.active.with_name(name) for name in sorted(found)]

    def ends_with(self, line: bytes, size: int) -> bool:
        """Whether the log is this line after `size` bytes, and nothing else, on the disk as it is now.

        False also where it cannot be said at a glance: while files are sealed, or if they cannot be read.
        """
        try:
            start = size - sum(os.stat(path).st_size for path in self.sealed())  # noqa: PTH116 - as above
            descriptor = os.open(self._active, os.O_RDONLY)
            try:
                whole = os.fstat(descriptor).st_size == start + len(line)
                return whole and start >= 0 and os.pread(descriptor, len(line) + 1, start) == line
            finally:
                os.close(descriptor)
        except OSError:
            return False

    def sizes(self) -> dict[Path, int]:
        """All files that there are, in order, each with its bytes; also while others write and seal."""
        while True:
            sealed = self.sealed()
            found = {path: path.stat().st_size for path in sealed}
            with contextlib.suppress(FileNotFoundError):
                found[self.active] = os.stat(self.active).st_size  # noqa: PTH116 - as above
            if self.sealed() == sealed:  # else the file that is written became one of them meanwhile
                return found

    @contextlib.contextmanager
    def appending(self) -> Iterator[int]:
        """The descriptor of the file that is written, which nobody else appends to meanwhile; sealed if it is full."""
        while True:
            descriptor = self._open()
            try:
                lock(descriptor)
                if not self._is_active(descriptor):  # somebody sealed it while this waited
                    continue
                if os.fstat(descriptor).st_size > SEGMENT_BYTES:
                    self._seal()
                    continue
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def lines(self, start: int) -> Iterator[bytes]:
        """The lines after byte `start` of the log, the last one perhaps torn; also while others write and seal."""
        at = start
        while True:
            sealed = self.sealed()
            path, offset = self._place(sealed, at)
            with contextlib.ExitStack() as stack:
                try:
                    file = stack.enter_context(path.open("rb"))
                except FileNotFoundError:
                    if self.sealed() == sealed:
                        return
                    continue
                if self.sealed() != sealed:
                    continue
                with naming(path):
                    file.seek(offset)
                    for line in file:
                        at += len(line)
                        yield line
            if path == self.active and self.sealed() == sealed:
                return

    def last_line(self, descriptor: int) -> tuple[bytes, int]:
        """The last whole line of the log, and how long the file that is written is. What was torn there is cut off."""
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, 0)
        whole = data.rfind(b"\n") + 1
        if whole != size:
            os.ftruncate(descriptor, whole)
        if not whole and (sealed := self.sealed()):
            data = sealed[-1].read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        return lines[-1] if lines else b"", whole

    def _place(self, sealed: list[Path], at: int) -> tuple[Path, int]:
        for path in sealed:
            size = path.stat().st_size
            if at < size:
                return path, at
            at -= size
        return self.active, at

    def _is_active(self, descriptor: int) -> bool:
        try:
            return os.fstat(descriptor).st_ino == os.stat(self._active).st_ino  # noqa: PTH116 - as above
        except FileNotFoundError:
            return False

    def _seal(self) -> None:
        numbers = [int(path.stem.partition("-")[2]) for path in self.sealed()]
        self.active.rename(self.active.with_name(f"egress-{max(numbers, default=0) + 1:06d}.jsonl"))

    def _open(self) -> int:
        try:
            return os.open(self._active, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except FileNotFoundError:
            make_folder(self.active.parent)
            return os.open(self.active, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
