"""Entries that never leave the site (local norm layers, personal heads), on its disk, one version per exchange."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from fedgraft.client.runtime.visit.progress import set_aside
from fedgraft.common.base.files import load_tensors, make_folder, save_tensors
from fedgraft.common.protocol.instructions import Arrays

_VERSIONS = 3
"""How many versions stay on disk: an exchange may be repeated after a crash, and then needs the one before it."""


class LocalState:
    """The site's own entries as they were after each exchange."""

    def __init__(self, folder: Path, *, sync: bool = True) -> None:
        """Without `sync` what is kept survives a kill of the process, and not a loss of power."""
        self._folder = folder
        self._place = str(folder)
        self._sync = sync
        self._latest: tuple[int, dict[str, np.ndarray]] | None = None

    def before(self, exchange: int) -> dict[str, np.ndarray]:
        """The site's own entries after the last exchange before this one; none at first.

        Versions of this or a later exchange belong to exchanges that are being repeated, and are deleted.
        """
        earlier = None
        for path in self._paths():
            if int(path.stem) >= exchange:
                path.unlink(missing_ok=True)  # another process of the site may have been asked as well
            else:
                earlier = path
        number = int(earlier.stem) if earlier else 0
        # Another process may have answered the exchanges in between: what counts is on the disk.
        if self._latest is None or self._latest[0] != number:
            self._latest = (number, load_tensors(earlier) if earlier else {})
        return self._latest[1]

    def set_aside(self) -> None:
        """Put away what an earlier course of the study has left: a new one begins."""
        set_aside(self._folder)
        self._latest = None

    def save(self, exchange: int, entries: Arrays) -> None:
        """Put all of the site's own entries on disk as they are after `exchange`, all or nothing."""
        make_folder(self._folder)
        save_tensors(self._folder / f"{exchange:06d}.safetensors", dict(entries), private=True, sync=self._sync)
        self._latest = (exchange, dict(entries))
        for path in self._paths()[:-_VERSIONS]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        try:
            names = os.listdir(self._place)  # noqa: PTH208 - asked at every visit, and there may be none
        except FileNotFoundError:
            return []
        return [self._folder / name for name in sorted(names) if fnmatchcase(name, "[0-9]*.safetensors")]
