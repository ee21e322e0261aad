"""Who left in which bin of time at this site: counts for a Kaplan-Meier curve, and sums for Cox's regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.client.training.model.loader import Loader
from fedgraft.common.closed_form.cox import hazard_sums
from fedgraft.common.closed_form.survival import EXITS, exits
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.study import Study

Places = NDArray[np.int64]


def survival_sums(spec: Survival, study: Study, loader: Loader, patients: Sequence[str]) -> dict[str, np.ndarray]:
    """`exits` (curves, 2, bins + 1) in float64 over all the site's patients, whichever split they are in.

    No model learns from a curve, so that nobody has to be held out. `patients` names each case's.
    """
    cases, groups = followed(spec, loader, patients)
    times, events = _of(spec.time, loader, cases), _of(spec.event, loader, cases).astype(np.int64)
    return {EXITS: exits(spec, times, events, groups, len(spec.groups(study.tasks_by_name)))}


def cox_sums(
    spec: Survival, study: Study, loader: Loader, patients: Sequence[str], now: np.ndarray
) -> dict[str, np.ndarray]:
    """What a step from the coefficients `now` (d,) needs of all the site's patients; `loader` gives features (d)."""
    cases, strata = followed(spec, loader, patients)
    times, events = _of(spec.time, loader, cases), _of(spec.event, loader, cases).astype(np.int64)
    features = np.zeros((0, len(now)))
    if len(cases):
        (batch,) = loader.batches([torch.from_numpy(cases)])
        features = batch.inputs.double().cpu().numpy()
    count = len(spec.groups(study.tasks_by_name))
    return hazard_sums(spec, (times, events, strata), features, now, count)


def followed(spec: Survival, loader: Loader, patients: Sequence[str]) -> tuple[Places, Places]:
    """The case by which each patient counts, and its group: the one of the longest time whose answers are all known."""
    every = loader.splits["all"].numpy()
    times, events = _of(spec.time, loader, every), _of(spec.event, loader, every)
    groups = np.zeros(len(every), np.int64) if spec.by is None else _of(spec.by, loader, every).astype(np.int64)
    known = np.isfinite(times) & (times >= 0) & (events >= 0) & (groups >= 0)
    longest: dict[str, int] = {}
    for case in np.flatnonzero(known).tolist():
        # Of equal times the event counts, whatever the order in which cases are read.
        before = longest.get(patients[case])
        if before is None or (times[case], events[case]) > (times[before], events[before]):
            longest[patients[case]] = case
    cases = np.array(sorted(longest.values()), np.int64)
    return cases, groups[cases]


def _of(task: str, loader: Loader, cases: Places) -> np.ndarray:
    return loader.targets(task, torch.from_numpy(cases)).numpy()
