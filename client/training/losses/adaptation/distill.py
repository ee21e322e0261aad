"""The answers of a finished model as what to learn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.training.losses.base import LossFunction, StepContext, Visit
from fedgraft.common.methods.memory.given import Taught
from fedgraft.common.models.model import load_arrays
from fedgraft.common.study.stages.losses import Distill
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression


def distill_loss(spec: Distill, visit: Visit) -> LossFunction:
    """Summed over tasks, of all the site's cases, with labels or without; both see the very same images."""
    teacher, tasks = visit.local_model.teacher(spec.teacher), visit.local_model.tasks
    taught = visit.visit_context.came.get("", Taught)
    assert taught is not None  # it came, or the instruction was refused
    load_arrays(teacher, taught.entries)
    teacher.eval()

    def loss(step_context: StepContext) -> Tensor:
        with torch.no_grad():
            answers: Mapping[str, Tensor] = teacher(step_context.target.batch.inputs)
        outputs = step_context.target.outputs
        parts = [distilled(tasks[name], own, answers[name], spec.temperature) for name, own in outputs.items()]
        return torch.stack(parts).sum()

    return loss


def distilled(task: AnyTask, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean over cases of the loss against a teacher's answers (N, outputs), times the task's weight.

    t^2 KL(softmax(teacher / t) || softmax(student / t)) (Hinton et al. 2015, whose t^2 keeps the gradient's size); the
    same of each label as a class of two; Huber's loss of a value in units of `std`.
    """
    student, teacher = student.float(), teacher.float()
    if isinstance(task, Regression):
        return task.weight * F.huber_loss(student, teacher)
    soft, hard = student / temperature, teacher / temperature
    if isinstance(task, Multilabel):
        each = F.binary_cross_entropy_with_logits(soft, torch.sigmoid(hard), reduction="none")
        least = F.binary_cross_entropy_with_logits(hard, torch.sigmoid(hard), reduction="none")
        return task.weight * temperature**2 * (each - least).mean()
    gap = F.kl_div(soft.log_softmax(1), hard.log_softmax(1), reduction="batchmean", log_target=True)
    return task.weight * temperature**2 * gap
