"""The key of the hashes that stand for patients: drawn once by the site, in a private file of its own.

Whoever has it can look up whether a known patient number is at the site. Without it the site's splits, caches and
ledger no longer know their patients, so it lasts as long as they do.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedgraft.client.data.cohorts.cohort import Place
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.common.base.disk import listed
from fedgraft.common.base.errors import DataError
from fedgraft.common.base.files import make_folder, write_atomic

_NAME = "patients.key"
_BYTES = 32
_SPLITS = "splits.csv"


def place_of(config: SiteConfig, study: str) -> Place:
    """Where a site keeps what it has of the study with that digest, and its key, drawn if there is none yet."""
    key = patient_key(config.state, sync=config.sync)
    return Place(config.folder(study), config.cache, key, sync=config.sync)


def patient_key(state: Path, *, sync: bool = True) -> bytes:
    """The key in a site's state folder. DataError if it is damaged, or gone while patients are known by it."""
    path = state / _NAME
    if not path.exists():
        if listed(state, f"**/{_SPLITS}"):
            raise DataError(
                f"{path}: is gone, but patients were split under it.",
                fix="Restore it from a backup: under another key every patient would be somebody new.",
            )
        keep_key(state, os.urandom(_BYTES), sync=sync)
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not re.fullmatch(r"([0-9a-f]{2}){16,}", text):
        raise DataError(f"{path}: cannot be read, or is damaged.", fix="Restore it from a backup.")
    return bytes.fromhex(text)


def keep_key(state: Path, key: bytes, *, sync: bool = True) -> None:
    """Write the key, readable by its owner alone, unless there is one: of two processes the first one's counts."""
    make_folder(state)
    fresh = state / f".{_NAME}.{os.urandom(4).hex()}"
    write_atomic(fresh, key.hex().encode() + b"\n", private=True, sync=sync)
    try:
        os.link(fresh, state / _NAME)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
