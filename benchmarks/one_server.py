"""How many sites one server takes: a 45 MB model (resnet18), and sites that do no work (`light_sites.py`).

    python -m benchmarks.one_server --sites 50

All of it as deployed: TLS on loopback, the gate, Flower behind it, a run. Prints the CPU seconds that a site and round
cost the server's processes, the most memory that they held, the most room that the server's folder took, each with the
seconds of the rounds, and who was missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.deployed import METHOD, STUDY, ServerWatch
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.study import parse_study
from fedgraft.simulations.engines.run import Hospitals
from helpers.federation import Federation


def main() -> None:
    """Found a federation, run the study, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=8, help="sites that read and send at the same time")
    asked = parser.parse_args()
    names = [f"site{number:03d}" for number in range(asked.sites)]
    with tempfile.TemporaryDirectory(prefix="fedgraft-one-server-") as temporary:
        root = Path(temporary)
        study = parse_study(STUDY | {"method": METHOD | {"rounds": asked.rounds}}, "the benchmark")
        federation = Federation(root / "federation", _hospitals(root / "images", names), names)
        try:
            federation.start_server()
            federation.admit(study, *names)
            homes = [str(federation.site(name)) for name in names]
            words = [sys.executable, "-m", "benchmarks.light_sites", str(asked.at_once), *homes]
            federation.spawn("sites", words, Path.cwd())
            watch = ServerWatch(federation, asked.rounds, ["sites"])
            watch.start()
            done = federation.run(study, fails=True)
            if done.returncode:
                sys.exit(done.stdout + done.stderr + federation.output("sites")[-2000:])
            watch.join()
        finally:
            federation.end()
        rows = federation.history()
        facts = {
            "sites": [len(row["sites_aggregated"]) for row in rows],
            "missing": [row["missing"] for row in rows if row["missing"]],
            "mb_per_site": round(rows[1]["bytes_up"] / asked.sites / 1e6, 1),
            "rounds_s": [row["seconds"] for row in rows],
            "cpu_s_a_round": watch.figures(asked.sites),
            "peak_mb": watch.peak_mb,
            "load": round(os.getloadavg()[0], 1),
        }
        print(json.dumps(facts))


def _hospitals(root: Path, names: list[str]) -> Hospitals:
    """All over one image, at which nobody looks."""
    root.mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "one.png")
    return Hospitals({name: CohortSpec(kind="images", root=root) for name in names})


if __name__ == "__main__":
    main()
