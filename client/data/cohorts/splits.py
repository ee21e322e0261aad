"""Which patients train, validate and test: by patient, stratified, fixed by a seed, written down and kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedgraft.common.base.errors import DataError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.tasks import UNKNOWN

SPLITS = ("train", "val", "test")


def assign(labels: Mapping[str, int], known: Mapping[str, str], shares: SplitSpec, seed: int) -> dict[str, str]:
    """The split of every patient, from the patient's stratum (a class, or UNKNOWN); `known` patients stay put.

    Depends on names, strata and seed, not on their order. Within a stratum patients are shuffled and dealt out so that
    the shares hold over all strata together as closely as whole patients allow; a stratum's first patient trains.
    """
    wanted = {split: getattr(shares, split) for split in SPLITS}
    splits = {patient: known[patient] for patient in labels if patient in known}
    dealt = {split: list(splits.values()).count(split) for split in SPLITS}
    for stratum in sorted(set(labels.values())):
        members = sorted(patient for patient, label in labels.items() if label == stratum)
        members.sort(key=lambda patient: derive(seed, "split", patient))
        settled = [splits[patient] for patient in members if patient in splits]
        here = {split: settled.count(split) for split in SPLITS}
        for count, patient in enumerate((each for each in members if each not in known), start=len(settled) + 1):
            # What each split lacks of its share, in this stratum first and over all of them second.
            total = len(splits) + 1
            lack = {
                split: (wanted[split] * count - here[split], wanted[split] * total - dealt[split])
                for split in SPLITS
                if wanted[split] > 0
            }
            split = (
                "train" if not here["train"] else max(lack, key=lambda name: (round(lack[name][0], 9), lack[name][1]))
            )
            splits[patient] = split
            here[split] += 1
            dealt[split] += 1
    return splits


def keep(path: Path, labels: Mapping[str, int], shares: SplitSpec, seed: int) -> dict[str, str]:
    """The splits in the file `path`, with new patients added; patients that are in it never move.

    The file is private. DataError if it is damaged or was made with other shares or another seed.
    """
    known = _read(path, _header(shares, seed)) if path.exists() else {}
    splits = known | assign(labels, known, shares, seed)
    if len(splits) > len(known):
        write(path, splits, shares, seed)
    return {patient: splits[patient] for patient in labels}


def write(path: Path, splits: Mapping[str, str], shares: SplitSpec, seed: int) -> None:
    """Put the split of every patient into the private file `path`, where `keep` finds it."""
    text = io.StringIO()
    text.write(_header(shares, seed) + "\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("patient", "split"))
    writer.writerows(sorted(splits.items()))
    write_atomic(path, text.getvalue().encode(), private=True)


def _header(shares: SplitSpec, seed: int) -> str:
    return f"# shares {shares.train:g} {shares.val:g} {shares.test:g}, seed {seed}"


def stratum(targets: Sequence[int]) -> int:
    """A patient's stratum from the targets of all its cases: the highest known class, else UNKNOWN."""
    return max(targets, default=UNKNOWN)


def indices(patients: Sequence[str], splits: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Positions of each split's cases, in order."""
    names = np.array([splits[patient] for patient in patients])
    return {split: np.flatnonzero(names == split) for split in SPLITS}


def _read(path: Path, header: str) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0] != header:
        raise DataError(
            f"{path}: the patients were split with other shares or another seed.",
            fix="Remove the file to split them anew; models that saw the old split must not be tested on the new one.",
        )
    rows = list(csv.reader(lines[2:]))
    if lines[1:2] != ["patient,split"] or any(len(row) != 2 or row[1] not in SPLITS for row in rows):
        raise DataError(f"{path}: is damaged.", fix="Restore it, or remove it to split the patients anew.")
    return {row[0]: row[1] for row in rows}
