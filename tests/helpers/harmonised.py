"""Three hospitals whose analysers differ, with patients of other ages, and ComBat as the paper has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals

Floats = NDArray[np.float64]
SIZES = {"east": 80, "north": 150, "west": 100}
ASSAYS = ("one", "two", "three", "four")
AGE_SLOPE = (0.1, -0.2, 0.0, 0.15)
INPUT: dict[str, Any] = {
    "kind": "table",
    "numeric": ["one", "age", "two", "three", "four"],
    "categorical": {"sex": ["f", "m"]},
}
HARMONISED = INPUT | {"harmonise": {"covariates": ["age", "sex"]}}


def hospitals(root: Path, policies: Mapping[str, SitePolicy] | None = None) -> Hospitals:
    """Each hospital's analyser adds to what it measures, and spreads it; who is ill has other values."""
    cohorts = {}
    for number, (site, count) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        age, man = rng.normal(50 + 8 * number, 9, count), rng.uniform(size=count) < 0.4 + 0.15 * number
        ill = rng.uniform(size=count) < 0.4 + 0.15 * number
        true = np.outer(age, AGE_SLOPE) + np.outer(man, [1, 0, 1, 0]) + np.outer(ill, [1.5, -1, 0, 1])
        x = true + [[2.0 * number, 3.0 - number, number**2, 0]] + rng.normal(size=(count, 4)) * (1 + 0.7 * number)
        rows = []
        for i in range(count):
            cells = [
                f"p{i}",
                "ab"[int(ill[i])],
                f"{age[i]:.3f}",
                "fm"[int(man[i])],
                *(f"{value:.5f}" for value in x[i]),
            ]
            if i % 17 == 3:
                cells[4 + i % 4] = ""
            if i % 29 == 5:
                cells[2 + i % 2] = ""
            rows.append(",".join(cells))
        (root / site).mkdir(parents=True)
        path = root / site / "table.csv"
        path.write_text("\n".join([f"PatientID,cls,age,sex,{','.join(ASSAYS)}", *rows]) + "\n")
        cohorts[site] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts, policies=dict(policies or {}))


def study(**more: Any) -> Study:
    """A ridge on harmonised columns."""
    base = {
        "name": "harmonised",
        "seed": 1,
        "tasks": [{"name": "cls", "classes": ["a", "b"]}],
        "input": HARMONISED,
        "model": {"backbone": "table_linear", "weights": None},
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
        "method": "ridge_probe",
        "evaluate": {"every": 0},
    }
    whole = base | more
    if "plan" in whole:
        del whole["method"]
    return parse_study(whole, "test")


def pooled_combat(data: list[tuple[Floats, Floats]]) -> list[Floats]:
    """Johnson, Li and Rabinovic 2007, section 3: least squares, moments of the priors, posteriors column by column.

    `data` are values (N, p) and covariates (N, q) by batch, NaN where one is missing; the values adjusted.
    """
    whole = np.vstack([y for y, _ in data])
    x = np.vstack([c for _, c in data])
    batch = np.repeat(np.arange(len(data)), [len(y) for y, _ in data])
    adjusted = np.full(whole.shape, np.nan)
    mean, spread, z = (np.full(whole.shape, np.nan) for _ in range(3))
    for g in range(whole.shape[1]):
        use = ~np.isnan(whole[:, g]) & ~np.isnan(x).any(1)
        design = np.column_stack([np.eye(len(data))[batch[use]], x[use]])
        fit, *_ = np.linalg.lstsq(design, whole[use, g], rcond=None)
        alpha = np.bincount(batch[use]) / use.sum() @ fit[: len(data)]
        mean[use, g] = alpha + x[use] @ fit[len(data) :]
        spread[:, g] = np.sqrt(np.mean((whole[use, g] - design @ fit) ** 2))
        z[use, g] = (whole[use, g] - mean[use, g]) / spread[use, g]
    for i in range(len(data)):
        own = z[batch == i]
        gammas, deltas = np.nanmean(own, 0), np.nanvar(own, 0, ddof=1)
        bar, tau2 = gammas.mean(), gammas.var(ddof=1)
        v, s2 = deltas.mean(), deltas.var(ddof=1)
        lam, theta = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
        for g in range(whole.shape[1]):
            cases = own[~np.isnan(own[:, g]), g]
            gamma, delta = gammas[g], deltas[g]
            for _ in range(500):
                gamma = (len(cases) * tau2 * gammas[g] + delta * bar) / (len(cases) * tau2 + delta)
                delta = (theta + 0.5 * ((cases - gamma) ** 2).sum()) / (len(cases) / 2 + lam - 1)
            rows = batch == i
            adjusted[rows, g] = spread[rows, g] / np.sqrt(delta) * (z[rows, g] - gamma) + mean[rows, g]
    return [adjusted[batch == i] for i in range(len(data))]
