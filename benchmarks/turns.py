"""Rounds in turns: processes that wait for each other after every round, so that a busy machine is as busy for each.

    python -m benchmarks.turns light --rounds 20 [--before CHECKOUT]
    python -m benchmarks.turns payload --rounds 12
    python -m benchmarks.turns resnet18 --rounds 40 --before CHECKOUT

Processor time of a site and round, of whole rounds from the begin of one exchange to that of the next. A workload
(light, payload, heavy) has the hand-written loop beside it; a backbone's name asks for heads on kept features, as
`benchmarks.heads` has them. Ratios are of the same turn, to the first contestant; the first three rounds do not count.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SKIPPED = 3


def sites_of(what: str) -> int:
    """How many sites train in a round."""
    from benchmarks.heads import SITES
    from benchmarks.workloads import WORKLOADS

    return WORKLOADS[what].sites if what in WORKLOADS else SITES


def contestant(kind: str, what: str, rounds: int, folder: Path) -> None:
    """Run a contestant: before each round a line comes in, and after it the seconds of processor time go out."""
    import torch

    from benchmarks import contestants, heads
    from benchmarks.workloads import CENTRAL, WORKLOADS, Workload, study, workload, write
    from fedgraft.server.rounds.rounds import Coordinator
    from fedgraft.simulations.engines.run import Engine, Hospitals, simulate

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ["FEDGRAFT_HOME"] = str(folder / "home")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    begun: list[float] = []

    def turn() -> None:
        if begun:
            out.write(f"{time.process_time() - begun.pop()}\n")
        sys.stdin.readline()
        begun.append(time.process_time())

    def at_each_call(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            turn()
            return real(*args, **more)

        return called

    if kind == "loop":
        contestants.Average = at_each_call(contestants.Average)  # type: ignore[assignment, misc]
        contestants.loop(workload(what, rounds, None), folder)
        return
    Coordinator._exchange = at_each_call(Coordinator._exchange)  # type: ignore[method-assign]
    if what in WORKLOADS:
        asked, hospitals = study(workload(what, rounds, None)), write(workload(what, rounds, None), folder)
    else:
        cohorts = write(Workload("heads", sites=heads.SITES, train=64, size=32, backbone=""), folder).cohorts
        asked = heads.study(what, rounds)
        hospitals = Hospitals({name: spec for name, spec in cohorts.items() if name != CENTRAL})
    simulate(asked, hospitals, Path(tempfile.mkdtemp(dir=folder)) / "run", Engine(name="inprocess", threads=1))


def start(kind: str, checkout: Path, what: str, rounds: int, folder: Path) -> subprocess.Popen[str]:
    """A contestant with the code of a checkout, and this script."""
    own = os.environ | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what, "--rounds", str(rounds), "--as", kind, "--folder", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=checkout, env=own, text=True, bufsize=1, **pipes)


def main() -> None:
    """Print a line for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="a workload, or a backbone whose heads are trained")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--as", dest="kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where images are kept for the next time")
    asked = parser.parse_args()
    if asked.kind:
        contestant(asked.kind, asked.what, asked.rounds, asked.folder)
        return
    from benchmarks.workloads import WORKLOADS, arrays, workload

    here = Path(__file__).parents[1]
    names = ["loop"] if asked.what in WORKLOADS else []
    places = dict.fromkeys(names, here) | ({"before": asked.before.resolve()} if asked.before else {}) | {"now": here}
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        folder = (asked.folder or Path(temporary)).resolve()
        if asked.what in WORKLOADS:
            from benchmarks.bench_cnn import register

            register()
            os.environ["FEDGRAFT_HOME"] = str(folder / "home")
            arrays(workload(asked.what, 1, None), folder)
        running = {n: start(n, place, asked.what, asked.rounds + 1, folder) for n, place in places.items()}
        took: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(asked.rounds):
            for name, process in running.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                took[name].append(float(process.stdout.readline()) * 1000 / sites_of(asked.what))
        for process in running.values():
            process.kill()
            process.wait()
    first = next(iter(took.values()))[SKIPPED:]
    for name, every in took.items():
        counted = every[SKIPPED:]
        ratios = statistics.quantiles([one / other for one, other in zip(counted, first, strict=True)])
        spread = f"({min(counted):.2f} to {max(counted):.2f})"
        print(f"{name:8} {statistics.median(counted):.2f} ms a site and round {spread}", end="")
        print(f"  ratio {ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f})")
    print(f"{len(first)} rounds, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
