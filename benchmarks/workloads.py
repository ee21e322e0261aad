"""The three workloads: what is trained, where, for how long; as a study for the engine and as arrays for the loops."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from client.data.spec import CohortSpec
from PIL import Image

from common.study import Study, parse_study
from simulations.run import Hospitals

CLASSES = ("dark", "light")


@dataclass(frozen=True)
class Workload:
    """`train` images a site for training and `test` for evaluation each round, of `size` pixels, 3 channels."""

    name: str
    sites: int
    train: int
    test: int
    size: int
    backbone: str
    rounds: int = 5
    batch: int = 32


WORKLOADS = {
    "heavy": Workload("heavy", sites=8, train=200, test=50, size=64, backbone="resnet18"),
    "light": Workload("light", sites=64, train=8, test=6, size=32, backbone="bench_cnn"),
    "payload": Workload("payload", sites=16, train=8, test=25, size=64, backbone="resnet18"),
}


def workload(name: str, rounds: int | None, sites: int | None) -> Workload:
    """A workload by name, with other numbers of rounds or sites."""
    found = WORKLOADS[name]
    return replace(found, rounds=rounds or found.rounds, sites=sites or found.sites)


def study(load: Workload) -> Study:
    """The workload as a study: example-weighted FedAvg over the full state, everything evaluated every round."""
    test = load.test / (load.train + load.test)
    return parse_study(
        {
            "name": f"bench-{load.name}",
            "tasks": [{"name": "cls", "classes": list(CLASSES)}],
            "input": {"kind": "image", "size": load.size, "channels": 3, "normalise": "fixed"},
            "split": {"train": 1 - test, "val": 0, "test": test},
            "model": {"backbone": load.backbone, "weights": None},
            "method": {
                "name": "fedavg",
                "rounds": load.rounds,
                "local": {
                    "epochs": 1,
                    "batch_size": load.batch,
                    "optimiser": "sgd",
                    "lr": 0.01,
                    "momentum": 0.9,
                },
            },
            "evaluate": {"every": 1, "split": "test"},
        },
        load.name,
    )


def write(load: Workload, folder: Path) -> Hospitals:
    """The workload's images as PNG files, a folder per site; written once."""
    cohorts = {}
    for number in range(load.sites):
        name = f"site{number:03d}"
        root = folder / load.name / name
        if not root.exists():
            _write_site(load, root, number)
        cohorts[name] = CohortSpec(kind="images", root=root)
    return Hospitals(cohorts)


def _write_site(load: Workload, root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(load.train + load.test):
        label = number % 2
        image = rng.normal(110 + 20 * label, 40, (load.size, load.size, 3))
        path = root / CLASSES[label]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path / f"{number:04d}.png")


def dump(load: Workload, path: Path) -> None:
    """The workload's numbers, for the process that runs it."""
    path.write_text(json.dumps(vars(load)))


def undump(path: Path) -> Workload:
    """What `dump` wrote."""
    return Workload(**json.loads(path.read_text()))
