"""The patients of generated hospitals: who they are, what they have, and what the hospital's table says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.seeds import derive
from fedgraft.simulations.phantoms.phantoms import (
    FINDINGS,
    ORGANS,
    Finding,
    Modality,
    Phantom,
    PhantomFindings,
    draw_phantoms,
)
from fedgraft.simulations.phantoms.scenario import CANCER_CASES, PhantomSite, Scenario

_GOLDEN = (5**0.5 - 1) / 2
_RISE: dict[Finding, tuple[float, float, float]] = {
    "none": (0.0, 0.0, 0.0),
    "smooth": (0.3, 0.4, 0.1),
    "spiculated": (0.5, 1.8, 1.2),
    "ring": (1.8, 0.3, 0.4),
}
"""How far each of the laboratory columns rises with a finding, in deviations among the healthy."""

ROW = ("PatientID", "diagnosis", "size_mm", "organ", "age", "sex", "crp_mg_l", "marker_u_ml", "pack_years")
"""Columns of patients.csv. The last three follow the finding, so that a table alone can tell something."""


@dataclass(frozen=True)
class Patient:
    """A generated patient. `reported` is the label in the hospital's table: empty if missing, wrong if noisy."""

    id: str
    seed: int
    modality: Modality
    finding: Finding
    reported: str
    size_mm: float
    age: int
    sex: str
    laboratory: tuple[float, float, float]
    phantoms: tuple[Phantom, ...]

    @property
    def row(self) -> tuple[str | int | float, ...]:
        """Values of the columns `ROW`; what would tell the finding is empty where the label is."""
        size = f"{self.size_mm:.1f}" if self.reported else ""
        return (self.id, self.reported, size, ORGANS[self.modality], self.age, self.sex, *self.laboratory)


def draw_patient(spec: PhantomSite, site_seed: int, index: int) -> Patient:
    """Patient number `index` of a site; no other patient and no other site has any influence."""
    seed = derive(site_seed, "patient", index)
    rng = np.random.default_rng(seed)
    modality = spec.modality[index % len(spec.modality)]
    finding = _finding(spec, site_seed, index)
    reported = _reported(spec, finding, rng)
    age, sex = int(np.clip(rng.normal(60, 14), 18, 95)), str(rng.choice(("F", "M")))
    fewest, most = spec.images_per_patient
    count = int(rng.integers(fewest, most + 1))
    laboratory = _laboratory(finding, rng)
    half_mm = spec.scanner.field_mm / 2
    looks = PhantomFindings((spec.size_mm[0] / half_mm, spec.size_mm[1] / half_mm), spec.contrast)
    phantoms = tuple(draw_phantoms(modality, finding, looks, derive(seed, "phantom"), count))
    size_mm = phantoms[0].lesion.diameter * half_mm
    number = f"P{index + 1:04d}"
    return Patient(number, seed, modality, finding, reported, size_mm, age, sex, laboratory, phantoms)


def _finding(spec: PhantomSite, site_seed: int, index: int) -> Finding:
    """The finding by prevalence: steps of the golden ratio through [0, 1) fill it evenly for any number of patients.

    Independent draws would leave a site of 24 patients far from its prevalence. Patients of one modality are counted
    by themselves, so that each modality has it too.
    """
    turn, which = divmod(index, len(spec.modality))
    start = np.random.default_rng(derive(site_seed, "prevalence", which)).random()
    at = (start + turn * _GOLDEN) % 1
    total = 0.0
    for finding in FINDINGS:
        total += spec.prevalence.get(finding, 0.0)
        if at < total:
            return finding
    return next(finding for finding in reversed(FINDINGS) if spec.prevalence.get(finding))


def _reported(spec: PhantomSite, finding: Finding, rng: np.random.Generator) -> str:
    missing, wrong = rng.random(2)
    other = str(rng.choice([name for name in FINDINGS if name != finding]))
    if spec.unlabelled or missing < spec.missing_labels:
        return ""
    return other if wrong < spec.label_noise else finding


def _laboratory(finding: Finding, rng: np.random.Generator) -> tuple[float, float, float]:
    raised = rng.standard_normal(3) + _RISE[finding]
    crp, marker = np.exp([1.0 + 0.8 * raised[0], 2.5 + 0.6 * raised[1]])
    return round(float(crp), 1), round(float(marker), 1), round(max(0.0, 15.0 + 12.0 * float(raised[2])), 1)


@dataclass(frozen=True)
class CancerPart:
    """A site's part of the breast cancer table: `rows` of `values`, in the table's own order."""

    columns: tuple[str, ...]
    ids: tuple[str, ...]
    values: NDArray[np.float64]
    diagnoses: tuple[str, ...]


def cancer_parts(scenario: Scenario) -> dict[str, CancerPart]:
    """The part of every table site, by site name: disjoint, drawn as `TableSite` says."""
    from sklearn.datasets import load_breast_cancer  # takes a second, and few scenarios have tables

    table = load_breast_cancer()
    names = [str(name) for name in table.target_names]
    left = {
        name: _shuffled(scenario.seed, name, np.flatnonzero(table.target == names.index(name))) for name in CANCER_CASES
    }
    parts = {}
    for site in scenario.sites:
        if site.table is None:
            continue
        chosen: list[int] = []
        for diagnosis, count in site.table.cases.items():
            chosen += left[diagnosis][:count]
            left[diagnosis] = left[diagnosis][count:]
        chosen.sort()
        ids = tuple(f"P{row + 1:04d}" for row in chosen)
        diagnoses = tuple(names[table.target[row]] for row in chosen)
        parts[site.name] = CancerPart(tuple(map(str, table.feature_names)), ids, table.data[chosen], diagnoses)
    return parts


def _shuffled(seed: int, name: str, rows: NDArray[np.intp]) -> list[int]:
    order = np.random.default_rng(derive(seed, "breast_cancer", name)).permutation(len(rows))
    return [int(rows[index]) for index in order]
