"""What goes wrong between a program and a disk, in words that name the place and the next step."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedgraft.common.base.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the operating system says when a disk takes no more."""

_BLOCK = 4096

_ADVICE = {
    errno.ENOSPC: "Free some space there, or choose another place.",
    errno.EDQUOT: "Free some of your quota there, or choose another place.",
    errno.EFBIG: "Files may not be so large there: raise the limit, or choose another place.",
    errno.EROFS: "Nothing can be written there: choose another place.",
    errno.EACCES: "Ask whoever owns it for the right, or choose another place.",
    errno.EPERM: "Ask whoever owns it for the right, or choose another place.",
    errno.ENOTDIR: "What should be a folder on the way there is a file.",
    errno.EISDIR: "A file belongs there, and it is a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "A link there leads to itself.",
    errno.EIO: "The disk itself reports the error: look at its health.",
}


def in_words(error: OSError) -> str:
    """An error of the operating system in one line: the place if it is known, what is wrong, and what to do."""
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    wrong = error.strerror or "cannot be used"
    return f"{place}{wrong}. {_ADVICE.get(error.errno or 0, '')}".rstrip()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError within names this path, if it names none: a write to an open file says only that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def instead_of(path: Path) -> Iterator[None]:
    """An OSError within names this path, whatever it names: what happens to a passing file is told of the lasting one.

    Nobody can do anything about a name that fedgraft made up on the way.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def demand_place(path: Path, *, file: bool = False) -> None:
    """OSError that names `path` unless files can be written into this folder, or as this `file`.

    For the start of a command that comes to write only at its end. Whatever is made on the way is removed again.
    """
    made: list[Path] = []
    folder = path.parent if file else path
    try:
        with instead_of(path):
            if file and path.is_dir():
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            for one in [*reversed(folder.parents), folder]:
                if one.is_dir():
                    continue
                if os.path.lexists(one):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                one.mkdir(mode=0o700)
                made.append(one)
            _try(path if file and not os.path.lexists(path) else folder / f".{secrets.token_hex(4)}")
    finally:
        for one in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
                one.rmdir()


def _try(path: Path) -> None:
    """Write a file that was not there, as large as a block of a disk, and remove it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, bytes(_BLOCK))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()


def exists(place: str) -> bool:
    """As `os.path.exists`, for what a visit asks many times: of what is not there no exception is made on the way."""
    return os.access(place, os.F_OK)


def read_bytes(path: Path) -> bytes:
    """The content of a file; an OSError names it, also one that comes in the middle."""
    with naming(path):
        return path.read_bytes()


@contextlib.contextmanager
def understood(path: Path, what: str, fix: str = "") -> Iterator[None]:
    """InputError that says that the file is not `what`, if what is read from it within does not fit."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
        raise InputError(f"{path}: is not {what}, or is damaged.", fix=fix) from None


def listed(folder: Path, *patterns: str) -> list[Path]:
    """What is below a folder and fits one of the patterns, in order; also while others take folders there away."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # one was listed and gone before it was looked into
            return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def oldest_first(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that are there, by the time of their last change: others may delete what was just listed."""
    changed = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            changed[path] = path.stat().st_mtime_ns
    return sorted(changed, key=changed.__getitem__)


def why_no_file(path: Path) -> str:
    """Why there is no file of this name to read: it is not there, it is a folder, or a link to nowhere."""
    if path.is_dir():
        return f"{path.name} is a folder"
    return f"{path.name} is a link that leads nowhere" if path.is_symlink() else f"there is no {path.name}"
