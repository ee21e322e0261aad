"""How long it takes to write 1,000 phantom images of 64 x 64 pixels as DICOM, with masks and tables, on one core.

Run it from the repository: OMP_NUM_THREADS=1 python -m benchmarks.phantoms
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scanners import Syntax
from fedgraft.simulations.phantoms.scenario import Scenario

IMAGES, RUNS = 1000, 3
SYNTAXES: tuple[Syntax, ...] = ("explicit_little", "rle", "jpeg2000")


def seconds(syntax: Syntax) -> float:
    """Seconds for one hospital, from the scenario to the finished folder."""
    phantom = {"patients": IMAGES, "images_per_patient": [1, 1], "scanner": {"syntax": syntax}}
    scenario = Scenario.model_validate({"name": "speed", "sites": [{"name": "one", "phantom": phantom}]})
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        make_hospitals(scenario, Path(folder) / "hospitals")
        return time.perf_counter() - start


def main() -> None:
    """Print the median of three runs for each way of storing pixels."""
    for syntax in SYNTAXES:
        runs = sorted(seconds(syntax) for _ in range(RUNS))
        print(f"{syntax}: {IMAGES} images in {statistics.median(runs):.2f} s ({runs[0]:.2f} to {runs[-1]:.2f})")


if __name__ == "__main__":
    main()
