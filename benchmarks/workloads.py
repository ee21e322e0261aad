"""The three workloads: what is trained, where, for how long; as a study for the engine and as arrays for the loops."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import split_rule
from fedgraft.common.base.seeds import derive
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals, opened

CLASSES = ("dark", "light")
CENTRAL = "zz-central"
"""The site with the central images; last by name."""


@dataclass(frozen=True)
class Workload:
    """Sites with `train` images each, of `size` pixels and 3 channels, and 400 central ones, evaluated each round.

    A site has a quarter more images than it trains on, as its test split; the engines evaluate them once, at the end,
    the loops never.
    """

    name: str
    sites: int
    train: int
    size: int
    backbone: str
    rounds: int = 5
    batch: int = 32


WORKLOADS = {
    "heavy": Workload("heavy", sites=8, train=200, size=64, backbone="resnet18"),
    "light": Workload("light", sites=64, train=8, size=32, backbone="bench_cnn"),
    "payload": Workload("payload", sites=16, train=8, size=64, backbone="resnet18"),
}


def workload(name: str, rounds: int | None, sites: int | None) -> Workload:
    """A workload by name, with other numbers of rounds or sites."""
    found = WORKLOADS[name]
    return replace(found, rounds=rounds or found.rounds, sites=sites or found.sites)


def study(load: Workload) -> Study:
    """The workload as a study: example-weighted FedAvg over the full state, everything evaluated every round."""
    asked = parse_study(
        {
            "name": f"bench-{load.name}",
            "tasks": [{"name": "cls", "classes": list(CLASSES)}],
            "input": {"kind": "image", "size": load.size, "channels": 3, "normalise": "fixed"},
            "split": {"train": 0.8, "val": 0, "test": 0.2},
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
            "evaluate": {"every": 0},
        },
        load.name,
    )
    return pinned(asked)


def write(load: Workload, folder: Path) -> Hospitals:
    """The workload's images as PNG files, a folder per site and one for the central images; written once."""
    cohorts = {}
    for number, name in enumerate([*names(load), CENTRAL]):
        root = folder / load.name / name
        if not root.exists():
            _write_site(load, root, number, 400 if name == CENTRAL else load.train + load.train // 4)
        cohorts[name] = CohortSpec(kind="images", root=root)
    return Hospitals(cohorts, observers=(CENTRAL,))


def names(load: Workload) -> list[str]:
    """The sites' names, in the order in which they are aggregated."""
    return [f"site{number:03d}" for number in range(load.sites)]


def arrays(load: Workload, folder: Path) -> None:
    """The same images as the engines decode and split them, as float arrays for the loops; written once."""
    asked, target = study(load), folder / f"{load.name}-arrays"
    # By the rule that the engines' sites go by: other patients, and the loops would do other work.
    wanted = CohortRequest(asked.tasks, asked.input, asked.split, asked.seed, split_rule(opened(asked), asked))
    for name, spec in write(load, folder).cohorts.items():
        if (target / f"{name}.npz").exists():
            continue
        secret = derive(asked.seed, name, "secret").to_bytes(16, "big")
        cohort = load_cohort(name, spec, wanted, Place(target / name, target / "cache", secret))
        images, labels = to_float(cohort.inputs, asked.input).numpy(), cohort.targets["cls"].numpy()
        used = np.arange(len(images)) if name == CENTRAL else cohort.splits["train"].numpy()
        np.savez(target / f"{name}.npz", x=images[used], y=labels[used])


def _write_site(load: Workload, root: Path, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
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
