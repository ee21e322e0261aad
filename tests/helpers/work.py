"""Images that can be learnt in seconds, and cohorts of them, for tests of what sites do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN

MakeStudy = Callable[..., Study]
CPU = torch.device("cpu")
NOW = RoundContext(seed=7, round=1, rounds=1)


def images(count: int, seed: int = 0, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar whose place is the class, as stored, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    values = rng.uniform(0.2, 0.6, (count, 1, size, size))
    for image, label in zip(values, labels, strict=True):
        image[:, :, 2 + 10 * label : 8 + 10 * label] += 0.3
    return torch.from_numpy((values * 65535 - 32768).round().astype(np.int16)), torch.from_numpy(labels)


def cohort(inputs: Tensor, targets: dict[str, Tensor], held_out: int = 0, name: str = "north") -> Cohort:
    """The last `held_out` cases are for validation, all others for training."""
    cut = len(inputs) - held_out
    splits = {"train": torch.arange(cut), "val": torch.arange(cut, len(inputs)), "test": torch.arange(0)}
    return Cohort(name, inputs, targets, tuple(map(str, range(len(inputs)))), splits, (), {})


def a_site(study: Study, mine: Cohort, folder: Path, policy: SitePolicy = OPEN) -> Site:
    """A hospital with these cases, all of them labelled patients' own, under this policy."""
    guard = PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    return Site(study, mine, LocalModel(study, CPU), folder, guard)


def came(state: State) -> States:
    """What comes with an instruction, of one state."""
    states = States()
    states.put("", state)
    return states


def snapshot(local_model: LocalModel) -> dict[str, np.ndarray]:
    return local_model.read(local_model.tags)


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Entries of which any bit differs."""
    return {key for key in before if before[key].tobytes() != after[key].tobytes()}


def steps(count: int = 3, **changes: Any) -> Gradient:
    return Gradient(**({"steps": count, "batch_size": 8, "optimiser": "sgd", "lr": 0.05} | changes))


TABLE_PLAN = [
    {
        "name": "columns",
        "local": {"kind": "statistics", "of": "columns"},
        "share": {"roles": ["scale"]},
        "aggregate": {"kind": "standardise"},
    }
]


def local_model_input(*columns: str) -> TableInput:
    return TableInput(numeric=columns)
