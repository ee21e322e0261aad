"""What differential privacy costs beside the same training without, and what kept features save: ratios in one run.

    python -m benchmarks.privacy --runs 3
    python -m benchmarks.privacy --only head cache

Private and plain work take the same number of steps with the same expected batch, turn by turn, one torch thread;
`memory` is a process's peak over what it held before its first step. `cache` runs a whole study twice: 20 rounds of a
head on a resnet18 at two sites of 1,000 training images, with evaluation in every round, checkpoints and report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.noise_images import cohort
from benchmarks.workloads import study as local_model_study
from benchmarks.workloads import workload, write
from fedgraft.client.privacy.dp import secret
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.noise import Noises, noisy_mean
from fedgraft.client.training.device.process import keep_freed
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.features import Features
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.files import read_json, write_json
from fedgraft.common.protocol.routing import changed, frozen
from fedgraft.common.study.plan import Gradient, named
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Engine, prepare, resume

SIZE = 64
ROUNDS = 20


@dataclass(frozen=True)
class Case:
    """One kind of training: what is trained, of how many images, in how many steps of how many, and the limit."""

    train: str
    images: int
    steps: int
    batch: int
    limit: float
    mode: str = "hooks"


CASES = {
    "head": Case("heads", images=1000, steps=100, batch=250, limit=1.5),
    "norm": Case("norm_and_heads", images=256, steps=5, batch=32, limit=1.4),
    "all": Case("all", images=256, steps=3, batch=32, limit=1.5, mode="ghost"),
    "all128": Case("all", images=512, steps=3, batch=128, limit=1.8, mode="ghost"),
}


def study(selection: str) -> Study:
    """A resnet18 with one head."""
    local = {"kind": "gradient", "steps": 1, "train": selection, "fixed_norm_stats": True}
    stage = {"name": "train", "local": local, "share": selection, "aggregate": {"kind": "mean"}}
    return parse_study(
        {
            "name": "privacy",
            "tasks": [{"name": "cls", "classes": ["a", "b"]}],
            "input": {"kind": "image", "size": SIZE, "channels": 3, "normalise": "fixed"},
            "model": {"backbone": "resnet18", "weights": None},
            "plan": [stage],
        },
        "privacy",
    )


def works(case: Case, device: str = "cpu") -> tuple[Callable[[], object], Callable[[], object]]:
    """One visit without privacy, and one with."""
    plan = study(case.train)
    torch.manual_seed(0)
    data = cohort(case.images, SIZE)
    local_model = LocalModel(plan, torch.device(device))
    loader = Loader(data, plan.input, local_model.device)
    if frozen(plan.plan[0], local_model.tags):
        loader = Features(loader, Path(), "", keep=False).loader(local_model, "resnet18", "train")
    moves = changed(plan.plan[0], local_model.tags)
    plain = Gradient(train=named(case.train), steps=case.steps, batch_size=case.batch, fixed_norm_stats=True)
    terms = Private(
        expected_units=case.images,
        noise_multiplier=1.0,
        sample_rate=case.batch / case.images,
        mode="ghost" if case.mode == "ghost" else "hooks",
    )
    private = plain.model_copy(update={"private": terms})
    now = RoundContext(seed=0, round=1, rounds=1)
    return (
        lambda: train(local_model, loader, plain, moves, now),
        lambda: train_private(local_model, loader, data.patients, private, moves, now),
    )


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, case: Case, runs: int) -> None:
    """Print the median ratio of private to plain time."""
    plain, private = works(case)
    pairs = [(seconds(plain), seconds(private)) for _ in range(runs + 1)][1:]
    ratio = statistics.median(p / q for q, p in pairs)
    took = [statistics.median(column) * 1000 / case.steps for column in zip(*pairs, strict=True)]
    step = f"{took[0]:8.1f} ms a step plain, {took[1]:8.1f} private"
    print(f"{name:6} {case.mode:6} {step}: ratio {ratio:5.2f} (at most {case.limit})", flush=True)


def peak(name: str, mode: str) -> None:
    """Print the memory in MB that private steps take, for the process that asked."""
    _, private = works(replace(CASES[name], mode=mode))
    before = _high_water_mb()
    private()
    print(json.dumps(_high_water_mb() - before))


def _high_water_mb() -> float:
    """The most memory that this process ever held; unlike the figure of getrusage, not that of the one before it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def memory(name: str) -> None:
    """Print the memory of both modes, each in a process of its own."""
    found = {}
    for mode in ("hooks", "ghost"):
        command = [sys.executable, "-m", "benchmarks.privacy", "--peak", name, mode]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[mode] = float(done.stdout.splitlines()[-1])
    ratio = found["ghost"] / found["hooks"]
    print(f"{name:6} memory {found['hooks']:8.0f} MB hooks, {found['ghost']:8.0f} ghost: ratio {ratio:.2f} (below 0.5)")


def cache(runs: int) -> None:
    """Print the CPU time of a study with a frozen backbone, features kept and not."""
    load = replace(workload("heavy", ROUNDS, 2), train=1000)
    asked = local_model_study(load).model_dump(mode="json")
    asked["plan"][0] |= {"share": "heads"}
    asked["plan"][0]["local"] |= {"train": "heads"}
    asked["evaluate"] = {"every": 1, "split": "test"}
    plan = parse_study(asked, "cache")
    ratios = []
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        os.environ["FEDGRAFT_HOME"] = temporary
        hospitals = write(load, Path(temporary))
        for run in range(runs):
            took = {}
            for keep in (True, False):
                out = Path(temporary) / f"{run}-{keep}"
                prepare(plan, hospitals, out)
                for config in out.glob("sites/*/site.json"):
                    content = read_json(config)
                    content["policy"]["keep_features"] = keep
                    write_json(config, content)
                took[keep] = seconds(lambda out=out: resume(out, Engine()))  # type: ignore[misc]
            ratios.append(took[True] / took[False])
            print(f"cache  {took[True]:8.1f} s kept, {took[False]:8.1f} computed every round", flush=True)
    print(f"cache  {ROUNDS} rounds, ratio {statistics.median(ratios):.3f} (at most 0.1)")


def noise(runs: int) -> None:
    """Print the CPU time of a step's noise, of a million entries, and what of it the random numbers take."""
    keep_freed()
    total = [torch.zeros(1_400_000) for _ in range(8)]
    millions = sum(part.numel() for part in total) / 1e6
    works: dict[str, Callable[[], object]] = {
        "noised sums": lambda: noisy_mean(total, Noises(1.0, 1, 1.0), 100.0),
        "random numbers alone": lambda: deque(secret.normals(round(millions * 1e6)), maxlen=0),
    }
    for name, work in works.items():
        took = statistics.median([seconds(work) for _ in range(runs + 1)][1:])
        print(f"noise  {took * 1000 / millions:6.2f} ms for a million entries: {name}")


def main() -> None:
    """Print all ratios, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "noise", "memory", "cache"])
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "MODE"), help="the memory of one mode, as a number")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        peak(*asked.peak)
        return
    wanted = asked.only or [*CASES, "noise", "memory", "cache"]
    for name, case in CASES.items():
        if name in wanted:
            compare(name, case, asked.runs)
    if "noise" in wanted:
        noise(asked.runs)
    if "memory" in wanted:
        memory("all")
    if "cache" in wanted:
        cache(asked.runs)


if __name__ == "__main__":
    main()
