"""A private head from one exchange of noised sums, against 20 rounds of private gradients: the same sites and budget.

    python -m benchmarks.one_exchange --runs 3

Four phantom X-ray hospitals of 1,000 training patients each, an image a patient, and a frozen backbone trained on
phantom CT and MR. Splits are the same in all runs; what differs from run to run is the noise. Printed is the macro
AUROC on the test split: mean over the runs, and its least and largest value.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from fedgraft.common.base.files import read_json
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Engine, Hospitals, simulate
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario

PATIENTS, TRAIN = 1400, 5 / 7
EPSILONS = (None, 8.0, 3.0, 1.0)
HEAD = {"steps": 5, "batch_size": 250, "optimiser": "adamw", "lr": 0.02, "schedule": "cosine"}


def scenario(sites: int = 4) -> Scenario:
    """The first hospitals of xray5, all of one size, with all labels."""
    content = load_scenario("xray5").model_dump(mode="json")
    content["sites"] = content["sites"][:sites]
    for site in content["sites"]:
        site["phantom"] |= {"patients": PATIENTS, "images_per_patient": [1, 1], "missing_labels": 0.0}
    return Scenario.model_validate(content | {"name": "even"})


def study(method: str, epsilon: float | None, **changes: Any) -> Study:
    """A closed-form head, or 20 rounds of a trained one."""
    if method == "gradient":
        private = {"private": {"epsilon": epsilon, "sample_rate": 0.25}} if epsilon else {}
        chosen: dict[str, Any] = {"name": "linear_probe", "rounds": 20, "local": HEAD | private}
    else:
        chosen = {"name": f"{method}_probe"} | ({"sums": {"epsilon": epsilon} | changes} if epsilon else {})
    return parse_study(
        {
            "name": "one-exchange",
            "tasks": [{"name": "cls", "classes": ["none", "smooth", "spiculated", "ring"]}],
            "input": {"kind": "image", "size": 64, "channels": 1, "normalise": "zscore"},
            "split": {"train": TRAIN, "val": 0, "test": 1 - TRAIN},
            "model": {"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"},
            "method": chosen,
            "evaluate": {"every": 0},
        },
        "one-exchange",
    )


def auroc(asked: Study, hospitals: Hospitals, out: Path) -> float:
    """The macro AUROC at the end of a run."""
    run = simulate(asked, hospitals, out, Engine())
    return float(read_json(run / "result.json")["metrics"]["cls"]["macro"]["auroc"])


def main() -> None:
    """Print a line for each method and epsilon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["ridge", "ncm", "lda", "gradient"])
    parser.add_argument("--clip", type=float, default=1.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        os.environ["FEDGRAFT_HOME"] = temporary
        hospitals = Hospitals(make_hospitals(scenario(), Path(temporary) / "hospitals"))
        for epsilon in EPSILONS:
            for method in asked.methods:
                changes = {} if method == "gradient" else {"max_grad_norm": asked.clip}
                found = [
                    auroc(study(method, epsilon, **changes), hospitals, Path(temporary) / f"{method}-{epsilon}-{run}")
                    for run in range(asked.runs if epsilon else 1)
                ]
                spread = f"({min(found):.3f} to {max(found):.3f})"
                print(f"epsilon {epsilon or 'none':>4}  {method:8} {statistics.mean(found):.3f} {spread}", flush=True)


if __name__ == "__main__":
    main()
