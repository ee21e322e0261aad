"""What a student learns from a teacher: the loss by hand, every case by itself, and only the student moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.adaptation.distill import distilled
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.checks.check import check
from fedgraft.common.methods.memory.given import Taught
from fedgraft.common.models.initialise import make_model, make_teacher
from fedgraft.common.models.model import state_arrays
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.study import Study, parse_study
from fedgraft.common.study.tasks import Multilabel, Regression, Task
from helpers.work import CPU, NOW, came, cohort, images, moved, snapshot, steps

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.05}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classes_are_learnt_by_softened_divergence() -> None:
    student, teacher = draw(0, 6, 3), 3 * draw(1, 6, 3)
    hard, soft = softmax(teacher.numpy() / 4, 1), log_softmax(student.numpy() / 4, 1)
    by_hand = 16 * np.mean(np.sum(hard * (np.log(hard) - soft), axis=1))
    found = distilled(Task(classes=("a", "b", "c"), weight=0.5), student, teacher, 4.0)
    assert float(found) == pytest.approx(0.5 * by_hand, rel=1e-5)
    assert float(distilled(Task(classes=("a", "b", "c")), teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-6)


def test_labels_are_learnt_each_alone_and_values_in_units_of_their_deviation() -> None:
    student, teacher = draw(2, 5, 2), draw(3, 5, 2)
    p, q = expit(teacher.numpy() / 2), expit(student.numpy() / 2)
    by_hand = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    task = Multilabel(name="m", kind="multilabel", labels=("x", "y"))
    assert float(distilled(task, student, teacher, 2.0)) == pytest.approx(by_hand, rel=1e-5)
    off = (student - teacher).numpy()[:, :1]
    huber = np.where(np.abs(off) < 1, off**2 / 2, np.abs(off) - 0.5).mean()
    size = Regression(name="s", kind="regression", unit="mm", mean=30, std=10)
    assert float(distilled(size, student[:, :1], teacher[:, :1], 2.0)) == pytest.approx(huber, rel=1e-5)


@pytest.mark.parametrize("kind", ["classes", "labels", "value"])
def test_no_case_weighs_on_another(kind: str) -> None:
    """The mean over a batch is the mean of the means over its halves, and so are the gradients."""
    task = {
        "classes": Task(classes=("a", "b")),
        "labels": Multilabel(name="m", kind="multilabel", labels=("x", "y")),
        "value": Regression(name="s", kind="regression", unit="mm", mean=0, std=1),
    }[kind]
    student, teacher = draw(4, 8, 2).requires_grad_(True), draw(5, 8, 2)
    whole = distilled(task, student, teacher, 3.0)
    halves = [distilled(task, student[at : at + 4], teacher[at : at + 4], 3.0) for at in (0, 4)]
    (one,), (two,) = (torch.autograd.grad(loss, student) for loss in (whole, sum(halves) / 2))
    torch.testing.assert_close(one, two)


def a_study(teacher: dict[str, Any], *more: dict[str, Any], **changes: Any) -> Study:
    loss = {"kind": "distill", "teacher": teacher}
    stage = {"name": "train", "local": {"kind": "gradient", **LOCAL, "losses": [loss, *more]} | changes}
    stage |= {"share": "all", "aggregate": {"kind": "mean"}}
    tasks = [{"name": "cls", "classes": ["left", "right", "middle"]}]
    return parse_study({"name": "x", "tasks": tasks, "input": {"kind": "image", "size": 32}, "plan": [stage]}, "here")


TEACHER_MODEL = {"weights": "somewhere"}


def attack_target(study: Study, *, labelled: bool = True) -> tuple[LocalModel, Loader, VisitContext]:
    local_model = LocalModel(study, CPU)
    inputs, targets = images(24)
    loader = Loader(cohort(inputs, {"cls": targets if labelled else torch.full_like(targets, -1)}), study.input, CPU)
    given = state_arrays(make_teacher(study.model_copy(update={"seed": 99}), Teacher(weights="somewhere")))
    return local_model, loader, VisitContext(came=came(Taught({key: array.copy() for key, array in given.items()})))


def test_a_student_comes_closer_to_its_teacher_without_a_single_label() -> None:
    study = a_study(TEACHER_MODEL)
    local_model, loader, visit_context = attack_target(study, labelled=False)
    (batch,) = loader.batches([torch.arange(24)])
    spec = steps(20, losses=study.plan[0].local.losses, lr=0.02)
    changes = list(local_model.parameters)
    before = snapshot(local_model)

    def gap() -> float:
        local_model.model.eval()
        with torch.no_grad():
            answers = local_model.teacher(study.plan[0].local.losses[0].teacher)(batch.inputs)["cls"]
            return float(distilled(study.tasks[0], local_model.model(batch.inputs)["cls"], answers, 2.0))

    given = visit_context.came.get("", Taught).entries  # type: ignore[union-attr]
    train(
        local_model, loader, steps(1, losses=spec.losses, lr=1e-9), changes, replace(NOW, visit_context=visit_context)
    )
    first = gap()
    figures = train(local_model, loader, spec, changes, replace(NOW, visit_context=visit_context))
    assert figures["examples"] == 24
    assert gap() < 0.5 * first
    assert moved(before, snapshot(local_model)) == set(changes)
    teacher = state_arrays(local_model.teacher(study.plan[0].local.losses[0].teacher))
    assert all(np.array_equal(teacher[key], given[key]) for key in given)


def test_a_teacher_is_another_network_than_the_student() -> None:
    study = a_study({"weights": "somewhere", "backbone": "shufflenet_v2_x0_5"})
    assert study.architectures == ("slim_resnet", "shufflenet_v2_x0_5")
    shapes = LocalModel(study, CPU).teacher_forms(study.plan[0])
    assert "backbone.conv1.0.weight" in shapes
    assert make_model(study).tags().keys() != shapes.keys()


@pytest.mark.parametrize(
    ("teacher", "more", "changes", "says"),
    [
        (TEACHER_MODEL, [{"kind": "distill", "teacher": TEACHER_MODEL}], {}, "one stage has one teacher"),
        (
            TEACHER_MODEL,
            [],
            {"private": {"epsilon": 1, "sample_rate": 0.2}, "fixed_norm_stats": True},
            "not built for private work",
        ),
    ],
)
def test_what_a_teacher_cannot_do_is_refused(teacher, more, changes, says) -> None:
    study = a_study(teacher, *more, **changes)
    assert any(says in fault for fault in check(study, make_model(study).tags()))
