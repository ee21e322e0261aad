"""Which patients train, validate and test: fixed by a seed, written down and kept. By one of two rules.

`independent`: each patient's split follows from a keyed hash of that patient alone, so that one patient more or less
moves nobody else. Differential privacy counts what one patient changes, so whatever ends in a private stage needs it.
`stratified`: patients are dealt out class by class, so that the shares hold exactly; a patient moves others.
Or not by a rule at all: where the cohort brings splits of its `own`, these are kept, and nothing else may move them.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedgraft.common.base.disk import read_bytes
from fedgraft.common.base.errors import DataError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.tasks import UNKNOWN

_SEAL = "# seal "
SPLITS = ("train", "val", "test")
SplitRule = Literal["independent", "stratified", "own"]
IN_WORDS: Mapping[SplitRule, str] = {
    "independent": "split each by that patient alone (independent)",
    "stratified": "dealt out class by class (stratified), which is not for work with differential privacy",
    "own": "split as the cohort itself says (own), whatever shares the study asks for",
}
"""How patients came into their splits."""


class TiedSplits(DataError):
    """The patients were dealt out together, where each must stand alone."""


@dataclass(frozen=True)
class Dealing:
    """How a study's patients get their splits: shares and seed of the study, the rule, and the site's own key.

    `rule` = None means the rule of the file that is there, or `independent` if there is none.
    """

    shares: SplitSpec
    seed: int
    secret: bytes
    rule: SplitRule | None = None


def chance(secret: bytes, seed: int, purpose: str, patient: str) -> float:
    """A number in [0, 1) that looks drawn: HMAC-SHA256 under the site's key of purpose, seed and patient, and no more.

    The coordinator knows the seed but not the key, so it cannot tell who is in which split.
    """
    digest = hmac.new(secret, f"{purpose}\0{seed}\0{patient}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def alone(patients: Iterable[str], dealing: Dealing) -> dict[str, str]:
    """The split of every patient by thresholds on `chance`: the shares hold on average, and no other patient counts."""
    return {
        each: _by_threshold(chance(dealing.secret, dealing.seed, "split", each), dealing.shares) for each in patients
    }


def _by_threshold(drawn: float, shares: SplitSpec) -> str:
    wanted = [split for split in SPLITS if getattr(shares, split) > 0]
    passed = 0.0
    for split in wanted[:-1]:
        passed += getattr(shares, split)
        if drawn < passed:
            return split
    return wanted[-1]  # whatever rounding has left of 1


def assign(labels: Mapping[str, int], known: Mapping[str, str], shares: SplitSpec, seed: int) -> dict[str, str]:
    """Stratified: the split of every patient, from its stratum (a class, or UNKNOWN); `known` patients stay put.

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


def keep(
    path: Path,
    labels: Mapping[str, int],
    dealing: Dealing,
    own: Mapping[str, str] | None = None,
    *,
    sync: bool = True,
) -> tuple[dict[str, str], SplitRule]:
    """The splits in the file `path`, with new patients added, and the rule that holds; nobody in it ever moves.

    `own` are the splits that the cohort brings, if it brings some. The file is private. DataError if it is damaged, was
    made with other shares or another seed, says otherwise than the cohort does, or was dealt by class where each
    patient must stand alone. A file that names no rule counts as dealt by class. `sync` is as in `write_atomic`.
    """
    fresh: SplitRule = "own" if own is not None else dealing.rule or "independent"
    known, rule = _read(path, dealing) if path.exists() else ({}, fresh)
    moved = any((own or {}).get(patient, split) != split for patient, split in known.items())
    if moved or (rule == "own") != (own is not None):
        raise DataError(
            f"{path}: the patients were split otherwise than the cohort's own split says now.",
            fix="Restore the cohort as it was, or remove the file to take over what it says; models that saw the old "
            "split must not be tested on the new one.",
        )
    if own is not None:
        if own.keys() - known.keys():
            _write(path, known | dict(own), dealing, rule, sync=sync)
        return {patient: own[patient] for patient in labels}, rule
    if dealing.rule == "independent" and rule == "stratified":
        raise TiedSplits(
            f"{path}: the patients were dealt out class by class, which ties them together, but this study or the "
            "site's policy asks for differential privacy.",
            fix="Give each study its own splits (many_studies: true in site.yaml), or remove the file to split anew; "
            "models that saw the old split must not be tested on the new one.",
        )
    if "independent" in (dealing.rule, rule):
        splits = alone((patient for patient in labels if patient not in known), dealing) | known
    else:
        splits = known | assign(labels, known, dealing.shares, dealing.seed)
    if len(splits) > len(known):
        _write(path, splits, dealing, rule, sync=sync)
    return {patient: splits[patient] for patient in labels}, rule


def write(path: Path, splits: Mapping[str, str], dealing: Dealing) -> None:
    """Put the split of every patient into the private file `path`, where `keep` finds it."""
    _write(path, splits, dealing, dealing.rule or "independent")


def _write(path: Path, splits: Mapping[str, str], dealing: Dealing, rule: SplitRule, *, sync: bool = True) -> None:
    text = io.StringIO()
    text.write(_header(dealing, rule) + "\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("patient", "split"))
    writer.writerows(sorted(splits.items()))
    write_atomic(path, sealed(text.getvalue(), dealing.secret).encode(), private=True, sync=sync)


def sealed(text: str, secret: bytes) -> str:
    """The text of a file of splits and a last line that depends on all of it, and on the site's key.

    With one letter changed, or under another key, a patient is somebody new, who is then dealt out once more.
    """
    return f"{text}{_SEAL}{hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()}\n"


def _header(dealing: Dealing, rule: SplitRule | None) -> str:
    if rule == "own":  # whatever shares and seed a study has
        return "# the cohort's own split"
    shares = dealing.shares
    text = f"# shares {shares.train:g} {shares.val:g} {shares.test:g}, seed {dealing.seed}"
    return text if rule is None else f"{text}, {rule}"


def stratum(targets: Sequence[int]) -> int:
    """A patient's stratum from the targets of all its cases: the highest known class, else UNKNOWN."""
    return max(targets, default=UNKNOWN)


def indices(patients: Sequence[str], splits: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Positions of each split's cases, in order."""
    names = np.array([splits[patient] for patient in patients])
    return {split: np.flatnonzero(names == split) for split in SPLITS}


def _read(path: Path, dealing: Dealing) -> tuple[dict[str, str], SplitRule]:
    text = read_bytes(path).decode("utf-8", "replace")
    whole = text.rpartition(_SEAL)[0]
    if sealed(whole, dealing.secret) != text:
        raise DataError(
            f"{path}: is damaged, or the site's patients.key is another than when it was written.",
            fix="Restore both from a backup, or remove the file to split the patients anew; models that saw the old "
            "split must not be tested on the new one.",
        )
    lines = whole.splitlines()
    rules: dict[SplitRule | None, SplitRule] = {rule: rule for rule in IN_WORDS}
    rules[None] = "stratified"
    rule = next((found for said, found in rules.items() if lines[:1] == [_header(dealing, said)]), None)
    if rule is None:
        raise DataError(
            f"{path}: the patients were split with other shares or another seed.",
            fix="Remove the file to split them anew; models that saw the old split must not be tested on the new one.",
        )
    rows = list(csv.reader(lines[2:]))
    if lines[1:2] != ["patient,split"] or any(len(row) != 2 or row[1] not in SPLITS for row in rows):
        raise DataError(f"{path}: is damaged.", fix="Restore it, or remove it to split the patients anew.")
    return {row[0]: row[1] for row in rows}, rule
