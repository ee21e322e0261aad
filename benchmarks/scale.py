"""What a simulated site costs where there are many: 64 and 1,000 sites in one process, CPU time and peak memory.

    python -m benchmarks.scale --runs 3

The sites are those of the workload `light`, without its central images, which cost a round the same whatever the
number of sites. Each number of sites runs for two lengths, so that start and stop drop out of the CPU time.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bench_cnn import register
from benchmarks.engine import environment
from benchmarks.measure import measure
from benchmarks.workloads import CENTRAL, WORKLOADS, study, write
from fedgraft.simulations.engines.run import Engine, Hospitals, simulate

LENGTHS = {64: (5, 85), 1000: (3, 13)}
"""By number of sites the rounds of the short and of the long run."""


def one(sites: int, rounds: int, folder: Path) -> None:
    """One simulation, report included."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of a thousand sites each says that its files name no patients
    register()
    load = replace(WORKLOADS["light"], sites=sites, rounds=rounds)
    cohorts = {name: spec for name, spec in write(load, folder).cohorts.items() if name != CENTRAL}
    out = Path(tempfile.mkdtemp(prefix="run-", dir=folder)) / "run"
    simulate(study(load), Hospitals(cohorts), out, Engine(threads=1))
    shutil.rmtree(out.parent)


def main() -> None:
    """Measure each number of sites in turn, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("SITES", "ROUNDS", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(int(asked.one[0]), int(asked.one[1]), Path(asked.one[2]))
        return
    with tempfile.TemporaryDirectory(prefix="fedgraft-scale-") as temporary:
        each: dict[int, list[float]] = {sites: [] for sites in LENGTHS}
        for _ in range(asked.runs):
            for sites, lengths in LENGTHS.items():
                command = [sys.executable, "-m", "benchmarks.scale", "--one", str(sites)]
                short, long = (measure([*command, str(n), temporary], environment(Path(temporary))) for n in lengths)
                each[sites].append((long.cpu_s - short.cpu_s) / (lengths[1] - lengths[0]) / sites * 1000)
                print(
                    f"{sites:5} sites  {each[sites][-1]:.2f} ms CPU a site and round, start and stop "
                    f"{short.cpu_s:.1f} s, peak memory {long.peak_mb:.0f} MB, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        few, many = (each[sites] for sites in LENGTHS)
        ratios = [b / a for a, b in zip(few, many, strict=True)]
        print(f"a site and round of many over one of few: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
