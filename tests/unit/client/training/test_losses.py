"""The loss leaves out what is not known and weighs as asked; augmentation does what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.training.augment import augment, drawn
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.supervised import supervised
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.study.plan import Recalibrate, Role, named
from fedgraft.common.study.stages.training import Augment
from helpers.work import CPU, NOW, MakeStudy, cohort, images, moved, snapshot, steps


def test_cases_without_a_label_contribute_nothing() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    target = torch.tensor([0, -1, 2, -1, 1, -1])
    known = target >= 0
    loss = supervised({"cls": logits}, {"cls": target}, {})
    assert loss.item() == pytest.approx(F.cross_entropy(logits[known], target[known]).item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[~known], torch.zeros(3, 3))
    assert (logits.grad[known] != 0).all()


def test_labels_that_are_all_known_need_no_looking_for() -> None:
    logits, target, weights = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([1.0, 2.0, 0.5])
    for by_class in ({}, {"cls": weights}):
        looked_for = supervised({"cls": logits}, {"cls": target}, by_class)
        torch.testing.assert_close(supervised({"cls": logits}, {"cls": target}, by_class, {"cls"}), looked_for)


def test_a_task_without_labels_moves_nothing_and_is_no_nan() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    for weights in ({}, {"cls": torch.zeros(3)}):
        loss = supervised({"cls": logits}, {"cls": torch.full((4,), -1)}, weights)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_unlabelled_cases_do_not_change_what_is_trained(attack_target, make_study: MakeStudy) -> None:
    inputs, known = images(27)
    some = known.clone()
    some[10:21] = -1
    (whole, loader) = attack_target(labels=some)
    part, study = attack_target()[0], make_study(model={"backbone": "slim_resnet"})
    alone = Loader(cohort(inputs[:10], {"cls": known[:10]}), study.input, CPU)
    facts = train(whole, loader, steps(), tuple(whole.tags), NOW)
    train(part, alone, steps(), tuple(part.tags), NOW)
    assert facts["examples"] == 10
    assert not moved(snapshot(whole), snapshot(part))


def test_the_loss_of_several_tasks_is_their_sum() -> None:
    outputs = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    targets = {"a": torch.tensor([0, 1, 2, -1, 0]), "b": torch.tensor([-1, -1, 1, 0, 1])}
    weights = {"b": torch.tensor([0.5, 2.0])}
    want = F.cross_entropy(outputs["a"][:3], targets["a"][:3], reduction="sum")
    want = (want + F.cross_entropy(outputs["a"][4:], targets["a"][4:])) / 4
    want = want + F.cross_entropy(outputs["b"][2:], targets["b"][2:], weights["b"])
    assert float(supervised(outputs, targets, weights)) == pytest.approx(float(want), rel=1e-6)


def test_every_head_learns_from_its_own_labels(attack_target) -> None:
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r", "m"]}]
    local_model, loader = attack_target(tasks=tasks)
    inputs, known = images(27)
    loader = Loader(cohort(inputs, {"cls": known, "side": torch.full((27,), -1)}), loader._spec, CPU)
    before = snapshot(local_model)
    train(local_model, loader, steps(weight_decay=0), tuple(local_model.tags), NOW)
    gone = moved(before, snapshot(local_model))
    assert "heads.cls.weight" in gone
    assert not {"heads.side.weight", "heads.side.bias"} & gone


def test_balanced_classes_count_the_same(attack_target, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0] * 12 + [1] * 6 + [-1] * 3 + [2] * 6)  # class 2 is not among the training cases
    local_model, loader = attack_target(labels=labels)
    seen: list[Tensor] = []
    real = supervised
    monkeypatch.setattr(
        "fedgraft.client.training.losses.supervised.supervised",
        lambda o, t, w, *more: seen.append(w["cls"]) or real(o, t, w, *more),
    )
    train(local_model, loader, steps(1, class_weights="balanced"), named("heads").keys(local_model.tags), NOW)
    assert seen[0].tolist() == [0.75, 1.5, 0.0]


def test_clipping_bounds_the_step(attack_target) -> None:
    local_model, loader = attack_target()
    before = snapshot(local_model)
    keys = [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]
    train(local_model, loader, steps(1, lr=1.0, momentum=0, clip_norm=0.01), keys, NOW)
    after = snapshot(local_model)
    assert math.sqrt(sum(float(np.square(after[k] - before[k]).sum()) for k in keys)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("count", [1, 8])
def test_a_diverging_run_says_so(attack_target, count: int) -> None:
    local_model, loader = attack_target()
    with pytest.raises(Diverged):
        train(local_model, loader, steps(count, lr=1e38, weight_decay=1000), tuple(local_model.tags), NOW)


def test_too_few_cases(attack_target, make_study: MakeStudy) -> None:
    local_model, _ = attack_target()
    inputs, known = images(1)
    one = Loader(cohort(inputs, {"cls": known}), make_study().input, CPU)
    none = Loader(cohort(inputs, {"cls": torch.tensor([-1])}), make_study().input, CPU)
    train(local_model, one, steps(1), named("heads").keys(local_model.tags), NOW)
    for loader, keys in ((one, tuple(local_model.tags)), (none, named("heads").keys(local_model.tags))):
        with pytest.raises(TooFewCases):
            train(local_model, loader, steps(1), keys, NOW)
    with pytest.raises(TooFewCases):
        recalibrate(local_model, one, Recalibrate())


# Augmentation.


def test_augmentation_is_seeded_and_changes_every_image() -> None:
    x = torch.randn(16, 1, 32, 32)
    first, again, other = (augment(x, Augment(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(first, x, strict=True))
    change = [tuple((a - b).flatten()[:3].tolist()) for a, b in zip(first, x, strict=True)]
    assert len(set(change)) == 16


def test_each_augmentation_does_what_it_says() -> None:
    still = {"flip": False, "shift": 0, "rotate_deg": 0, "contrast": 0, "brightness": 0}
    x = torch.rand(32, 3, 16, 16)

    def changed(**one: Any) -> Tensor:
        return augment(x, Augment(**(still | one)), torch.Generator().manual_seed(0))

    assert torch.equal(changed(), x)
    flipped = changed(flip=True)
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(flipped, x, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 5 < sum(mirrored) < 27
    offset = changed(brightness=0.5) - x
    assert torch.allclose(offset, offset[:, :1, :1, :1].expand_as(x), atol=1e-5)
    assert 0.2 < offset.abs().max() <= 0.5
    ratio = changed(contrast=0.5) / x
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(x), rtol=1e-3)
    assert 0.5 <= ratio.min() < 0.8
    assert 1.2 < ratio.max() <= 1.5


def test_a_shift_is_a_share_of_the_width() -> None:
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 16, 16] = 1
    spec = Augment(flip=False, shift=0.25, rotate_deg=0, contrast=0, brightness=0)
    y = augment(x, spec, torch.Generator().manual_seed(0))
    place = (y * torch.arange(32.0)).sum((1, 2, 3)) / y.sum((1, 2, 3))
    assert 6 < (place - 16).abs().max() <= 8.01


def test_augmentation_keeps_the_grain_of_the_images() -> None:
    """Smoothed training images give norm layers statistics that no image has when the model is used."""
    noise = torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = Augment(contrast=0.0, brightness=0.0)
    changed = augment(noise, plain, torch.Generator().manual_seed(1))
    middle = (slice(None), slice(None), slice(12, 52), slice(12, 52))
    kept = changed[middle].var() / noise[middle].var()
    print(f"share of the variance of white noise that is kept: {kept:.2f}")
    assert 0.6 < kept < 1.1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("still", [False, True])
def test_augmentation_has_the_bits_of_the_plain_sums_and_leaves_its_images_alone(channels: int, still: bool) -> None:
    """Contrast and brightness are worked out in place; nothing else in the process may see that."""
    x = torch.randn(8, channels, 24, 20, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    spec = Augment(flip=False, shift=0, rotate_deg=0) if still else Augment()
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:1].expand(8, -1, -1, -1)):
        kept = given.clone()
        found = augment(given, spec, torch.Generator().manual_seed(3))
        changes, turned = drawn(8, spec, torch.Generator().manual_seed(3)), given
        if changes.theta is not None:
            grid = F.affine_grid(changes.theta, list(given.shape), align_corners=False)
            turned = F.grid_sample(given, grid, mode="bicubic", padding_mode="border", align_corners=False)
        wanted = turned * changes.contrast.view(8, 1, 1, 1) + changes.brightness.view(8, 1, 1, 1)
        assert torch.equal(found, wanted)
        assert torch.equal(given, kept)
    assert torch.equal(x, before)
