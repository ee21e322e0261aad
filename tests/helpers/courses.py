"""Plans of few stages, a hospital in them, and what an honest coordinator asks of it, for tests that play another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import Arrays, Instruction
from fedgraft.common.study.schedule import schedule, split_at
from fedgraft.common.study.study import Study
from helpers.work import CPU, images

PERSONAL = {
    "name": "personal",
    "local": {"kind": "gradient", "train": "heads", "steps": 2, "batch_size": 8, "lr": 0.1},
    "keep": "heads",
    "rounds": 2,
}
PRIVATE = {
    "name": "private",
    "local": {
        "kind": "gradient",
        "train": {"roles": ["body"]},
        "fixed_norm_stats": True,
        "steps": 1,
        "lr": 0.1,
        "private": {"noise_multiplier": 1.0, "sample_rate": 0.5},
    },
    "share": {"roles": ["body"]},
    "aggregate": {"kind": "mean"},
}
TRAIN = {
    "name": "train",
    "local": {"kind": "gradient", "steps": 1, "batch_size": 8, "lr": 0.1},
    "share": "all",
    "aggregate": {"kind": "mean"},
    "rounds": 3,
}
OPEN = SitePolicy(
    allow_non_dp=True,
    metrics="exact",
    min_patients=1,
    epsilon_per_study=100.0,
    epsilon_lifetime=100.0,
    sample_rate_max=1,
)
CLOSED = OPEN.model_copy(update={"metrics": "none"})


def a_cohort(cases: int = 60) -> Cohort:
    inputs, labels = images(cases)
    at = torch.arange(cases)
    splits = {"train": at[: cases // 2], "val": at[cases // 2 : -10], "test": at[-10:], "all": at}
    return Cohort("north", inputs, {"cls": labels}, tuple(map(str, range(cases))), splits, (), {})


def a_site(study: Study, folder: Path, policy: SitePolicy = OPEN) -> Site:
    mine = a_cohort()
    guard = PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    return Site(study, mine, LocalModel(study, CPU), folder, guard)


def a_model(study: Study) -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    return {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}


def legal(study: Study, state: Arrays) -> list[Instruction]:
    """What an honest coordinator asks of a hospital in this study, exchange by exchange."""
    return [
        Instruction(study.digest, s.exchange, s.stage, s.round, s.work, split_at(study, s), dict(state))
        for s in schedule(study)
    ]
