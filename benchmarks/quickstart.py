"""Wall time and peak memory of the quickstart as a newcomer runs it, phantoms and report included.

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


def quickstart() -> Measured:
    """One run in an empty home."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        command = [sys.executable, "fedgraft.py", "simulate", "quickstart", "--out", str(Path(folder) / "run")]
        return measure(command, os.environ | {"FEDGRAFT_HOME": folder})


def main() -> None:
    """Print medians over the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = [quickstart() for _ in range(parser.parse_args().runs)]
    for what in ("wall_s", "cpu_s", "peak_mb"):
        values = sorted(getattr(run, what) for run in runs)
        print(f"quickstart {what} {statistics.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})")
    helps = sorted(measure([sys.executable, "fedgraft.py", "--help"], dict(os.environ)).wall_s for _ in runs)
    print(f"fedgraft --help wall_s {statistics.median(helps):.2f}")


if __name__ == "__main__":
    main()
