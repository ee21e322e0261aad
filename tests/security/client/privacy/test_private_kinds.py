"""DP-SGD of heads for labels and values: clipped case by case, as one backward pass per case would be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.privacy.dp.dp_statistics import noised_sums
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.study.stages.private_sums import PrivateSums
from helpers.dp import quiet, sums
from helpers.work import CPU, MakeStudy, cohort, images

CASES = 24
TASKS = [
    {"name": "size", "kind": "regression", "unit": "mm", "mean": 20, "std": 10, "weight": 2.0},
    {"name": "signs", "kind": "multilabel", "labels": ["a", "b"]},
    {"name": "cls", "classes": ["a", "b", "c"]},
]


def attack_target(make_study: MakeStudy, *, features: bool) -> tuple[LocalModel, Loader, dict[str, Tensor]]:
    study = make_study(tasks=TASKS)
    inputs, known = images(CASES)
    draw = torch.Generator().manual_seed(0)
    size, signs = torch.randn(CASES, generator=draw) * 30 + 20, (torch.rand(CASES, 2, generator=draw) < 0.5).float()
    size[::4] = math.nan
    signs[::3, 0] = math.nan
    signs[5] = math.nan
    targets = {"size": size, "signs": signs, "cls": torch.where(torch.arange(CASES) % 5 == 0, -1, known)}
    local_model = LocalModel(study, CPU)
    loader = Loader(cohort(inputs, targets), study.input, CPU)
    local_model.model.eval()
    if features:
        with torch.no_grad():
            (batch,) = loader.batches([torch.arange(CASES)])
            loader = loader.through(local_model.model.features(batch.inputs))
    return local_model, loader, targets


def naive(
    local_model: LocalModel, loader: Loader, targets: dict[str, Tensor], keys: list[str], max_grad_norm: float
) -> Tensor:
    local_model.model.eval()
    body = loader.body(local_model.model)
    total = torch.zeros(sum(local_model.parameters[key].numel() for key in keys), dtype=torch.float64)
    for case in range(CASES):
        local_model.model.zero_grad()
        (batch,) = loader.batches([torch.tensor([case])])
        outputs = body(batch.inputs)
        loss = torch.zeros(())
        if not targets["size"][case].isnan():
            off = outputs["size"][0, 0] - (targets["size"][case] - 20) / 10
            loss = loss + 2 * (0.5 * off**2 if off.abs() < 1 else off.abs() - 0.5)
        for label in range(2):
            if not (truth := targets["signs"][case, label]).isnan():
                loss = loss + F.softplus(-outputs["signs"][0, label] if truth == 1 else outputs["signs"][0, label])
        if targets["cls"][case] >= 0:
            loss = loss - outputs["cls"].log_softmax(1)[0, targets["cls"][case]]
        if loss.requires_grad:
            loss.backward()
        parts = [local_model.parameters[key] for key in keys]
        flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parts]).double()
        total += flat * min(1.0, max_grad_norm / max(float(flat.norm()), 1e-12))
    local_model.model.zero_grad()
    return total


@pytest.mark.parametrize(("features", "mode"), [(True, "hooks"), (False, "hooks"), (False, "ghost")])
@pytest.mark.parametrize("max_grad_norm", [0.7, 1e3])
def test_the_sum_is_that_of_gradients_clipped_case_by_case(
    make_study: MakeStudy, features: bool, mode: str, max_grad_norm: float
) -> None:
    local_model, loader, targets = attack_target(make_study, features=features)
    keys = [key for key, tag in local_model.tags.items() if tag.task]
    got = sums(local_model, loader, tuple(map(str, range(CASES))), quiet(max_grad_norm=max_grad_norm, mode=mode), keys)[
        0
    ]
    want = naive(local_model, loader, targets, keys, max_grad_norm)
    assert float((got - want).norm() / want.norm()) < 1e-4


def test_what_has_no_bound_is_refused_at_the_site_too(make_study: MakeStudy) -> None:
    """A coordinator that does not check its study gets nothing from a site that does."""
    local_model, loader, _ = attack_target(make_study, features=True)
    with pytest.raises(InputError, match="bound of classes alone"):
        noised_sums(
            local_model,
            loader,
            tuple(map(str, range(CASES))),
            PrivateSums(epsilon=None, noise_multiplier=1.0, max_norm=1.0),
        )
    study = make_study(tasks=[{"name": "lesion", "kind": "segmentation"}, *TASKS])
    masks = LocalModel(study, CPU)
    keys = [key for key, tag in masks.tags.items() if tag.task == "cls"]
    with pytest.raises(InputError, match="decoder of masks are not built"):
        sums(masks, loader, tuple(map(str, range(CASES))), quiet(), keys)
