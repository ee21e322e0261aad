"""Changes of a cohort that experiments ask for: fewer training cases, hidden labels, labels without meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.seeds import derive
from fedgraft.common.study.tasks import UNKNOWN

KEYS = ("train_cases", "train_labels")
"""Keys of a cohort that change nothing of what is decoded."""

Targets = Mapping[str, NDArray[Any]]


def fewer(
    train: NDArray[np.int64], patients: Sequence[str], strata: Mapping[str, int], most: int, seed: int
) -> NDArray[np.int64]:
    """Of the training cases those of the first patients in a random order, until there are `most`, or all.

    Classes take turns, so that the few are as balanced as the patients allow. Patients are kept whole, so that there
    may be a few cases more than asked for. More cases contain the fewer.
    """
    own: dict[str, list[int]] = {}
    for case in train.tolist():
        own.setdefault(patients[case], []).append(case)
    order = sorted(own, key=lambda patient: derive(seed, "fewer", patient))
    place: dict[str, int] = {}
    counts: dict[int, int] = {}
    for patient in order:
        counts[strata[patient]] = place[patient] = counts.get(strata[patient], 0) + 1
    chosen: list[int] = []
    for patient in sorted(order, key=lambda patient: (place[patient], strata[patient] == UNKNOWN, strata[patient])):
        if len(chosen) >= most:
            break
        chosen += own[patient]
    return np.array(sorted(chosen), dtype=np.int64)


def labels(
    targets: Targets, patients: Sequence[str], cases: Mapping[str, NDArray[np.int64]], how: str, seed: int
) -> Targets:
    """Targets as they are (`known`), known for test cases alone (`hidden`), or dealt out anew (`shuffled`).

    `shuffled` gives the cases of each patient who does not test the first label of another such patient: prevalences
    stay, meaning goes.
    """
    if how == "known":
        return targets
    changed = {task: target.copy() for task, target in targets.items()}
    for split in ("train", "val"):
        at = cases[split]
        own = sorted({patients[case] for case in at.tolist()}, key=lambda patient: derive(seed, "order", patient))
        others = sorted(own, key=lambda patient: derive(seed, "shuffle", patient))
        first = {patients[case]: case for case in at[::-1].tolist()}
        giver = {patient: first[other] for patient, other in zip(own, others, strict=True)}
        for task, target in targets.items():
            if how == "hidden":
                changed[task][at] = np.nan if target.dtype.kind == "f" else UNKNOWN
            else:
                changed[task][at] = target[[giver[patients[case]] for case in at.tolist()]]
    return changed
