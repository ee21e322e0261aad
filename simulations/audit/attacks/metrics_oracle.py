"""Metrics are an oracle: whoever may ask often enough how good crafted models are learns every hidden label.

The attacker knows what the cases look like and wants the diagnoses. Each instruction brings crafted heads, so every
prediction is known; each accuracy is then one linear equation in the labels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgraft.client.attacks.attack_target import CPU, table_study
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.policy import Metrics, SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.protocol.instructions import Instruction, Update
from fedgraft.common.study.study import Study

_LABELS = 100
_EVALUATIONS = 100
_COLUMNS = 40


def recovered(metrics: Metrics, seed: int) -> Measurement:
    """The share of 100 hidden labels that 100 evaluations give away at a site with this rule."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(_LABELS, _COLUMNS)).astype(np.float32)
    labels = rng.permutation(np.arange(_LABELS) % 2)
    heads = rng.normal(size=(_EVALUATIONS, _COLUMNS)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        answers = _ask(_site(inputs, labels, metrics, Path(folder)), heads)
    share = float((_solved((inputs @ heads.T > 0).T, answers) == labels).mean())
    told = sum(answer is not None for answer in answers)
    words = f"{share:.0%} of {_LABELS} hidden labels come out of {told} answers to {_EVALUATIONS} questions"
    return Measurement(share, 0.6, words) if metrics != "exact" else Measurement(share, 0.95, words, "at least")


def _ask(site: tuple[Site, Study, LocalModel], heads: NDArray[np.float32]) -> list[float | None]:
    """The accuracy of each head as the site tells it, if it does."""
    hospital, study, local_model = site
    answers: list[float | None] = []
    end = 1 + study.plan[-1].rounds  # the exchange that only evaluates, and may be asked again after a crash
    for head in heads:
        tensors = local_model.read(local_model.tags) | {
            "heads.cls.weight": np.stack([-head, head]),
            "heads.cls.bias": np.zeros(2, np.float32),
        }
        reply = hospital.visit(Instruction(study.digest, end, 0, 1, work=False, evaluate="test", tensors=tensors))
        told = reply.metrics.get("cls") if isinstance(reply, Update) else None
        arrays = {key: array.tolist() for key, array in told.items()} if told else None
        answers.append(ClassificationSums.from_arrays(arrays, 2).values()["accuracy"] if arrays else None)
    return answers


def _solved(says_yes: NDArray[np.bool_], answers: list[float | None]) -> NDArray[np.int64]:
    """Labels, of which each accuracy is the share that agrees with the head's predictions; 0 where nothing is known."""
    told = [at for at, answer in enumerate(answers) if answer is not None]
    if not told:
        return np.zeros(_LABELS, np.int64)
    yes = says_yes[told].astype(np.float64)
    right = np.array([answers[at] for at in told], dtype=np.float64) * _LABELS
    solution = np.linalg.lstsq(2 * yes - 1, right - (1 - yes).sum(axis=1), rcond=None)[0]
    return np.asarray(solution > 0.5, dtype=np.int64)


def _site(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], metrics: Metrics, folder: Path
) -> tuple[Site, Study, LocalModel]:
    study = table_study(_COLUMNS)
    cases = torch.arange(_LABELS)
    splits = {"train": cases[:0], "val": cases[:0], "test": cases}
    targets = {"cls": torch.from_numpy(labels)}
    cohort = Cohort("audit", torch.from_numpy(inputs), targets, tuple(map(str, range(_LABELS))), splits, (), {})
    policy = SitePolicy(allow_non_dp=True, metrics=metrics)
    local_model = LocalModel(study, CPU)
    return Site(study, cohort, local_model, folder, PrivacyGuard(study, policy, folder, _LABELS)), study, local_model
