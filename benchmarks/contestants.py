"""Who runs a workload: a hand-written PyTorch loop, the same with two workers, and fedgraft's engines.

Run as `python -m benchmarks.contestants NAME WORKLOAD.json FOLDER`; prints the loss after each round as JSON.
The loops see the same images, splits, batches and initial entries as the engines, so that their curves must agree.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_cnn import register
from benchmarks.workloads import CENTRAL, Workload, names, study, undump
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.study import Study

State = dict[str, Tensor]
register()  # here, so that worker processes, which import this module, know it too


class Data:
    """A site's training images as float tensors in memory."""

    def __init__(self, load: Workload, folder: Path, name: str) -> None:
        kept = np.load(folder / f"{load.name}-arrays" / f"{name}.npz")
        self.name = name
        self.images, self.labels = torch.from_numpy(kept["x"]), torch.from_numpy(kept["y"])


def make(asked: Study) -> torch.nn.Module:
    """The model, with the engine's initial entries."""
    from fedgraft.common.models.initialise import make_model

    return make_model(asked)


def local(model: torch.nn.Module, state: State, data: Data, asked: Study, number: int) -> tuple[State, int]:
    """One site's epoch: from the global state to its own."""
    model.load_state_dict(state)
    model.train()
    spec = asked.plan[0].local
    optimiser = torch.optim.SGD(model.parameters(), lr=spec.lr, momentum=spec.momentum)
    seed = derive(derive(asked.seed, data.name, asked.plan[0].name, number), "batches")
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
    for indices in order.split(spec.batch_size):
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(data.images[indices])["cls"], data.labels[indices]).backward()
        optimiser.step()
    return {key: value.clone() for key, value in model.state_dict().items()}, len(data.images)


def evaluate(model: torch.nn.Module, state: State, images: Tensor, labels: Tensor) -> float:
    """Mean loss of the global model over the central images."""
    model.load_state_dict(state)
    model.eval()
    with torch.inference_mode():
        parts = zip(images.split(256), labels.split(256), strict=True)
        total = sum(float(F.cross_entropy(model(x)["cls"], y, reduction="sum")) for x, y in parts)
    return total / len(images)


class Average:
    """Example-weighted mean in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0

    def add(self, state: State, weight: int) -> None:
        for key, value in state.items():
            if key not in self._sums:
                self._sums[key] = torch.zeros(value.shape, dtype=torch.float64)
            self._sums[key].add_(value, alpha=weight)
        self._weight += weight

    def result(self, like: State) -> State:
        return {
            key: (total / self._weight).round().to(like[key].dtype)
            if not like[key].is_floating_point()
            else (total / self._weight).to(like[key].dtype)
            for key, total in self._sums.items()
        }


def loop(load: Workload, folder: Path) -> list[float]:
    """One process, one model, one site after the other."""
    asked = study(load)
    model = make(asked)
    sites = [Data(load, folder, name) for name in names(load)]
    central = Data(load, folder, CENTRAL)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    losses = [evaluate(model, state, central.images, central.labels)]
    for number in range(1, load.rounds + 1):
        average = Average()
        for site in sites:
            average.add(*local(model, state, site, asked, number))
        state = average.result(state)
        losses.append(evaluate(model, state, central.images, central.labels))
    return losses


def loop2(load: Workload, folder: Path) -> list[float]:
    """Two worker processes; states travel through shared memory, the mean is taken here."""
    asked = study(load)
    model = make(asked)
    central = Data(load, folder, CENTRAL)
    state = {key: value.clone().share_memory_() for key, value in model.state_dict().items()}
    losses = [evaluate(model, state, central.images, central.labels)]
    start = torch.multiprocessing.get_context("spawn")
    lines = []
    for half in (names(load)[::2], names(load)[1::2]):
        here, there = start.Pipe()
        mine = {key: torch.empty_like(value).share_memory_() for key, value in state.items()}
        start.Process(target=_half, args=(there, load, folder, half, state, mine), daemon=True).start()
        lines.append((here, mine, half))
    for number in range(1, load.rounds + 1):
        average = Average()
        for here, _, _ in lines:
            here.send(number)
        waiting = {here: mine for here, mine, half in lines for _ in [0] if half}
        left = {here: len(half) for here, _, half in lines}
        while left:
            for here in multiprocessing.connection.wait(list(left)):
                average.add(waiting[here], here.recv())
                here.send("go on")
                left[here] -= 1
                if not left[here]:
                    del left[here]
        for key, value in average.result(state).items():
            state[key].copy_(value)
        losses.append(evaluate(model, state, central.images, central.labels))
    for here, _, _ in lines:
        here.send(0)
    return losses


def _half(line: Connection, load: Workload, folder: Path, half: list[str], state: State, mine: State) -> None:
    torch.set_num_threads(1)
    asked = study(load)
    model = make(asked)
    sites = [Data(load, folder, name) for name in half]
    while number := line.recv():
        for site in sites:
            trained, weight = local(model, state, site, asked, number)
            for key, value in trained.items():
                mine[key].copy_(value)
            line.send(weight)
            line.recv()


def fedgraft(load: Workload, folder: Path, engine: str) -> list[float]:
    """The engine, as `fedgraft simulate` runs it, report included."""
    import shutil
    import tempfile

    from benchmarks.workloads import write
    from fedgraft.simulations.engines.run import Engine, simulate

    out = Path(tempfile.mkdtemp(prefix="fedgraft-bench-")) / "run"
    simulate(study(load), write(load, folder), out, Engine(name=engine, workers=2, threads=1))
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    shutil.rmtree(out.parent)
    return [row["observers"]["cls"]["pooled"]["loss"] for row in rows]


def main() -> None:
    """Run one contestant."""
    name, load, folder = sys.argv[1], undump(Path(sys.argv[2])), Path(sys.argv[3])
    torch.set_num_threads(1)
    run = {"loop": loop, "loop2": loop2}.get(name)
    losses = run(load, folder) if run else fedgraft(load, folder, name)
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
