"""Small hospitals whose patients are followed until they die or are lost, and what a person counts by hand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals

Patient = tuple[float, int, str, float, float]
"""Days, whether died, arm, and two columns."""
ENDS = [30.0, 60.0, 90.0, 120.0, 180.0, 240.0, 365.0]
SURVIVAL: dict[str, Any] = {"time": "days", "event": "died", "ends": ENDS, "by": "arm"}
COUNT: dict[str, Any] = {
    "name": "follow",
    "local": {"kind": "statistics", "of": "survival", "survival": SURVIVAL},
    "aggregate": {"kind": "kaplan_meier"},
}
TASKS = [
    {"name": "days", "kind": "regression", "unit": "d", "mean": 100.0, "std": 80.0},
    {"name": "died", "classes": ["no", "yes"]},
    {"name": "arm", "classes": ["old", "new"]},
]
SIZES = {"east": 60, "north": 80, "west": 70}


def patients(site: str) -> list[Patient]:
    """Those of one hospital: whole days, so that some lie on the end of a bin; the new arm lives longer."""
    rng = np.random.default_rng(sorted(SIZES).index(site))
    found = []
    for _ in range(SIZES[site]):
        arm, age, stage = int(rng.integers(2)), rng.normal(), rng.normal()
        dies = rng.exponential(120 * np.exp(0.6 * arm - 0.7 * age + 0.2 * stage))
        lost = rng.uniform(20, 600)
        found.append((float(np.ceil(min(dies, lost))), int(dies <= lost), ("old", "new")[arm], age, stage))
    return found


def hospitals(root: Path, policies: Mapping[str, SitePolicy] | None = None) -> Hospitals:
    """Their tables; every third patient has an earlier row too, and one in each hospital has no time."""
    cohorts = {}
    for site in SIZES:
        lines = ["PatientID,days,died,arm,age,stage"]
        for at, (days, died, arm, age, stage) in enumerate(patients(site)):
            row = f"{('no', 'yes')[died]},{arm},{float(age)!r},{float(stage)!r}"
            if at % 3 == 0:
                lines.append(f"p{at},{days / 2:g},no,{arm},{float(age)!r},{float(stage)!r}")
            lines.append(f"p{at},{days:g},{row}")
        lines.append("lost,,no,old,0.5,0.5")
        (root / site).mkdir(parents=True)
        path = root / site / "table.csv"
        path.write_text("\n".join(lines) + "\n")
        cohorts[site] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts, policies=dict(policies or {}))


def study(*stages: dict[str, Any], **more: Any) -> Study:
    """A study that follows patients; the columns' scale is public."""
    scale = {name: {"mean": 0.0, "std": 1.0} for name in ("age", "stage")}
    base = {
        "name": "follow",
        "seed": 1,
        "tasks": TASKS,
        "input": {"kind": "table", "numeric": ["age", "stage"], "standardise": scale},
        "model": {"backbone": "table_linear", "weights": None},
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
        "plan": list(stages) or [COUNT],
        "evaluate": {"every": 0},
    }
    return parse_study(base | more, "test")


def by_hand(arm: str) -> list[tuple[int, int, float, float | None]]:
    """At each end: at risk, events, Kaplan-Meier's estimate and Greenwood's error, from all patients' lines."""
    own = [(days, died) for site in SIZES for days, died, its, _, _ in patients(site) if its == arm]
    rounded = [(next((end for end in ENDS if days <= end), 1e9), died) for days, died in own]
    left, spread, found = 1.0, 0.0, []
    for end in ENDS:
        n = sum(1 for time, _ in rounded if time >= end)
        d = sum(died for time, died in rounded if time == end)
        if n == 0:
            break
        left *= 1 - d / n
        spread += d / (n * (n - d)) if n > d else float("inf")
        found.append((n, d, left, left * spread**0.5 if 0 < left < 1 else None))
    return found


@functools.cache
def cox_by_hand(strata: bool) -> tuple[list[float], list[float]]:
    """Coefficients and errors of Cox's regression on age and stage: event by event, over all patients' lines."""
    lines = [row for site in SIZES for row in patients(site)]
    x = np.array([row[3:] for row in lines])
    ends = np.array([next((end for end in ENDS if row[0] <= end), 1e9) for row in lines])
    arms = np.array([row[2] if strata else "" for row in lines])
    came = [at for at, row in enumerate(lines) if row[1] and ends[at] <= ENDS[-1]]
    beta, curvature = np.zeros(2), np.eye(2)
    for _ in range(12):
        slope, curvature, weights = np.zeros(2), np.zeros((2, 2)), np.exp(x @ beta)
        for at in came:
            risk = (ends >= ends[at]) & (arms == arms[at])
            w, own = weights[risk] / weights[risk].sum(), x[risk]
            slope += x[at] - w @ own
            curvature += (own.T * w) @ own - np.outer(w @ own, w @ own)
        beta = beta + np.linalg.solve(curvature, slope)
    return beta.tolist(), np.sqrt(np.diag(np.linalg.inv(curvature))).tolist()
