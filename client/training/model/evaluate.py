"""Metric sums of the model as it is on one split of a site's cases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.training.device.autocast import half_precision, in_halves
from fedgraft.client.training.model.alike_passes import answers_of, groups, sizes_for
from fedgraft.client.training.model.errors import Diverged
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.metrics.plugged import asked_of, more_of_masks
from fedgraft.common.metrics.sums.mask_metrics import COLUMNS, mask_rows
from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_of
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)

BATCH = 128


Predictions = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By task answers and targets: logits (N, outputs), values (N,) in the unit, or of masks rows (N, 5 and those of
plug-ins' metrics), see `mask_rows`, with a 0 for each image whose mask is known and a -1 for others."""


def evaluate(local_model: LocalModel, loader: Loader, split: str) -> dict[str, TaskSums]:
    """Metric sums by task over the split's labelled cases. Raises Diverged if the model gives no finite numbers."""
    return summed(local_model, predictions(local_model, loader, split))


def summed(local_model: LocalModel, found: Predictions) -> dict[str, TaskSums]:
    """Metric sums by task, from what `predictions` found."""
    return {task: sums_of(local_model.tasks[task], *pair) for task, pair in found.items()}


def predictions(
    local_model: LocalModel,
    loader: Loader,
    split: str,
    *,
    labelled: bool = True,
    passes: bool = False,
    alike: bool = False,
) -> Predictions:
    """What the model says of the split's cases, or its labelled ones, in order. Raises Diverged if it is not finite.

    If that `passes`, zeros stand for what is not finite of a case: whether there is such a case does not show. If
    `alike`, what it says of a case does not depend on the others, not even in its last digit.
    """
    indices = loader.labelled(split) if labelled else loader.splits[split]
    more = local_model.more_metrics
    found = {task: [nothing(asked, more)] for task, asked in local_model.tasks.items()}
    local_model.model.eval()
    body = loader.body(local_model.model)

    def answers_to(inputs: Tensor) -> Mapping[str, Tensor]:
        with half_precision(local_model.device):
            return in_halves(body, inputs)

    in_passes = [(group, len(group)) for group in in_order(indices, BATCH)]
    if alike:
        answers_alone = answers_of(lambda inputs: tuple(answers_to(inputs).values()))
        in_passes = groups(indices, sizes_for(local_model, loader, body, "answers", answers_alone))
    with torch.inference_mode():
        for batch, (_, count) in zip(loader.batches([group for group, _ in in_passes]), in_passes, strict=True):
            for task, scores in answers_to(batch.inputs).items():
                asked, target = local_model.tasks[task], batch.targets[task][:count].cpu().numpy()
                given = scores[:count].float().cpu().numpy()
                finite = np.isfinite(given).reshape(len(given), -1).all(axis=1)
                if not (passes or finite.all()):
                    raise Diverged
                given[~finite] = 0
                if isinstance(asked, Segmentation):
                    spacings = loader.spacings[batch.indices[:count]].numpy()
                    found[task].append(of_masks(asked, given, target, (spacings, more)))
                else:
                    found[task].append(_answered(asked, given, target))
    return {
        task: (np.concatenate([answers for answers, _ in pairs]), np.concatenate([target for _, target in pairs]))
        for task, pairs in found.items()
    }


def of_masks(
    task: Segmentation, given: np.ndarray, target: np.ndarray, more: tuple[np.ndarray, tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """What counts of each mask, with the images' spacings and the metrics that are asked for besides.

    Masks of all cases would not fit into memory; this does.
    """
    spacings, names = more
    rows = mask_rows(given, target, spacings)
    if names:
        rows = np.concatenate([rows, more_of_masks(names, task, given, target)], axis=1)
    return rows, np.minimum(target[:, 0, 0], 0).astype(np.int64)


def _answered(task: AnyTask, given: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the head gave, in the words of `Predictions`."""
    if isinstance(task, Regression):
        return given[:, 0].astype(np.float64) * task.std + task.mean, target
    return given, target


def nothing(task: AnyTask, more: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Answers and targets of no cases, of the shapes that the task's metrics take."""
    if isinstance(task, Segmentation):
        more_columns = sum(one.numbers(task) for one in asked_of(more, task))
        return np.zeros((0, len(COLUMNS) + more_columns)), np.zeros(0, np.int64)
    if isinstance(task, Regression):
        return np.zeros(0), np.zeros(0, np.float32)
    answers = np.zeros((0, task.outputs), np.float32)
    return answers, (answers.copy() if isinstance(task, Multilabel) else np.zeros(0, np.int64))
