"""A workload as a user types it, `fedgraft simulate`, beside a hand-written loop: whole processes, in turns.

    python -m benchmarks.typed heavy --runs 5 [--sites 8] [--rounds 5]

Both train the same epochs of the same images from the same entries, and end with the same model, which is shown before
anything is timed. The command reads its cohorts from a cache, evaluates each site's test images at the end, and writes
the model, history, egress log and report; the loop reads arrays, and evaluates as many images at the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.contestants import Average, Data, evaluate, local, make
from benchmarks.engine import environment
from benchmarks.measure import Measured, measure
from benchmarks.workloads import CENTRAL, WORKLOADS, Workload, arrays, dump, names, study, undump, workload, write
from fedgraft.common.base.files import load_tensors

_GAP = 1e-3
"""Of an entry's length: the order of sums differs, and rounds let that grow."""


def loop(load: Workload, folder: Path, out: Path) -> None:
    """Train, evaluate once, and keep the model."""
    asked = study(load)
    model = make(asked)
    sites = [Data(load, folder, name) for name in names(load)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for number in range(1, load.rounds + 1):
        average = Average()
        for site in sites:
            average.add(*local(model, state, site, asked, number))
        state = average.result(state)
    central = Data(load, folder, CENTRAL)
    tested = slice(0, load.sites * (load.train // 4))
    evaluate(model, state, central.images[tested], central.labels[tested])
    np.savez(out, **{key: value.numpy() for key, value in state.items()})


def typed(load: Workload, folder: Path, out: Path) -> list[str]:
    """The command, whose study and scenario are written first."""
    cohorts = write(load, folder).cohorts
    sites = [{"name": name, "cohort": {"kind": "images", "root": str(cohorts[name].root)}} for name in names(load)]
    scenario, asked = folder / "scenario.yaml", folder / "study.yaml"
    scenario.write_text(yaml.safe_dump({"name": "bench", "sites": sites}))
    asked.write_text(study(load).to_yaml())
    command = [sys.executable, "-m", "fedgraft", "simulate", str(asked), "--scenario", str(scenario)]
    return [*command, "--out", str(out)]


def _agree(loops: Path, run: Path) -> float:
    """The largest gap between the two models, as a share of the entry's length."""
    ours, theirs = load_tensors(run / "model.safetensors"), np.load(loops)
    if ours.keys() != set(theirs):
        sys.exit("the command does not do the same work: its model has other entries")
    gaps = (
        np.linalg.norm(np.subtract(ours[key], theirs[key], dtype=np.float64))
        / max(np.linalg.norm(theirs[key].astype(np.float64)), 1e-9)
        for key in ours
    )
    return float(max(gaps))


def main() -> None:
    """Print medians, and ratios to the loop of the same turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=[name for name in WORKLOADS if name != "light"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sites", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--loop", nargs=3, metavar=("WORKLOAD", "FOLDER", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.loop:
        path, folder, out = map(Path, asked.loop)
        loop(undump(path), folder, out)
        return
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        folder = Path(temporary)
        load = workload(asked.workload, asked.rounds, asked.sites)
        arrays(load, folder)
        dump(load, folder / "load.json")
        places = [str(folder / "load.json"), str(folder), str(folder / "loop.npz")]
        found: dict[str, list[Measured]] = {"loop": [], "simulate": []}
        for turn in range(asked.runs + 1):
            commands = {
                "loop": [sys.executable, "-m", "benchmarks.typed", load.name, "--loop", *places],
                "simulate": typed(load, folder, folder / f"run{turn}"),
            }
            for name, command in commands.items():
                took = measure(command, environment(folder))
                if turn:  # the first shows that both do the same, and fills the cache of cohorts
                    found[name].append(took)
            if not turn:
                gap = _agree(folder / "loop.npz", folder / "run0")
                print(f"{load}; models differ by {gap:.1e} of an entry's length at the most")
                if gap > _GAP:
                    sys.exit("the command does not do the same work")
        _table(found)


def _table(found: dict[str, list[Measured]]) -> None:
    for name, measured in found.items():
        line = f"{name:10}"
        for what in ("wall_s", "cpu_s", "peak_mb"):
            line += f"  {what} {statistics.median(getattr(one, what) for one in measured):8.1f}"
            ratios = [
                getattr(one, what) / getattr(base, what) for one, base in zip(measured, found["loop"], strict=True)
            ]
            line += f" ({statistics.median(ratios):.3f}; {min(ratios):.3f} to {max(ratios):.3f})"
        print(line)
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
