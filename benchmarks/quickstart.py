"""Wall time and peak memory of the quickstart as a newcomer runs it, and CPU time of what is typed before it.

Run it from the repository: python -m benchmarks.quickstart --runs 3 [--only commands tiny quickstart]

`tiny` is two rounds of two sites with forty small images each, from folders, report included, beside a process that
imports torch and no more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.measure import Measured, measure

FEDGRAFT = [sys.executable, "-m", "fedgraft"]
LIGHT = {
    "import fedgraft": [sys.executable, "-c", "import fedgraft"],
    "fedgraft --help": [*FEDGRAFT, "--help"],
    "fedgraft study check quickstart": [*FEDGRAFT, "study", "check", "quickstart"],
    "fedgraft study explain quickstart": [*FEDGRAFT, "study", "explain", "quickstart"],
}
"""What should be there at once. The first check of a study in a home loads torch, the next ones need not."""


PARTS = ("commands", "tiny", "quickstart")


def quickstart() -> Measured:
    """One run in an empty home."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        command = [*FEDGRAFT, "simulate", "quickstart", "--out", str(Path(folder) / "run")]
        return measure(command, os.environ | {"FEDGRAFT_HOME": folder})


def tiny(folder: Path) -> Measured:
    """One run of the tiny study in a home that knows its images."""
    study = folder / "tiny.yaml"
    if not study.is_file():
        _write_tiny(folder, study)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [*FEDGRAFT, "simulate", str(study), "--out", str(Path(out) / "run")]
        return measure(command, os.environ | {"FEDGRAFT_HOME": str(folder / "home")})


def _write_tiny(folder: Path, study: Path) -> None:
    draw = np.random.default_rng(0)
    for site, (label, level) in product(("north", "south"), (("dark", 60), ("light", 190))):
        place = folder / site / label
        place.mkdir(parents=True)
        for index in range(20):
            pixels = draw.integers(0, 40, (32, 32)) + level
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    sites = [{"name": name, "cohort": {"kind": "images", "root": str(folder / name)}} for name in ("north", "south")]
    (folder / "two.yaml").write_text(yaml.safe_dump({"name": "two", "sites": sites}))
    asked = {
        "name": "tiny",
        "scenario": "two.yaml",
        "tasks": [{"name": "cls", "classes": ["dark", "light"]}],
        "input": {"kind": "image", "size": 32},
        "model": {"backbone": "slim_resnet", "weights": None},
        "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
    }
    study.write_text(yaml.safe_dump(asked))


def light(command: list[str], runs: int) -> tuple[float, float]:
    """CPU seconds of the first time in an empty home, and the median of `runs` times more."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        first, *more = (measure(command, os.environ | {"FEDGRAFT_HOME": folder}).cpu_s for _ in range(runs + 1))
        return first, statistics.median(more)


def main() -> None:
    """Print medians over the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    if "commands" in asked.only:
        for name, command in LIGHT.items():
            first, again = light(command, asked.runs)
            print(f"{name} cpu_s {first:.2f}, again {again:.2f}")
    if "tiny" in asked.only:
        with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
            tiny(Path(folder))
            bare = [measure([sys.executable, "-c", "import torch"], dict(os.environ)) for _ in range(asked.runs)]
            _print("import torch", bare)
            _print("tiny", [tiny(Path(folder)) for _ in range(asked.runs)])
    if "quickstart" in asked.only:
        _print("quickstart", [quickstart() for _ in range(asked.runs)])
    print(f"load average {os.getloadavg()[0]:.1f}")


def _print(name: str, runs: list[Measured]) -> None:
    for what in ("wall_s", "cpu_s", "peak_mb"):
        values = sorted(getattr(run, what) for run in runs)
        print(f"{name} {what} {statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})")


if __name__ == "__main__":
    main()
