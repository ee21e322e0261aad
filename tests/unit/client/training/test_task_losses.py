"""Losses of labels, values and masks against naive twins; what is not known counts for nothing; masks move alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.dp.gradients import private_heads as heads
from fedgraft.client.training.augment import augmented
from fedgraft.client.training.model.loader import Batch
from fedgraft.client.training.model.task_losses import case_losses, label_mass, task_loss
from fedgraft.common.study.plan import Augment
from fedgraft.common.study.tasks import (
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

NAN = math.nan
LABELS = Multilabel(name="signs", kind="multilabel", labels=("a", "b"))
VALUE = Regression(name="size", kind="regression", unit="mm", mean=20.0, std=10.0)
MASK = Segmentation(name="lesion", kind="segmentation")
CLASSES = Task(name="cls", classes=("x", "y", "z"))


def of_labels() -> tuple[Tensor, Tensor, float]:
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0], [-0.3, 0.1]])
    target = torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]])
    terms = []
    for (row, label), value in np.ndenumerate(target.numpy()):
        if not math.isnan(value):
            p = 1 / (1 + math.exp(-float(logits[row, label])))
            terms.append(-math.log(p if value == 1 else 1 - p))
    return logits, target, sum(terms) / 3


def of_values() -> tuple[Tensor, Tensor, float]:
    outputs, target = torch.tensor([[0.2], [3.0], [0.0]]), torch.tensor([25.0, 10.0, NAN])
    small, large = 0.2 - 0.5, 3.0 + 1.0
    return outputs, target, (0.5 * small**2 + (abs(large) - 0.5)) / 2


def of_masks() -> tuple[Tensor, Tensor, float]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 4))
    target = (rng.uniform(size=(3, 4, 4)) < 0.4).astype(np.int8)
    target[1] = -1
    target[2] = 0
    losses = []
    for at in (0, 2):
        p, y = 1 / (1 + np.exp(-logits[at])), target[at].astype(float)
        entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        losses.append(entropy + 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    return torch.tensor(logits, dtype=torch.float32), torch.from_numpy(target), float(np.mean(losses))


KINDS = [(LABELS, of_labels), (VALUE, of_values), (MASK, of_masks)]


@pytest.mark.parametrize(("task", "example"), KINDS, ids=lambda value: getattr(value, "kind", ""))
def test_the_loss_is_that_of_a_naive_twin(task: Any, example: Any) -> None:
    outputs, target, want = example()
    assert float(task_loss(task, outputs, target)) == pytest.approx(want, rel=1e-5)
    heavier = task.model_copy(update={"weight": 2.5})
    assert float(task_loss(heavier, outputs, target)) == pytest.approx(2.5 * want, rel=1e-5)


@pytest.mark.parametrize(("task", "example"), KINDS, ids=lambda value: getattr(value, "kind", ""))
def test_what_is_not_known_moves_nothing(task: Any, example: Any) -> None:
    outputs, target, _ = example()
    outputs.requires_grad_(True)
    unknown = torch.full_like(target, -1 if target.dtype == torch.int8 else NAN)
    loss = task_loss(task, outputs, unknown)
    loss.backward()
    assert float(loss) == 0
    assert not outputs.grad.any()
    outputs.grad = None
    task_loss(task, outputs, target).backward()
    nothing = (target < 0).flatten(1).all(1) if target.dtype == torch.int8 else target.isnan()
    assert outputs.grad.isfinite().all()
    assert not outputs.grad.reshape(target.shape)[nothing].any()
    assert outputs.grad.reshape(target.shape)[~nothing].any()


@pytest.mark.parametrize(("task", "example"), KINDS, ids=lambda value: getattr(value, "kind", ""))
def test_a_cases_own_loss_depends_on_no_other_case(task: Any, example: Any) -> None:
    outputs, target, _ = example()
    each = case_losses(task, outputs, target)
    alone = torch.cat([case_losses(task, outputs[at : at + 1], target[at : at + 1]) for at in range(3)])
    torch.testing.assert_close(each, alone)
    counts = 3 if task is LABELS else 2
    assert float(each.sum()) / counts == pytest.approx(float(task_loss(task, outputs, target)), rel=1e-5)


@pytest.mark.parametrize(("task", "example"), KINDS, ids=lambda value: getattr(value, "kind", ""))
def test_shares_of_a_batch_in_parts_add_up_to_its_loss(task: Any, example: Any) -> None:
    """As a GPU that is too small for the whole works on it, whatever is missing in which part."""
    outputs, target, want = example()
    masses = [float(label_mass(task, target[part])) for part in (slice(0, 1), slice(1, 3))]
    losses = [float(task_loss(task, outputs[part], target[part])) for part in (slice(0, 1), slice(1, 3))]
    assert sum(mass * loss for mass, loss in zip(masses, losses, strict=True)) / sum(masses) == pytest.approx(
        want, rel=1e-5
    )


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_closed_form_slopes_are_those_of_autograd(weight: float) -> None:
    outputs = {"signs": of_labels()[0], "size": of_values()[0], "cls": torch.randn(3, 3)}
    targets = {"signs": of_labels()[1], "size": of_values()[1], "cls": torch.tensor([0, -1, 2])}
    tasks = {task.name: task.model_copy(update={"weight": weight}) for task in (LABELS, VALUE, CLASSES)}
    found = heads.errors(outputs, Batch(torch.zeros(3, 1), targets, torch.arange(3)), tasks)
    for name, answers in outputs.items():
        answers.requires_grad_(True)
        case_losses(tasks[name], answers, targets[name]).sum().backward()
        assert answers.grad is not None
        torch.testing.assert_close(found[name], answers.grad.T)


def test_a_mask_moves_with_its_image_and_an_unknown_one_stays_unknown() -> None:
    inside = torch.zeros(16, 24, 24, dtype=torch.int8)
    inside[:, 6:11, 4:9] = 1
    images = inside[:, None].float() * 10
    targets = {"lesion": inside.clone(), "cls": torch.arange(16)}
    targets["lesion"][3] = -1
    batch = Batch(images, targets, torch.arange(16))
    spec = Augment(flip=True, shift=0.15, rotate_deg=25, contrast=0, brightness=0)
    changed = augmented(batch, spec, torch.Generator().manual_seed(1))
    assert not torch.equal(changed.inputs, images)
    for at in set(range(16)) - {3}:
        image, mask = changed.inputs[at, 0] > 5, changed.targets["lesion"][at] == 1
        overlap = 2 * int((image & mask).sum()) / int(image.sum() + mask.sum())
        assert overlap > 0.85
    assert (changed.targets["lesion"][3] == -1).all()
    assert torch.equal(changed.targets["cls"], torch.arange(16))
    assert len({changed.targets["lesion"][at].numpy().tobytes() for at in range(16)}) > 8
