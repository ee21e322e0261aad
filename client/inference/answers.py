"""What a model says of one case, as cells of a table; masks as files beside it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import assert_never

import numpy as np
from PIL import Image
from scipy.special import logit

from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.files import write_atomic
from fedgraft.common.metrics.operating_point import OperatingPoint
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

_HALF, _ROUNDING = 0.5, 1e-9
Points = Mapping[str, OperatingPoint]


def answer_row(reader: LoadedModel, said: Mapping[str, np.ndarray], out: Path, number: int) -> dict[str, str]:
    """The cells of one case, whose answers by task are `said`; masks go to `out` under the case's number.

    Probabilities have all the digits that there are: with four, the figures of a run could not be had again.
    """
    row: dict[str, str] = {}
    for task in (*reader.tasks, *reader.others):
        row |= _cells(task, said[task.name], points_of(reader, task.name), out / f"{task.name}/{number:06d}.png")
    return row


def thresholds(reader: LoadedModel) -> Iterator[str]:
    """From which probability on the model's tasks are said to be positive, in sentences."""
    for task, points in reader.manifest.operating_points.items():
        for point in points:
            yield (
                f"{task}: {point.name} from a probability of {point.probability:.3g} on, by {point.rule} on "
                f"{point.positives} positive and {point.negatives} negative validation cases"
            )


def _cells(task: AnyTask, own: np.ndarray, points: Points, mask: Path) -> dict[str, str]:
    match task:
        case Task():
            shares = {f"{task.name}:{name}": repr(float(share)) for name, share in zip(task.classes, own, strict=True)}
            return {task.name: chosen_class(task, own, points), **shares}
        case Multilabel():
            shares = {f"{task.name}:{name}": repr(share) for name, share in zip(task.labels, own.tolist(), strict=True)}
            return {task.name: "; ".join(positive_labels(task, own, points)), **shares}
        case Regression():
            return {f"{task.name} ({task.unit})": repr(float(own))}
        case Segmentation():
            write_atomic(mask, png(own * np.uint8(255)), private=True)
            return {task.name: f"{mask.parent.name}/{mask.name}"}
        case _:
            assert_never(task)


def chosen_class(task: Task, own: np.ndarray, points: Points) -> str:
    """The class said of a case with probabilities (classes,): the likeliest, or as an operating point has it."""
    if (point := points.get(task.classes[1])) is not None:
        return task.classes[int(_is_positive(float(own[1]), point))]
    return task.classes[int(own.argmax())]


def positive_labels(task: Multilabel, own: np.ndarray, points: Points) -> list[str]:
    """The labels that are said of a case with probabilities (labels,)."""
    return [
        name for name, share in zip(task.labels, own.tolist(), strict=True) if _is_positive(share, points.get(name))
    ]


def points_of(reader: LoadedModel, task: str) -> Points:
    """The operating points of a task, by the class or label that they are of."""
    return {point.name: point for point in reader.manifest.operating_points.get(task, ())}


def _is_positive(share: float, point: OperatingPoint | None) -> bool:
    if point is None:
        return share > _HALF
    return float(logit(share)) >= point.log_odds - _ROUNDING


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W) or (H, W, 3) uint8 as a PNG file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="PNG")
    return target.getvalue()
