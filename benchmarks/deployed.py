"""What a round costs beyond the sites' own work, over TLS on loopback: a 45 MB model (resnet18) and three sites.

    python -m benchmarks.deployed

Prints, for every round but the first, its seconds and those of the slowest site's visit; the rest is overhead. And
the CPU seconds that a round costs each of the processes, of which a busy machine changes less.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.measure import pss  # noqa: E402
from fedgraft.client.data.spec import CohortSpec  # noqa: E402
from fedgraft.common.study.study import parse_study  # noqa: E402
from fedgraft.simulations.engines.run import Hospitals  # noqa: E402
from helpers.federation import Federation, children, line_of  # noqa: E402 - the test suite's own way to found a federation

SITES, ROUNDS = ("east", "north", "south"), 6
PROCESSES = {"server start": "gate", "operations.superlink": "superlink", "flwr-serverapp": "run"}
"""By words of their command lines the server's processes."""

METHOD = {"name": "fedavg", "rounds": ROUNDS, "local": {"steps": 1, "batch_size": 4, "lr": 0.001}}
STUDY = {
    "name": "overhead",
    "tasks": [{"name": "cls", "classes": ["dark", "light"]}],
    "input": {"kind": "image", "size": 32},
    "model": {"backbone": "resnet18", "weights": None},
    "evaluate": {"every": 0},
    "method": METHOD,
}


def main() -> None:
    """Found a federation, run the study, print the figures."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-deployed-") as temporary:
        root = Path(temporary)
        study = parse_study(STUDY, "the benchmark")
        federation = Federation(root / "federation", _hospitals(root / "images"), SITES)
        try:
            federation.start_server()
            federation.admit(study, *SITES)
            for name in SITES:
                federation.start_site(name)
            watch = ServerWatch(federation, ROUNDS, SITES)
            watch.start()
            federation.run(study)
            watch.join()
        finally:
            federation.end()
        rounds = [row["seconds"] for row in federation.history()][1:ROUNDS]
        visits = [_visits(federation.output(name)) for name in SITES]
        works = [max(times) for times in zip(*visits, strict=True)][1:ROUNDS]
        overhead = [round(total - work, 2) for total, work in zip(rounds, works, strict=True)]
        mb = federation.history()[1]["bytes_up"] / 3e6
        facts = {"mb_per_site": round(mb, 1), "rounds_s": rounds, "work_s": works, "overhead_s": overhead}
        print(json.dumps(facts | {"median_s": float(np.median(overhead)), "cpu_s_a_round": watch.figures(len(SITES))}))


class ServerWatch(threading.Thread):
    """Notes the CPU seconds of all processes at the end of the first round and of the last but one.

    On the way it looks at the memory of the server's processes and at the room that its folder takes. `processes` are
    those that play the sites.
    """

    def __init__(self, federation: Federation, rounds: int, processes: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self._federation = federation
        self._rounds = rounds
        self._sites = processes
        self._notes: list[dict[str, float]] = []
        self.peak_mb: dict[str, float] = dict.fromkeys(PROCESSES.values(), 0.0) | {"all": 0.0, "disk": 0.0}

    def run(self) -> None:
        """Wait for the rounds."""
        for rounds in (1, self._rounds - 1):
            while not (self._federation.root / "run").exists() or len(self._federation.history()) < rounds:
                self._look()
                time.sleep(0.2)
            self._notes.append(self._cpu())

    def figures(self, sites: int) -> dict[str, float]:
        """CPU seconds a round by process: the server's three, and the mean of those that play the sites."""
        first, last = self._notes
        each = {name: round((last[name] - first[name]) / (self._rounds - 2), 2) for name in last}
        server = round(sum(each[name] for name in PROCESSES.values()), 2)
        return each | {"server_a_site": round(server / sites, 2)}

    def _look(self) -> None:
        held = dict.fromkeys(self.peak_mb, 0.0)
        for process, name in self._server():
            held[name] += pss(process) / 1024
        held["all"] = sum(held.values())
        held["disk"] = sum(map(_bytes, self._federation.home.rglob("*"))) / 1e6
        self.peak_mb = {name: round(max(most, held[name])) for name, most in self.peak_mb.items()}

    def _cpu(self) -> dict[str, float]:
        found = dict.fromkeys(PROCESSES.values(), 0.0) | {"site": 0.0}
        started = self._federation.processes
        for process, name in self._server():
            found[name] += _seconds(process)
        for site in self._sites:
            family = [started[site].pid, *children(started[site].pid, "")]
            found["site"] += sum(map(_seconds, family)) / len(self._sites)
        return found

    def _server(self) -> Iterator[tuple[int, str]]:
        """The numbers of the server's processes, each with its name."""
        server = self._federation.processes["server"].pid
        for process in {server, *children(server, "")}:
            line = line_of(process)
            for words, name in PROCESSES.items():
                if words in line and "supervise" not in line:
                    yield process, name


def _seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _hospitals(root: Path) -> Hospitals:
    rng = np.random.default_rng(0)
    for site in SITES:
        for place, (name, level) in enumerate((("dark", 60), ("light", 160))):
            folder = root / site / name
            folder.mkdir(parents=True)
            for number in range(8):
                image = rng.normal(level, 20, (32, 32)).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{place}{number}.png")
    return Hospitals({site: CohortSpec(kind="images", root=root / site) for site in SITES})


def _visits(log: str) -> list[float]:
    return [float(found) for found in re.findall(r"train\.visit' answered after ([0-9.]+) s", log)]


if __name__ == "__main__":
    main()
