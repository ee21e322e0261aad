"""Decoded cohorts on the site's disk: private, whole or not at all, without anything that names a patient.

Arrays are written once and stand beside a digest. As long as a file has the size, times and number that it had when it
was last known to be whole, its content is not read again at every start: whoever writes to it changes its times, and
the file system's own time cannot be set back. Otherwise, and for `site check`, all of it is compared with the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import ENDS
from fedgraft.common.base.files import canonical_json, digest_arrays, make_folder, write_atomic

_STAMPS = "stamps"
Described = tuple[tuple[str, str], ...]
"""What a file says of itself, in words of fixed lists: pairs of fact and word."""


@dataclass(frozen=True)
class Decoded:
    """Stored inputs, targets by task, keyed patients, problems by reason, counts of what files say.

    `left_out` has the positions (see `scan.files`) of files that were not used, and why; `origins` those that the cases
    are from. `studies` numbers the DICOM studies of the cases. Both are empty where there is no such thing.
    """

    inputs: NDArray[Any]
    targets: Mapping[str, NDArray[Any]]
    patients: tuple[str, ...]
    problems: Mapping[str, int]
    facts: Mapping[str, int]
    left_out: tuple[tuple[int, str], ...] = ()
    origins: tuple[int, ...] = ()
    studies: tuple[int, ...] = ()
    spacings: tuple[float, ...] = ()
    """Sizes in mm of a pixel of each stored image, 0 where it is not known; empty for tables."""
    splits: tuple[str, ...] = ()
    """Of each case, where the cohort brings its own; else empty."""
    subgroups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By attribute the position of each case's group, -1 for none."""
    described: tuple[Described, ...] = ()
    """Of each case what its file says of itself that patients are counted by."""


def store(folder: Path, key: str, decoded: Decoded) -> None:
    """Keep a cohort under `key`: first the images, then the file that makes them count."""
    make_folder(folder)
    _write_array(folder / f"{key}.npy", decoded.inputs)
    classes = {task: target.tolist() for task, target in decoded.targets.items() if target.dtype == np.int64}
    arrays = {task: target for task, target in decoded.targets.items() if task not in classes}
    for task, target in arrays.items():
        _write_array(folder / f"{key}-{task}.npy", target)
    kinds = list(dict.fromkeys(decoded.described))
    number_of = {described: number for number, described in enumerate(kinds)}
    content = {
        "targets": classes,
        "arrays": {task: digest_arrays({"target": target}) for task, target in arrays.items()},
        "patients": decoded.patients,
        "problems": decoded.problems,
        "facts": decoded.facts,
        "left_out": decoded.left_out,
        "origins": decoded.origins,
        "studies": decoded.studies,
        "spacings": decoded.spacings,
        "splits": decoded.splits,
        "subgroups": decoded.subgroups,
        "kinds": kinds,
        "kind_of": [number_of[described] for described in decoded.described],
        "inputs": digest_arrays({"inputs": decoded.inputs}),
    }
    _seal(folder, key, content)


def _seal(folder: Path, key: str, content: Mapping[str, Any]) -> None:
    """Say that the arrays of a cohort are whole as they are now."""
    known = {**content, _STAMPS: _stamps(folder, key, content["arrays"])}
    whole = {"content": known, "digest": _digest(known)}
    write_atomic(folder / f"{key}.json", json.dumps(whole).encode(), private=True)


def _stamps(folder: Path, key: str, arrays: Iterable[str]) -> list[list[int]]:
    """What changes when a file is written, replaced or brought back: size, times and number of each array's."""
    found = [(folder / name).stat() for name in (f"{key}.npy", *(f"{key}-{task}.npy" for task in sorted(arrays)))]
    return [[one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for one in found]


def load(folder: Path, key: str, *, full: bool = False) -> Decoded | None:
    """The cohort under `key`, its images mapped from disk; None if there is none, or it is damaged.

    `full` compares all content with its digest, whatever the files' times say.
    """
    try:
        kept = json.loads((folder / f"{key}.json").read_bytes())
        content = kept["content"]
        inputs = np.load(folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        targets = {task: np.array(target, dtype=np.int64) for task, target in content["targets"].items()}
        arrays = {task: np.load(folder / f"{key}-{task}.npy", allow_pickle=False) for task in content["arrays"]}
        left_out = tuple((int(at), str(reason)) for at, reason in content["left_out"])
        origins, studies = tuple(map(int, content["origins"])), tuple(map(int, content["studies"]))
        problems, facts = content["problems"], content["facts"]
        spacings = tuple(map(float, content["spacings"]))
        patients, splits = tuple(content["patients"]), tuple(map(str, content["splits"]))
        subgroups = {str(name): tuple(map(int, own)) for name, own in content["subgroups"].items()}
        kinds = [tuple((str(fact), str(word)) for fact, word in described) for described in content["kinds"]]
        described = tuple(kinds[number] for number in content["kind_of"])
        places = left_out, origins, studies, spacings, splits, subgroups, described
        decoded = Decoded(inputs, targets | arrays, patients, problems, facts, *places)
        whole = kept["digest"] == _digest(content)
        stamped = content.pop(_STAMPS) == _stamps(folder, key, arrays)
        if whole and (full or not stamped):
            whole = content["inputs"] == digest_arrays({"inputs": inputs})
            whole &= content["arrays"] == {task: digest_arrays({"target": array}) for task, array in arrays.items()}
            if whole and not stamped:
                _seal(folder, key, content)
    except ENDS:
        raise
    except BaseException:  # numpy and json raise what they like on damaged files, and all of it means: decode again
        return None
    return decoded if whole else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


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
