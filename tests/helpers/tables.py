"""Three small hospitals with tables, and what NumPy needs to repeat their training: plain features, labels, a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.data.cohorts.cohort import CohortRequest, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.common.base.files import load_tensors
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate

Floats = NDArray[np.float64]
STANDARDISE = {
    "name": "columns",
    "local": {"kind": "statistics", "of": "columns"},
    "aggregate": {"kind": "standardise"},
}
CASES = {"east": 40, "north": 60, "west": 80}
SIGNS = {"east": 1, "north": -1, "south": 1, "west": -1}
WHOLE = 1000
"""A batch that holds all cases of a site, so that their order does not count."""


def tables(root: Path) -> Hospitals:
    """Hospitals whose classes lie in other places: what drives their models apart."""
    cohorts = {}
    for number, (name, count) in enumerate(CASES.items()):
        rng = np.random.default_rng(number)
        label = (rng.uniform(size=count) < 0.3 + 0.2 * number).astype(int)
        x = rng.normal(size=(count, 2)) + np.outer(label, [1.5 * np.cos(number), 1.5 * np.sin(number)]) + number
        rows = [f"p{i},{'ab'[label[i]]},{x[i, 0]:.6f},{x[i, 1]:.6f}" for i in range(count)]
        (root / name).mkdir(parents=True)
        path = root / name / "table.csv"
        path.write_text("\n".join(["PatientID,cls,one,two", *rows]) + "\n")
        cohorts[name] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts)


def populations(root: Path, signs: Mapping[str, int] = SIGNS) -> Hospitals:
    """Hospitals of two populations: the class is where columns are large, or, with sign -1, where they are small."""
    cohorts = {}
    for number, (name, sign) in enumerate(signs.items()):
        rng = np.random.default_rng(number)
        x = rng.normal(size=(60, 2))
        ill = sign * x.sum(1) + rng.normal(scale=0.3, size=60) > 0
        rows = [f"p{at},{'ab'[int(ill[at])]},{x[at, 0]:.6f},{x[at, 1]:.6f}" for at in range(60)]
        (root / name).mkdir(parents=True)
        path = root / name / "table.csv"
        path.write_text("\n".join(["PatientID,cls,one,two", *rows]) + "\n")
        cohorts[name] = CohortSpec(kind="table", root=path, patient_column="PatientID")
    return Hospitals(cohorts)


def study(*stages: dict[str, Any], **more: Any) -> Study:
    """A study of these stages over a head alone, on standardised columns."""
    base = {
        "name": "twin",
        "seed": 1,
        "tasks": [{"name": "cls", "classes": ["a", "b"]}],
        "input": {"kind": "table", "numeric": ["one", "two"]},
        "model": {"backbone": "table_linear", "weights": None},
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
        "plan": [STANDARDISE, *stages],
        "evaluate": {"every": 0},
    }
    return parse_study(base | more, "test")


def sgd(steps: int = 3, lr: float = 0.5, **more: Any) -> dict[str, Any]:
    """Plain gradient work on all cases at once."""
    plain = {"kind": "gradient", "optimiser": "sgd", "momentum": 0, "batch_size": WHOLE}
    return plain | {"steps": steps, "lr": lr} | more


@dataclass(frozen=True)
class Trial:
    """A finished run, with what the sites saw."""

    run: Path
    first: Floats
    """The head before anything: (columns + 1, classes), the last row its bias."""
    last: Floats
    cases: dict[str, tuple[Floats, Floats]]
    """By site features with a column of ones, and one-hot labels, of the training cases."""
    every: dict[str, tuple[Floats, Floats]]
    """The same of all cases."""

    def kept(self, site: str) -> Floats:
        """The head that a site keeps for itself."""
        (folder,) = (self.run / "sites" / site / "local_state").iterdir()
        return head(load_tensors(sorted(folder.iterdir())[-1]))

    @property
    def weights(self) -> Floats:
        """The sites' shares of all cases."""
        counts = np.array([len(y) for _, y in self.cases.values()], float)
        return counts / counts.sum()


def trial(asked: Study, root: Path, there: Hospitals | None = None, **more: Any) -> Trial:
    """Run a study over the tables, or those `there`; `more` says who holds a source, as `Hospitals` has it."""
    hospitals = there or tables(root / "data")
    sources = {site: hospitals.cohorts[name] for site, name in more.pop("beside", {}).items()}
    run = simulate(asked, replace(hospitals, sources=sources, **more), root / "run")
    state = load_tensors(next(run.glob("**/model.safetensors")))  # of clusters any: all have one scale
    cases: list[dict[str, tuple[Floats, Floats]]] = [{}, {}]
    for name in hospitals.cohorts:
        config = read_config(run / "sites" / name / "site.json")
        wanted = CohortRequest(asked.tasks, asked.input, asked.split, asked.seed)
        cohort = load_cohort(name, config.cohort, wanted, place_of(config, asked.digest))
        for found, split in zip(cases, ("train", "all"), strict=True):
            at = cohort.splits["train"].numpy() if split == "train" else np.arange(len(cohort.inputs))
            x = (cohort.inputs.numpy()[at].astype(float) - state[_scale(state, "mean")]) / state[_scale(state, "std")]
            found[name] = (np.hstack([x, np.ones((len(x), 1))]), np.eye(2)[cohort.targets["cls"].numpy()[at]])
    return Trial(run, head(initialise(asked).state()), head(state), *cases)


def head(state: dict[str, np.ndarray]) -> Floats:
    """The linear head in a state: (columns + 1, classes)."""
    return np.vstack([state["heads.cls.weight"].T, state["heads.cls.bias"]]).astype(float)


def slope(w: Floats, z: Floats, y: Floats) -> Floats:
    """Gradient of the mean cross-entropy."""
    scores = np.exp(z @ w - (z @ w).max(1, keepdims=True))
    return np.asarray(z.T @ (scores / scores.sum(1, keepdims=True) - y) / len(y))


def _scale(state: dict[str, np.ndarray], name: str) -> str:
    return next(key for key in state if key.startswith("backbone") and key.endswith(f".{name}"))
