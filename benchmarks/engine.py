"""fedgraft's engines against hand-written PyTorch loops: whole processes, the same work, in one run.

    python -m benchmarks.engine heavy --runs 3
    python -m benchmarks.engine light --runs 3
    python -m benchmarks.engine payload --runs 3

First the loss curves are proven equal, then every contestant runs in turn, and medians and ratios are printed. One
torch thread per process. `light` runs 5 and 45 rounds, so that start and stop drop out of its CPU time per visit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bench_cnn import register
from benchmarks.measure import Measured, measure
from benchmarks.workloads import WORKLOADS, Workload, arrays, dump, workload, write

PAIRS = {"inprocess": "loop", "pool": "loop2"}
_LOSS_TOLERANCE = {"heavy": 2e-2, "light": 1e-5, "payload": 2e-2}
"""Later rounds of a deep net drift with the order of summation; the first must agree to 1e-5 in any case."""


def environment(home: Path) -> dict[str, str]:
    """One thread, and a home of its own."""
    return os.environ | {"OMP_NUM_THREADS": "1", "FEDGRAFT_HOME": str(home)}


def command(name: str, load: Workload, folder: Path) -> list[str]:
    """How a contestant is started."""
    path = folder / f"{load.name}-{load.sites}-{load.rounds}.json"
    dump(load, path)
    return [sys.executable, "-m", "benchmarks.contestants", name, str(path), str(folder)]


def prove_equal(load: Workload, names: list[str], folder: Path) -> None:
    """Losses after each round of all contestants; SystemExit if they disagree."""
    curves = {}
    for name in names:
        done = subprocess.run(command(name, load, folder), env=environment(folder), stdout=subprocess.PIPE, check=True)
        curves[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name:10} loss {' '.join(f'{loss:.6f}' for loss in curves[name])}")
    base = curves[names[0]]
    for name, curve in curves.items():
        gaps = [abs(a - b) / max(abs(b), 1e-6) for a, b in zip(curve, base, strict=True)]
        if max(gaps[:2]) > 1e-5 or max(gaps) > _LOSS_TOLERANCE[load.name]:
            sys.exit(f"{name} does not do the same work: relative gaps {gaps}")


def run(load: Workload, names: list[str], runs: int, folder: Path) -> dict[str, list[Measured]]:
    """Every contestant in turn, `runs` times."""
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            found[name].append(measure([*command(name, load, folder)], environment(folder)))
    return found


def median(found: list[Measured], what: str) -> float:
    """Median of one figure."""
    return statistics.median(getattr(one, what) for one in found)


def table(found: dict[str, list[Measured]]) -> None:
    """Medians, and ratios to the loop of the same number of processes, pair by pair."""
    for name, measured in found.items():
        line = f"{name:10}" + "".join(
            f"  {what} {median(measured, what):8.1f}" for what in ("wall_s", "cpu_s", "peak_mb")
        )
        if name in PAIRS and PAIRS[name] in found:
            pairs = list(zip(measured, found[PAIRS[name]], strict=True))
            for what in ("wall_s", "cpu_s"):
                ratios = [getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs]
                line += f"  {what[:-2]} ratio {statistics.median(ratios):.3f}"
        print(line)


def main() -> None:
    """Run one workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sites", type=int, help="another number of sites (payload: memory at 2 and 64)")
    parser.add_argument("--rounds", type=int, help="another number of rounds")
    parser.add_argument("--only", nargs="+", choices=[*PAIRS, *PAIRS.values()], help="only these contestants")
    parser.add_argument("--agree", action="store_true", help="show that all do the same work, and time nothing")
    asked = parser.parse_args()
    register()
    names = asked.only or ["loop", "inprocess", "loop2", "pool"]
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        folder = Path(temporary)
        load = workload(asked.workload, asked.rounds, asked.sites)
        write(load, folder)
        arrays(load, folder)
        print(f"{load}; load average {os.getloadavg()[0]:.2f}")
        prove_equal(load, names, folder)
        if asked.agree:
            return
        found = run(load, names, asked.runs, folder)
        table(found)
        if load.name == "light":
            long = run(workload("light", 45, asked.sites), names, asked.runs, folder)
            visits = 40 * load.sites
            for name in names:
                pairs = zip(long[name], found[name], strict=True)
                each = statistics.median((more.cpu_s - less.cpu_s) / visits * 1000 for more, less in pairs)
                print(f"{name:10}  {each:.2f} ms CPU a site and round")


if __name__ == "__main__":
    main()
