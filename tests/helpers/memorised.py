"""Two hospitals whose labels follow from nothing, so that whoever fits them has learnt patients by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals

COLUMNS = tuple(f"c{number}" for number in range(1000))
PRIVATE = {"noise_multiplier": 20.0, "max_grad_norm": 1.0, "sample_rate": 0.5, "unit": "patient"}


def hospitals(root: Path, patients: int = 160) -> Hospitals:
    """Of each patient 1,000 random numbers, and a label by a coin."""
    cohorts = {}
    for number, name in enumerate(("east", "north")):
        rng = np.random.default_rng(number)
        values, labels = rng.normal(size=(patients, len(COLUMNS))), rng.integers(0, 2, patients)
        rows = [
            f"{name}-{at},{'ab'[label]}," + ",".join(f"{value:.2f}" for value in row)
            for at, (row, label) in enumerate(zip(values, labels, strict=True))
        ]
        path = root / name / "table.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join([",".join(("PatientID", "cls", *COLUMNS)), *rows]) + "\n")
        cohorts[name] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts)


def study(*, private: bool) -> Study:
    """Enough steps of a linear model to learn all training patients by heart; or a few with noise."""
    work: dict[str, Any] = {"kind": "gradient", "train": "heads", "optimiser": "sgd", "momentum": 0, "batch_size": 1000}
    work |= {"steps": 10, "lr": 0.01, "private": PRIVATE} if private else {"steps": 40, "lr": 0.5}
    scale = {"standardise": {name: {"mean": 0.0, "std": 1.0} for name in COLUMNS}}
    return parse_study(
        {
            "name": "private" if private else "by_heart",
            "seed": 3,
            "tasks": [{"name": "cls", "classes": ["a", "b"]}],
            "input": {"kind": "table", "numeric": list(COLUMNS), **scale},
            "model": {"backbone": "table_linear", "weights": None},
            "split": {"train": 0.5, "val": 0.0, "test": 0.5},
            "plan": [
                {
                    "name": "train",
                    "where": "labelled",
                    "local": work,
                    "share": "heads",
                    "aggregate": {"kind": "mean"},
                    "rounds": 2 if private else 4,
                }
            ],
            "evaluate": {"every": 0},
        },
        "test",
    )
