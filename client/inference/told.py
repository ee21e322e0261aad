"""What a model says of one case, as cells of a table; masks as files beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

import numpy as np
from PIL import Image

from fedgraft.client.inference.model import Reader
from fedgraft.common.base.files import write_atomic
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

_HALF = 0.5


def told(reader: Reader, said: Mapping[str, np.ndarray], out: Path, number: int) -> dict[str, str]:
    """The cells of one case, whose answers by task are `said`; masks go to `out` under the case's number.

    Probabilities have all the digits that there are: with four, the figures of a run could not be had again.
    """
    row: dict[str, str] = {}
    for task in (*reader.tasks, *reader.others):
        row |= _cells(task, said[task.name], out, number)
    return row


def _cells(task: AnyTask, own: np.ndarray, out: Path, number: int) -> dict[str, str]:
    match task:
        case Task():
            shares = {f"{task.name}:{name}": repr(float(share)) for name, share in zip(task.classes, own, strict=True)}
            return {task.name: task.classes[int(own.argmax())], **shares}
        case Multilabel():
            pairs = list(zip(task.labels, own.tolist(), strict=True))
            yes = "; ".join(name for name, share in pairs if share > _HALF)
            return {task.name: yes, **{f"{task.name}:{name}": repr(share) for name, share in pairs}}
        case Regression():
            return {f"{task.name} ({task.unit})": repr(float(own))}
        case Segmentation():
            path = f"{task.name}/{number:06d}.png"
            write_atomic(out / path, _png(own), private=True)
            return {task.name: path}
        case _:
            assert_never(task)


def _png(mask: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(target, format="PNG")
    return target.getvalue()
