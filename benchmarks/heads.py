"""What an exchange costs where only heads are trained, on features that are kept: processor time of a site and round.

    python -m benchmarks.heads --runs 3 resnet18 densenet121

Four sites of 64 training images in one process; of 55 rounds and of 5, so that start, features and report drop out.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.workloads import CENTRAL, Workload, write
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Engine, Hospitals, simulate

SITES, SHORT, LONG = 4, 5, 55


def study(backbone: str, rounds: int) -> Study:
    """A head that is trained for one epoch a round on a frozen backbone."""
    return parse_study(
        {
            "name": "bench-heads",
            "tasks": [{"name": "cls", "classes": ["dark", "light"]}],
            "input": {"kind": "image", "size": 32, "channels": 3, "normalise": "fixed"},
            "split": {"train": 0.8, "val": 0, "test": 0.2},
            "model": {"backbone": backbone, "weights": None},
            "method": {
                "name": "linear_probe",
                "rounds": rounds,
                "local": {"epochs": 1, "batch_size": 32, "optimiser": "sgd", "lr": 0.01},
            },
            "evaluate": {"every": 0},
        },
        "bench-heads",
    )


def cpu_s(backbone: str, rounds: int, hospitals: Hospitals) -> float:
    """Seconds of processor time of one simulation, report included."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        before = time.process_time()
        simulate(study(backbone, rounds), hospitals, Path(folder) / "run", Engine(name="inprocess", threads=1))
        return time.process_time() - before


def main() -> None:
    """Print a line for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        os.environ["FEDGRAFT_HOME"] = str(Path(folder) / "home")
        load = Workload("heads", sites=SITES, train=64, size=32, backbone="")
        cohorts = {name: spec for name, spec in write(load, Path(folder)).cohorts.items() if name != CENTRAL}
        for backbone in asked.backbones:
            cpu_s(backbone, 1, Hospitals(cohorts))  # what is imported, and decoded, on first use
            took = [
                cpu_s(backbone, LONG, Hospitals(cohorts)) - cpu_s(backbone, SHORT, Hospitals(cohorts))
                for _ in range(asked.runs)
            ]
            each = [1000 * seconds / (LONG - SHORT) / SITES for seconds in took]
            spread = f"({min(each):.1f} to {max(each):.1f})"
            print(f"{backbone:12} {statistics.median(each):5.1f} ms a site and round {spread}", flush=True)


if __name__ == "__main__":
    main()
