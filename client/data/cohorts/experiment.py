"""Changes of a cohort that experiments ask for: fewer training cases, hidden labels, labels without meaning.

Which patients are the first few, and whose label goes to whom, depends on who else is there. Where that must not be, it
is refused; hiding labels depends on each patient's own split alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.tasks import UNKNOWN

KEYS = ("train_cases", "train_labels", "split")
"""Keys of a cohort that change nothing of what is decoded."""

Targets = Mapping[str, NDArray[Any]]


def refuse_tied(name: str, spec: CohortSpec) -> None:
    """DataError for what would tie patients together where each must stand alone."""
    if spec.train_cases is not None:
        raise DataError(
            f"Site {name}: train_cases takes the first so many patients, so that one patient more changes who else "
            "trains; a study with differential privacy cannot count that.",
            fix="Leave it out, and give the study's split a smaller share for training.",
        )
    if spec.train_labels == "shuffled":
        raise DataError(
            f"Site {name}: train_labels: shuffled gives patients each other's labels, so that one patient more changes "
            "those of others; a study with differential privacy cannot count that.",
            fix="Shuffle in a study without private stages.",
        )


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
