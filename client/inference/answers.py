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
from fedgraft.common.base.disk import understood
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import read_json, write_atomic
from fedgraft.common.config.suggest import instead
from fedgraft.common.metrics.conformal import ConformalThreshold
from fedgraft.common.metrics.operating_point import OperatingPoint
from fedgraft.common.models.weights import find
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

_HALF, _ROUNDING = 0.5, 1e-9
Points = Mapping[str, OperatingPoint]
Sets = Mapping[str, Mapping[str, ConformalThreshold]]
"""By task and part of it (a label, or "" for all classes) from which log-odds on an answer is in a case's set."""
_TOGETHER = "all"
"""What stands for all sites together, where masks let nobody see one."""


def answer_row(
    reader: LoadedModel, said: Mapping[str, np.ndarray], out: Path, number: int, sets: Sets
) -> dict[str, str]:
    """The cells of one case, whose answers by task are `said`; masks go to `out` under the case's number.

    Probabilities have all the digits that there are: with four, the figures of a run could not be had again.
    """
    row: dict[str, str] = {}
    for task in (*reader.tasks, *reader.others):
        row |= _cells(task, said[task.name], points_of(reader, task.name), out / f"{task.name}/{number:06d}.png")
        row |= set_cells(task, said[task.name], sets.get(task.name, {}))
    return row


def sets_of(reader: LoadedModel, site: str) -> Sets:
    """The conformal thresholds that a run has chosen for a site, or for all under masks. InputError if it has none."""
    folder = find(reader.ref)
    kept = [one / "result.json" for one in (folder, folder.parent.parent)]  # a cluster's model lies in RUN/models/NAME
    path = next((one for one in kept if one.is_file()), kept[0])
    found: dict[str, dict[str, ConformalThreshold]] = {}
    sites: set[str] = set()
    with understood(path, "a run's results"):
        for task, parts in (read_json(path) if path.is_file() else {}).get("conformal", {}).items():
            for part, places in parts.items():
                sites |= {name or _TOGETHER for name in places}
                chosen = places.get("" if site == _TOGETHER else site)
                if chosen is not None:
                    known = {name: chosen[name] for name in ConformalThreshold.model_fields}
                    found.setdefault(task, {})[part] = ConformalThreshold.model_validate(known)
    if not sites:
        raise InputError(
            f"{folder} has no conformal sets.",
            fix="They need evaluate: {conformal: 0.9} in the study, and the folder of the run.",
        )
    if site not in sites:
        raise InputError(
            f"{path} has no site {site!r}{instead(site, sites)}.", fix=f"It has: {', '.join(sorted(sites))}."
        )
    if not found:
        raise InputError(
            f"{path}: {site} has no threshold: too few validation cases, or its policy shows no exact counts.",
            fix="Leave --sets out.",
        )
    return found


def said_of_sets(site: str, sets: Sets) -> Iterator[str]:
    """What the sets promise, in sentences."""
    for task, parts in sets.items():
        for part, one in parts.items():
            yield (
                f"{task}{f', {part}' * bool(part)}: the set has the true answer in {one.wanted:.0%} of new cases of "
                f"{site} that come as its {one.cases} validation cases did ({one.low:.0%} to {one.high:.0%}), on "
                "average over all of them and not for each class or patient"
            )


def set_cells(task: AnyTask, own: np.ndarray, parts: Mapping[str, ConformalThreshold]) -> dict[str, str]:
    """The set of classes of a case with probabilities `own`; of labels whether yes, no, either or neither is in it."""
    odds = logit(own)
    if isinstance(task, Task) and "" in parts:
        inside = odds >= parts[""].log_odds - _ROUNDING
        names = [name for name, is_in in zip(task.classes, inside.tolist(), strict=True) if is_in]
        return {f"{task.name} set": "; ".join(names)}
    if isinstance(task, Multilabel):
        return {
            f"{task.name}:{name} set": "; ".join(
                answer for answer, at in (("no", -odd), ("yes", odd)) if at >= parts[name].log_odds - _ROUNDING
            )
            for name, odd in zip(task.labels, odds.tolist(), strict=True)
            if name in parts
        }
    return {}


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
