"""Locks on open files, among processes of one machine: the only file that asks the operating system for them."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from fedgraft.common.base.errors import RunError

if TYPE_CHECKING:
    import fcntl
else:
    try:
        import fcntl
    except ImportError:  # not on Windows
        fcntl = None


def lock(file: int | IO[bytes] | IO[str]) -> None:
    """Wait until no other process has the file (or its descriptor), then keep them out until it is closed.

    RunError on a system without such locks.
    """
    _need_locks()
    fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: int | IO[bytes] | IO[str], *, shared: bool = False) -> bool:
    """As `lock`, without waiting: whether it could be had. With `shared` others may have it so at the same time."""
    _need_locks()
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _need_locks() -> None:
    if fcntl is None:
        raise RunError(
            "This system has no locks on files, without which two processes could spoil each other's records.",
            fix="Use Linux or macOS; on Windows, the Windows Subsystem for Linux.",
        )
