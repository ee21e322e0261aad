"""A study's last replies on the site's disk: a round that is asked again is sent again and not computed anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgraft.common.base.files import load_tensors, make_folder, save_tensors
from fedgraft.common.protocol.instructions import Arrays

_KEPT = 3


class Replay(Exception):
    """This round was charged and answered before: `shared` was released then, and `own` stayed."""

    def __init__(self, shared: Arrays, own: Arrays) -> None:
        super().__init__()
        self.shared, self.own = shared, own


class Replies:
    """What was released in the last few exchanges, one file for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, exchange: int, shared: Arrays, own: Arrays) -> None:
        """Put what is about to be sent on disk, and forget the oldest."""
        make_folder(self._folder)
        entries = {f"shared/{key}": array for key, array in shared.items()}
        entries |= {f"own/{key}": array for key, array in own.items()}
        save_tensors(self._path(exchange), entries, private=True)
        for old in sorted(self._folder.glob("*.safetensors"))[:-_KEPT]:
            old.unlink(missing_ok=True)  # by another process of the site, say

    def of(self, exchange: int) -> Replay | None:
        """What was answered then; None if nothing is known of it."""
        path = self._path(exchange)
        if not path.exists():
            return None
        entries = load_tensors(path)

        def part(name: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{name}/"): a for k, a in entries.items() if k.startswith(f"{name}/")}

        return Replay(part("shared"), part("own"))

    def _path(self, exchange: int) -> Path:
        return self._folder / f"{exchange:06d}.safetensors"
