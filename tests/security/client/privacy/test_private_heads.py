"""Private heads on kept features: the sum in closed form is that of gradients clipped one by one, and stays bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from helpers.dp import private_work, quiet, sums
from helpers.work import CPU, NOW, MakeStudy, cohort, images, moved, snapshot

OWN = tuple(map(str, range(30)))
TASKS = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r"]}]


class MakeModel:
    """A workbench with two heads and a site of 30 cases whose features are given."""

    def __init__(self, make_study: MakeStudy, features: Tensor | None = None) -> None:
        study = make_study(tasks=TASKS)
        inputs, known = images(30)
        side = torch.arange(30) // 7 % 3 - 1  # some are not known
        self.local_model = LocalModel(study, CPU)
        self.targets = {"cls": known, "side": side}
        self.features = (
            torch.randn(30, 128, generator=torch.Generator().manual_seed(1)) if features is None else features
        )
        self.loader = Loader(cohort(inputs, self.targets), study.input, CPU).through(self.features)
        self.heads = [key for key, tag in self.local_model.tags.items() if tag.task]

    def naive(self, units: Sequence[Sequence[int]], max_grad_norm: float) -> Tensor:
        """One backward pass per unit."""
        heads = self.local_model.model.heads
        total = torch.zeros(sum(self.local_model.parameters[key].numel() for key in self.heads), dtype=torch.float64)
        for unit in units:
            self.local_model.model.zero_grad()
            for case in unit:
                z = self.features[case : case + 1]
                for task, head in heads.items():
                    label = self.targets[task][case : case + 1]
                    if int(label) >= 0:
                        (F.cross_entropy(head(z), label) / len(unit)).backward()
            parts = [self.local_model.parameters[key] for key in self.heads]
            flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parts]).double()
            total += flat * min(1.0, max_grad_norm / float(flat.norm()))
        self.local_model.model.zero_grad()
        return total

    def sum(self, patients: Sequence[str] = OWN, **changes: object) -> Tensor:
        return sums(self.local_model, self.loader, patients, quiet(**changes), self.heads)[0]


def close(got: Tensor, want: Tensor) -> bool:
    return float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_the_sum_is_that_of_gradients_clipped_case_by_case(make_study: MakeStudy, mode: str) -> None:
    attack_target = MakeModel(make_study)
    max_grad_norm = float(np.median([float(attack_target.naive([[case]], 1e9).norm()) for case in range(30)]))
    assert close(
        attack_target.sum(max_grad_norm=max_grad_norm, mode=mode),
        attack_target.naive([[case] for case in range(30)], max_grad_norm),
    )


@pytest.mark.parametrize("max_grad_norm", [2.0, 1e3])  # where most are clipped, and where none is
def test_a_patient_with_several_cases_is_clipped_once(make_study: MakeStudy, max_grad_norm: float) -> None:
    attack_target = MakeModel(make_study)
    patients = ["a", "b", "a", "c", *["d"] * 6, *map(str, range(20))]
    units = [[at for at, own in enumerate(patients) if own == one] for one in dict.fromkeys(patients)]
    assert close(
        attack_target.sum(patients, max_grad_norm=max_grad_norm, augmentation_multiplicity=9),
        attack_target.naive(units, max_grad_norm),
    )


def test_without_a_patient_the_sum_changes_by_at_most_the_clip(make_study: MakeStudy) -> None:
    """In ordinary lots, and where all features are large and pull one way."""
    for lot in range(12):
        draw = torch.Generator().manual_seed(lot)
        features = torch.randn(30, 128, generator=draw) * (1.0, 1e3, 1e-3)[lot % 3]
        if lot >= 9:
            features = features.abs() * 1e4
        attack_target, max_grad_norm = MakeModel(make_study, features), (0.01, 1.0, 100.0)[lot % 3]
        patients = [str(case // (1 + lot % 2)) for case in range(30)]
        whole = attack_target.sum(patients, max_grad_norm=max_grad_norm, augmentation_multiplicity=1 + lot % 2)
        kept = [case for case in range(30) if patients[case] != "4"]
        without = MakeModel(make_study, features)
        without.loader._labelled["train"] = torch.tensor(kept)
        rest = without.sum(patients, max_grad_norm=max_grad_norm, augmentation_multiplicity=1 + lot % 2)
        change = float((whole - rest).norm()) / max_grad_norm
        assert change <= 1.001
        if lot in {1, 4, 7, 10}:  # those whose gradients are far above the clip come close to it
            assert change > 0.9


def test_the_noise_is_that_of_sigma_times_the_clip(make_study: MakeStudy) -> None:
    attack_target = MakeModel(make_study)
    drawn = sums(
        attack_target.local_model,
        attack_target.loader,
        OWN,
        private_work(120, noise_multiplier=1.5, max_grad_norm=0.2, sample_rate=1e-9),
        attack_target.heads,
    )
    assert drawn.numel() > 60_000
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(torch.corrcoef(drawn[:2])[0, 1])) < 6 / drawn.shape[1] ** 0.5
    for part in (drawn[:, :384], drawn[:, 387:643], drawn[:, 384:387], drawn[:, 643:]):  # weights and biases alike
        assert float(part.std()) == pytest.approx(0.3, rel=6 / math.sqrt(2 * part.numel()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_case_that_is_not_finite_counts_nothing(make_study: MakeStudy, bad: float) -> None:
    attack_target = MakeModel(make_study)
    want = attack_target.naive([[case] for case in range(30) if case != 7], 1.0)
    attack_target.features[7] = bad
    assert close(attack_target.sum(max_grad_norm=1.0), want) or (
        bad == 1e38 and float((attack_target.sum(max_grad_norm=1.0) - want).norm()) <= 1.001
    )


def test_a_case_of_which_the_answers_overflow_counts_nothing(make_study: MakeStudy) -> None:
    """Its features are finite, and what the heads make of them is not."""
    attack_target = MakeModel(make_study)
    with torch.no_grad():
        for key in attack_target.heads:
            attack_target.local_model.parameters[key].mul_(100)
    want = attack_target.naive([[case] for case in range(30) if case != 7], 1.0)
    attack_target.features[7] = 3e38
    assert not bool(attack_target.local_model.model.heads["cls"](attack_target.features[7]).isfinite().all())
    assert close(attack_target.sum(max_grad_norm=1.0), want)


def test_nothing_but_the_heads_moves(make_study: MakeStudy) -> None:
    attack_target = MakeModel(make_study)
    before = snapshot(attack_target.local_model)
    train_private(attack_target.local_model, attack_target.loader, OWN, private_work(2), attack_target.heads, NOW)
    assert moved(before, snapshot(attack_target.local_model)) == set(attack_target.heads)
