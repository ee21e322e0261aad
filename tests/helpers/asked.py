"""A hospital with a table of patients that a test writes, and studies about it, to be asked what it could supply."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.study.study import Study, parse_study
from helpers.played import PlayedSite

BANDS = SitePolicy(agreement="bands", allow_non_dp=True, min_patients=1)
PRIVATE = [
    {
        "name": "train",
        "local": {
            "kind": "gradient",
            "train": "heads",
            "fixed_norm_stats": True,
            "steps": 5,
            "batch_size": 64,
            "private": {"noise_multiplier": 1.5, "max_grad_norm": 1.0, "sample_rate": 0.2},
        },
        "share": "heads",
        "aggregate": {"kind": "mean"},
        "rounds": 2,
    }
]
PLAIN = [
    {
        "name": "train",
        "local": {"kind": "gradient", "train": "heads", "fixed_norm_stats": True, "epochs": 1, "batch_size": 8},
        "share": "heads",
        "aggregate": {"kind": "mean"},
        "rounds": 2,
    }
]
SCALE = {"mean": 50.0, "std": 15.0}


def a_study(*classes: str, plan: list[dict[str, Any]] = PLAIN, task: str = "cls", **changes: Any) -> Study:
    base = {
        "name": "asked",
        "seed": 1,
        "tasks": [{"name": task, "classes": list(classes or ("benign", "malignant"))}],
        "input": {"kind": "table", "numeric": ["age", "dose"], "standardise": {"age": SCALE, "dose": SCALE}},
        "model": {"backbone": "table_linear", "weights": None},
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
        "plan": plan,
        "evaluate": {"every": 0},
    }
    return parse_study(base | changes, "test")


Patient = tuple[str, str]
"""A patient and the word of a row about them."""


def patients(**words: int) -> list[Patient]:
    """So many patients with each word; those of one word are numbered from 0."""
    return [(f"{word}{number}", word) for word, count in words.items() for number in range(count)]


def write(path: Path, rows: Iterable[Patient], dose: str = "50") -> None:
    """A table with these rows; ages go from 30 to 69."""
    lines = [f"{who},{word},{30 + at % 40},{dose},{word}" for at, (who, word) in enumerate(rows)]
    path.write_text("\n".join(["PatientID,finding,age,dose,secret", *lines]) + "\n")


def a_site(folder: Path, rows: Iterable[Patient], policy: SitePolicy = BANDS, **cohort: Any) -> PlayedSite:
    """A hospital in the new folder `folder`, whose file names the column of task `cls`."""
    folder.mkdir()
    write(folder / "table.csv", rows)
    own = {"patient_column": "PatientID", "label_columns": {"cls": "finding"}} | cohort
    return PlayedSite(folder / "home", CohortSpec(kind="table", root=folder / "table.csv", **own), policy)
