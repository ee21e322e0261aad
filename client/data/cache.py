"""Decoded cohorts on the site's disk: private, whole or not at all, without anything that names a patient."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import digest_arrays, write_atomic


@dataclass(frozen=True)
class Decoded:
    """Stored inputs, targets by task, keyed patients, problems by reason, counts of what files say."""

    inputs: NDArray[Any]
    targets: Mapping[str, NDArray[np.int64]]
    patients: tuple[str, ...]
    problems: Mapping[str, int]
    facts: Mapping[str, int]


def store(folder: Path, key: str, decoded: Decoded) -> None:
    """Keep a cohort under `key`: first the images, then the file that makes them count."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_array(folder / f"{key}.npy", decoded.inputs)
    facts = {
        "targets": {task: target.tolist() for task, target in decoded.targets.items()},
        "patients": decoded.patients,
        "problems": decoded.problems,
        "facts": decoded.facts,
        "digest": digest_arrays({"inputs": decoded.inputs}),
    }
    write_atomic(folder / f"{key}.json", json.dumps(facts).encode(), private=True)


def load(folder: Path, key: str) -> Decoded | None:
    """The cohort under `key`, its images mapped from disk; None if there is none, or it is damaged."""
    try:
        facts = json.loads((folder / f"{key}.json").read_bytes())
        inputs = np.load(folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        targets = {task: np.array(target, dtype=np.int64) for task, target in facts["targets"].items()}
        decoded = Decoded(inputs, targets, tuple(facts["patients"]), facts["problems"], facts["facts"])
        whole = facts["digest"] == digest_arrays({"inputs": inputs})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    lengths = {len(inputs), len(decoded.patients), *(len(target) for target in targets.values())}
    return decoded if whole and len(lengths) == 1 else None


def _write_array(path: Path, array: NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
