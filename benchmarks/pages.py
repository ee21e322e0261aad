"""What a run of many sites and rounds looks like: CPU time and size of its report, and of one look at its live page.

    python -m benchmarks.pages --sites 200 --rounds 200

Every round is evaluated at every site; figures are of real metric sums, the same ones round after round.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from fedgraft.common.study.study import parse_study  # noqa: E402
from fedgraft.server.report import build_report  # noqa: E402
from fedgraft.server.rounds.scores import Scores  # noqa: E402
from fedgraft.server.watch.snapshot import WatchedRun  # noqa: E402
from helpers.runs import CLASSES, predictions, write_run  # noqa: E402 - the test suite's own way to write a run

_PLAN = {"name": "fedavg", "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}


def write(run: Path, sites: int, rounds: int) -> None:
    """A run's folder as it is at its end."""
    names = tuple(f"site{number:03d}" for number in range(sites))
    write_run(run, names, stages=(("finetune", 3),))
    tasks, image = [{"name": "cls", "classes": list(CLASSES)}], {"kind": "image", "size": 32}
    asked = {"name": "many", "tasks": tasks, "input": image, "model": {"backbone": "resnet18", "weights": None}}
    study = parse_study(asked | {"method": _PLAN | {"rounds": rounds}}, "the benchmark")
    (run / "study.yaml").write_text(study.to_yaml())
    rng = np.random.default_rng(0)
    values = Scores(study, {name: {"cls": predictions(rng, 1.0, 60, len(CLASSES))} for name in names}).values()
    row = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    row |= {"stage_index": 0, "stage": "finetune", "rounds": rounds, "metrics": values, "repeats": 0}
    events: list[dict[str, Any]] = [{"event": "greeting"}, {"event": "greeted", "sites": names, "absent": {}}]
    with (run / "history.jsonl").open("w") as history:
        for number in range(1, rounds + 1):
            history.write(json.dumps(row | {"exchange": number, "round": number}) + "\n")
            events.append({"event": "exchange", "exchange": number, "stage": "finetune", "sites": sites})
            events += [{"event": "reply", "exchange": number, "site": name} for name in names]
            events.append({"event": "done", "exchange": number, "macro": {}, "metric": {}, "missing": {}})
    (run / "events.jsonl").write_text("".join(json.dumps({"time": 1.0} | event) + "\n" for event in events))


def timed(what: str, do: Callable[[], object]) -> None:
    """Print the CPU seconds of it."""
    started = time.process_time()
    do()
    print(f"{what}: {time.process_time() - started:.2f} s CPU", flush=True)


def main() -> None:
    """Write the run, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedgraft-pages-") as temporary:
        run = Path(temporary) / "run"
        write(run, asked.sites, asked.rounds)
        print(f"history {_mb(run / 'history.jsonl'):.1f} MB, events {_mb(run / 'events.jsonl'):.1f} MB")
        timed("report", lambda: build_report(run))
        print(f"report.html {_mb(run / 'report.html'):.1f} MB")
        watched = WatchedRun(run)
        timed("first look", watched.look)
        timed("another look, nothing new", watched.look)
        _more(run / "events.jsonl", 1)
        timed("another look, a reply more", watched.look)
        _more(run / "history.jsonl", 1)
        timed("another look, a round more", watched.look)
        print(f"most memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _more(path: Path, lines: int) -> None:
    content = path.read_text().splitlines(keepends=True)[-lines:]
    with path.open("a") as file:
        file.writelines(content)


def _mb(path: Path) -> float:
    return path.stat().st_size / 1e6


if __name__ == "__main__":
    main()
