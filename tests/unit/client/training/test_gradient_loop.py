"""Gradient work: what is frozen stays, every step is that of plain lines, rates and batches are as asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader, shuffled
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.model.plain_sgd import PlainSgd
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.base.seeds import derive
from fedgraft.common.protocol.rates import rate_factor
from fedgraft.common.study.plan import (
    Gradient,
    Recalibrate,
    Role,
    Select,
    named,
)
from fedgraft.common.study.stages.training import Augment
from helpers.work import CPU, NOW, TABLE_PLAN, cohort, images, local_model_input, moved, snapshot, steps


@pytest.mark.parametrize("backbone", ["slim_resnet", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5"])
def test_training_heads_leaves_every_other_bit(attack_target, backbone: str) -> None:
    local_model, loader = attack_target(backbone)
    before = snapshot(local_model)
    train(local_model, loader, steps(), named("heads").keys(local_model.tags), NOW)
    assert moved(before, snapshot(local_model)) == {"heads.cls.weight", "heads.cls.bias"}


@pytest.mark.parametrize("backbone", ["slim_resnet", "densenet121"])
def test_training_the_deeper_half_leaves_every_bit_of_the_rest(attack_target, backbone: str) -> None:
    local_model, loader = attack_target(backbone)
    middle = max(tag.depth for tag in local_model.tags.values()) // 2
    chosen = set(Select(min_depth=middle).keys(local_model.tags))
    before = snapshot(local_model)
    train(local_model, loader, steps(), sorted(chosen), NOW)
    after = snapshot(local_model)
    assert moved(before, after) <= chosen
    stats = {key for key in chosen if local_model.tags[key].role is Role.NORM_STATS}
    assert stats
    assert stats <= moved(before, after)
    counters = {key: after[key] for key in after if key.endswith("num_batches_tracked")}
    assert all(value.shape == () and value == (3 if key in chosen else 0) for key, value in counters.items())


def test_fixed_statistics_stay_while_the_scale_is_trained(attack_target) -> None:
    local_model, loader = attack_target()
    chosen = [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]
    before = snapshot(local_model)
    train(local_model, loader, steps(), chosen, NOW)
    assert moved(before, snapshot(local_model)) == set(chosen)


def test_freezing_does_not_outlast_its_stage(attack_target) -> None:
    local_model, loader = attack_target()
    train(local_model, loader, steps(1), named("heads").keys(local_model.tags), NOW)
    before = snapshot(local_model)
    train(local_model, loader, steps(), tuple(local_model.tags), NOW)
    assert moved(before, snapshot(local_model)) == set(local_model.tags)


def test_what_is_frozen_has_no_gradient_left_of_the_stage_before(attack_target) -> None:
    local_model, loader = attack_target()
    heads = named("heads").keys(local_model.tags)
    train(local_model, loader, steps(1), tuple(local_model.tags), NOW)
    train(local_model, loader, steps(1), heads, NOW)
    left = {key for key, parameter in local_model.parameters.items() if parameter.grad is not None}
    assert left == set(heads)


def test_work_leaves_the_model_in_eval_and_torchs_own_randomness_alone(attack_target) -> None:
    local_model, loader = attack_target("mobilenet_v3_small")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(local_model, loader, steps(augment=Augment()), tuple(local_model.tags), NOW)
    recalibrate(local_model, loader, Recalibrate())
    evaluate(local_model, loader, "val")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in local_model.model.modules())


# The gradient loop against a naive twin.


def naive(local_model: LocalModel, loader: Loader, epochs: int, lr: float, seed: int) -> None:
    """Plain SGD in ten lines, from the same order of cases."""
    model, generator = local_model.model.train(), torch.Generator().manual_seed(derive(seed, "batches"))
    indices = loader.splits["train"]
    for _ in range(epochs):
        for group in indices[torch.randperm(len(indices), generator=generator)].split(8):
            x = to_float(images(27)[0], loader._spec)[group]
            model.zero_grad()
            F.cross_entropy(model(x)["cls"], loader.targets("cls", group)).backward()
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(value.grad, alpha=-lr)
    model.eval()


def test_every_bit_is_that_of_plain_sgd(attack_target) -> None:
    (ours, loader), (plain, _) = attack_target(), attack_target()
    facts = train(
        ours, loader, Gradient(epochs=2, batch_size=8, optimiser="sgd", momentum=0, lr=0.1), [*ours.tags], NOW
    )
    naive(plain, loader, 2, 0.1, NOW.seed)
    assert not moved(snapshot(ours), snapshot(plain))
    assert (facts["steps"], facts["examples"]) == (6, 21)
    assert math.isfinite(facts["loss"])


def test_the_same_seed_trains_the_same_and_another_does_not(attack_target) -> None:
    results = []
    for seed in (1, 1, 2):
        local_model, loader = attack_target("mobilenet_v3_small")
        train(local_model, loader, steps(2, augment=Augment()), tuple(local_model.tags), RoundContext(seed, 1, 1))
        results.append(snapshot(local_model))
    assert not moved(results[0], results[1])
    assert moved(results[0], results[2])


def test_the_backbone_learns_at_its_own_rate(attack_target) -> None:
    (full, loader), (tenth, _) = attack_target(), attack_target()
    before = snapshot(full)
    train(full, loader, steps(1, momentum=0), tuple(full.tags), NOW)
    train(tenth, loader, steps(1, momentum=0, backbone_lr_factor=0.1), tuple(tenth.tags), NOW)
    for key in ("backbone.conv1.weight", "backbone.bn1.bias", "heads.cls.weight"):
        whole, part = snapshot(full)[key] - before[key], snapshot(tenth)[key] - before[key]
        np.testing.assert_allclose(part, whole * (1 if key.startswith("heads") else 0.1), rtol=1e-3, atol=1e-7)
        assert np.abs(whole).max() > 1e-4


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The rate of every group at every step taken."""
    seen: list[list[float]] = []
    real = PlainSgd.step

    def step(self: PlainSgd, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return real(self, *args)

    monkeypatch.setattr(PlainSgd, "step", step)
    return seen


def test_the_schedule_runs_over_all_rounds_of_the_stage(attack_target, rates: list[list[float]]) -> None:
    local_model, loader = attack_target()
    spec = steps(4, lr=0.01, schedule="cosine", warmup=0.25, backbone_lr_factor=0.5)
    for number in (1, 2):
        train(local_model, loader, spec, tuple(local_model.tags), RoundContext(7, number, 2))
    want = []
    for step in range(8):
        done = step / 8
        factor = done / 0.25 if done < 0.25 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.25) / 0.75)
        want.append([0.005 * factor, 0.01 * factor])
    np.testing.assert_allclose(rates, want, rtol=1e-12)
    assert rate_factor(spec, 0.25) == 1
    assert rate_factor(spec, 1.0) == pytest.approx(0, abs=1e-12)


def test_a_constant_rate_stays(attack_target, rates: list[list[float]]) -> None:
    local_model, loader = attack_target()
    train(local_model, loader, steps(5), named("heads").keys(local_model.tags), NOW)
    assert rates == [[0.05]] * 5


@pytest.mark.parametrize(
    ("cases", "size", "sizes"),
    [(21, 8, [8, 8, 5]), (17, 8, [8, 9]), (16, 8, [8, 8]), (5, 1, [1] * 5), (9, 8, [9]), (3, 2, [3]), (4, 32, [4])],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_sees_every_case_once(
    attack_target, monkeypatch, cases: int, size: int, sizes: list[int], epochs: int
) -> None:
    local_model, _ = attack_target("table_linear", input={"kind": "table", "numeric": ["a"]}, plan=TABLE_PLAN)
    loader = Loader(cohort(torch.randn(cases, 1), {"cls": torch.arange(cases) % 3}), local_model_input("a"), CPU)
    seen: list[list[int]] = []
    real = loader.batches
    monkeypatch.setattr(
        loader, "batches", lambda groups: real([seen.append(group.tolist()) or group for group in groups])
    )
    facts = train(
        local_model, loader, Gradient(epochs=epochs, batch_size=size), named("heads").keys(local_model.tags), NOW
    )
    assert [len(group) for group in seen] == sizes * epochs
    assert facts["steps"] == len(sizes) * epochs
    flat = [case for group in seen for case in group]
    for at in range(epochs):
        assert sorted(flat[at * cases : (at + 1) * cases]) == list(range(cases))
    if epochs == 2 and cases > 4:
        assert flat[:cases] != flat[cases:]


def test_steps_are_counted_and_epochs_begin_anew_when_they_need_to(attack_target) -> None:
    local_model, loader = attack_target()
    for count in (1, 3, 4, 10):
        facts = train(local_model, loader, steps(count), named("heads").keys(local_model.tags), NOW)
        assert facts["steps"] == count


def test_a_last_batch_of_one_joins_the_batch_before_it() -> None:
    groups = shuffled(torch.arange(33), 16, torch.Generator().manual_seed(0))
    assert [len(group) for group in groups] == [16, 17]
    assert sorted(torch.cat(groups).tolist()) == list(range(33))
