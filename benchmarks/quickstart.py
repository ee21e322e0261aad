"""Wall time and peak memory of the quickstart as a newcomer runs it, and CPU time of what is typed before it.

Run it from the repository: python -m benchmarks.quickstart --runs 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Measured, measure

FEDGRAFT = [sys.executable, "-m", "fedgraft"]
LIGHT = {
    "import fedgraft": [sys.executable, "-c", "import fedgraft"],
    "fedgraft --help": [*FEDGRAFT, "--help"],
    "fedgraft study check quickstart": [*FEDGRAFT, "study", "check", "quickstart"],
    "fedgraft study explain quickstart": [*FEDGRAFT, "study", "explain", "quickstart"],
}
"""What should be there at once. The first check of a study in a home loads torch, the next ones need not."""


def quickstart() -> Measured:
    """One run in an empty home."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        command = [*FEDGRAFT, "simulate", "quickstart", "--out", str(Path(folder) / "run")]
        return measure(command, os.environ | {"FEDGRAFT_HOME": folder})


def light(command: list[str], runs: int) -> tuple[float, float]:
    """CPU seconds of the first time in an empty home, and the median of `runs` times more."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        first, *more = (measure(command, os.environ | {"FEDGRAFT_HOME": folder}).cpu_s for _ in range(runs + 1))
        return first, statistics.median(more)


def main() -> None:
    """Print medians over the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args().runs
    for name, command in LIGHT.items():
        first, again = light(command, asked)
        print(f"{name} cpu_s {first:.2f}, again {again:.2f}")
    runs = [quickstart() for _ in range(asked)]
    for what in ("wall_s", "cpu_s", "peak_mb"):
        values = sorted(getattr(run, what) for run in runs)
        print(f"quickstart {what} {statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})")


if __name__ == "__main__":
    main()
