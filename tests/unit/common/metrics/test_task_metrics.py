"""Sums for labels, values and masks against brute force; they merge exactly, travel, and cannot be forged at ease."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.hausdorff import hausdorff_95
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums, dice, mask_rows
from fedgraft.common.metrics.sums.task_metrics import (
    TaskSums,
    add,
    plain,
    read_sums,
    sums_from,
    zero,
)
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.secure_aggregation.summing import metric_shapes, metric_summands, pooled_metrics
from fedgraft.common.study.tasks import (
    Multilabel,
    Regression,
    Segmentation,
    Task,
)
from fedgraft.server.rounds.scores import Scores

LABELS = Multilabel(name="signs", kind="multilabel", labels=("a", "b", "c"))
VALUE = Regression(name="size", kind="regression", unit="mm", mean=20.0, std=10.0)
MASK = Segmentation(name="lesion", kind="segmentation")
CLASSES = Task(name="cls", classes=("x", "y", "z"))
TASKS = (CLASSES, LABELS, VALUE, MASK)


def blob(rng: np.random.Generator, size: int = 24) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    (cy, cx), radius = rng.uniform(5, size - 5, 2), rng.uniform(2, 5)
    return np.hypot(y - cy, x - cx) + rng.normal(0, 0.6, (size, size)) < radius


def naive_distance(one: np.ndarray, other: np.ndarray, spacing: float) -> float:
    def outline(mask: np.ndarray) -> list[tuple[int, int]]:
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return [tuple(at) for at in np.argwhere(mask & ~inner)]

    ends = outline(one), outline(other)
    ways = [[min(math.dist(p, q) for q in ends[1 - way]) for p in ends[way]] for way in (0, 1)]
    return max(float(np.percentile(way, 95)) for way in ways) * spacing


def masks(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets and spacings with all that can occur: unknown, empty, missed, alarms, spacing not stated."""
    logits, targets = np.zeros((cases, 24, 24)), np.zeros((cases, 24, 24), np.int8)
    for at in range(cases):
        kind = at % 7
        guess, true = blob(rng), blob(rng)
        targets[at] = -1 if kind == 0 else true if kind in (1, 2, 3, 6) else 0
        drawn = guess | (true & (kind == 2)) if kind in (1, 2, 4, 6) else np.zeros_like(guess)
        logits[at] = np.where(drawn, 2.0, -1.0) + rng.normal(0, 0.1, (24, 24))
    return logits, targets, np.where(np.arange(cases) % 7 == 6, 0.0, rng.uniform(0.5, 4, cases))


def answers(rng: np.random.Generator, task: Any, cases: int) -> tuple[np.ndarray, np.ndarray]:
    match task:
        case Segmentation():
            logits, targets, spacings = masks(rng, cases)
            return mask_rows(logits, targets, spacings), np.minimum(targets[:, 0, 0], 0)
        case Regression():
            truth = np.where(rng.random(cases) < 0.2, np.nan, rng.normal(20, 10, cases)).astype(np.float32)
            return np.nan_to_num(truth, nan=5.0) + rng.normal(1, 3, cases), truth
        case Multilabel():
            truth = (rng.random((cases, 3)) < 0.4).astype(np.float32)
            logits = rng.normal(size=(cases, 3)) + 1.5 * truth
            return logits, np.where(rng.random((cases, 3)) < 0.3, np.nan, truth)
        case _:
            truth = rng.integers(-1, 3, cases)
            return rng.normal(size=(cases, 3)), truth


def sums_of(rng: np.random.Generator, task: Any, cases: int = 70) -> TaskSums:
    from fedgraft.common.metrics.sums import task_metrics

    return task_metrics.sums_of(task, *answers(rng, task, cases))


@pytest.mark.parametrize("seed", range(12))
def test_hausdorff_is_that_of_all_pairs_of_outline_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = blob(rng), blob(rng)
    if seed == 11:
        one[0, :] = True  # an outline at the image's edge
    assert hausdorff_95(one, other, 2.5) == pytest.approx(naive_distance(one, other, 2.5), rel=1e-9)
    assert hausdorff_95(one, one, 2.5) == 0


def test_hausdorff_is_nothing_where_nothing_is_drawn_or_pixels_have_no_size() -> None:
    rng = np.random.default_rng(0)
    mask, none = blob(rng), np.zeros((24, 24), bool)
    assert math.isnan(hausdorff_95(mask, none, 1.0))
    assert math.isnan(hausdorff_95(none, mask, 1.0))
    assert math.isnan(hausdorff_95(mask, mask, 0.0))


def test_figures_of_masks_are_those_counted_pixel_by_pixel() -> None:
    logits, targets, spacings = masks(np.random.default_rng(3), 70)
    shares, distances, losses, missed, alarms, findings, pixels = [], [], [], 0, 0, 0, [0, 0, 0]
    for score, target, spacing in zip(logits, targets, spacings, strict=True):
        if target[0, 0] < 0:
            continue
        pairs = [(s > 0, t == 1) for s, t in zip(score.ravel(), target.ravel(), strict=True)]
        both, drawn, true = (sum(map(f, pairs)) for f in (all, lambda p: p[0], lambda p: p[1]))
        pixels = [a + b for a, b in zip(pixels, (both, drawn, true), strict=True)]
        findings += true > 0
        missed += true > 0 and drawn == 0
        alarms += true == 0 and drawn > 0
        chance = 1 / (1 + np.exp(-score))
        losses.append(-np.log(np.where(target == 1, chance, 1 - chance)).mean())
        if true:
            shares.append(2 * both / (drawn + true))
        if true and drawn and spacing > 0:
            distances.append(naive_distance(score > 0, target == 1, spacing))
    values = MaskSums.of(mask_rows(logits, targets, spacings)).values()
    assert values["n"] == len(losses) == 60
    assert missed > 0
    assert alarms > 0
    assert 0 < len(distances) < findings - missed
    assert values["dice"] == pytest.approx(np.mean(shares), rel=1e-12)
    assert values["dice_pooled"] == pytest.approx(2 * pixels[0] / (pixels[1] + pixels[2]), rel=1e-12)
    assert values["hd95_mm"] == pytest.approx(np.mean(distances), rel=1e-9)
    assert values["missed"] == missed / findings
    assert values["alarms"] == alarms / (60 - findings)
    assert values["loss"] == pytest.approx(np.mean(losses), rel=1e-9)


def test_figures_of_values_are_scikit_learns() -> None:
    guess, truth = answers(np.random.default_rng(1), VALUE, 90)
    known = ~np.isnan(truth)
    values = ValueSums.of(guess, truth).values()
    assert values["n"] == known.sum() < 90
    assert values["mae"] == pytest.approx(mean_absolute_error(truth[known], guess[known]), rel=1e-9)
    assert values["rmse"] == pytest.approx(math.sqrt(np.mean((guess[known] - truth[known]) ** 2)), rel=1e-9)
    assert values["r2"] == pytest.approx(r2_score(truth[known], guess[known]), rel=1e-6)
    assert values["bias"] == pytest.approx(float(np.mean(guess[known] - truth[known])), rel=1e-6)


def test_always_saying_the_mean_has_no_r2() -> None:
    truth = np.random.default_rng(1).normal(20, 10, 50)
    assert ValueSums.of(np.full(50, truth.mean()), truth).values()["r2"] == pytest.approx(0, abs=1e-9)


def test_figures_of_labels_are_means_of_scikit_learns_over_known_cases() -> None:
    logits, truth = answers(np.random.default_rng(2), LABELS, 200)
    pairs = [(truth[~np.isnan(truth[:, at]), at], logits[~np.isnan(truth[:, at]), at]) for at in range(3)]
    values = LabelSums.of(logits, truth).values()
    assert values["auroc"] == pytest.approx(np.mean([roc_auc_score(*pair) for pair in pairs]), rel=1e-6)
    assert values["average_precision"] == pytest.approx(np.mean([average_precision_score(*p) for p in pairs]), rel=1e-6)
    assert values["f1"] == pytest.approx(np.mean([f1_score(y, z > 0) for y, z in pairs]), rel=1e-9)
    assert values["accuracy"] == pytest.approx(np.mean([np.mean((z > 0) == y) for y, z in pairs]), rel=1e-9)
    entropy = [np.log1p(np.exp(np.where(y == 1, -z, z))) for y, z in pairs]
    assert values["loss"] == pytest.approx(np.mean(np.concatenate(entropy)), rel=1e-6)
    assert values["n"] == (~np.isnan(truth)).any(axis=1).sum()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_sums_of_sites_are_those_of_the_pooled_cases(task: Any) -> None:
    rng = np.random.default_rng(4)
    from fedgraft.common.metrics.sums import task_metrics

    parts = [answers(rng, task, cases) for cases in (35, 1, 70)]
    pooled = task_metrics.sums_of(task, *(np.concatenate(each) for each in zip(*parts, strict=True)))
    summed = zero(task)
    for part in parts:
        summed = add(summed, task_metrics.sums_of(task, *part))
    assert summed.values() == pytest.approx(pooled.values(), rel=1e-12)
    again = sums_from(task, {key: np.array(array) for key, array in summed.arrays().items()})
    assert again.values() == pytest.approx(pooled.values(), rel=1e-12)
    assert read_sums(json.loads(json.dumps(plain(summed)))).values() == pytest.approx(pooled.values(), rel=1e-12)
    assert sums_from(task, zero(task).arrays()).values()["n"] == 0


def test_masked_sums_of_all_kinds_open_to_the_figures_of_all_sites(make_study) -> None:
    study = make_study(tasks=[task.model_dump(mode="json") for task in TASKS], secure_aggregation=True)
    rng = np.random.default_rng(5)
    sites = {name: {task.name: sums_of(rng, task) for task in TASKS} for name in ("a", "b", "c")}
    terms = [metric_summands(own, {}).arrays for own in sites.values()]
    assert {key: (array.shape, array.dtype.name) for key, array in terms[0].items()} == metric_shapes(study)
    total = {key: np.sum([own[key] for own in terms], axis=0).astype(np.float64) for key in terms[0]}
    pooled, open_ = pooled_metrics(total, study), Scores(study, sites).values()
    for task, own in pooled.items():
        shown = {key: value for key, value in own.macro.items() if value is not None}
        assert shown == pytest.approx({key: open_[task]["macro"][key] for key in shown}, rel=1e-9)
        want = open_[task]["pooled"]
        assert own.sums.values() == pytest.approx(want, rel=2e-3 if task in ("cls", "signs") else 1e-9)


Forge = Callable[[dict[str, Any]], Any]
FORGERIES: list[tuple[Any, str, Any]] = [
    (MASK, "dice", 1e9),
    (MASK, "dice", -1.0),
    (MASK, "dice", math.nan),
    (MASK, "findings", 10**6),
    (MASK, "missed", 10**6),
    (MASK, "alarms", 10**6),
    (MASK, "distances", 10**6),
    (MASK, "distance_mm", math.inf),
    (MASK, "distance_mm", 1e30),
    (MASK, "both", 10**9),
    (MASK, "true", 10**12),
    (MASK, "predicted", 0),
    (MASK, "loss", math.nan),
    (MASK, "cases", -1),
    (VALUE, "absolute", -1.0),
    (VALUE, "absolute", 1e9),
    (VALUE, "absolute", math.nan),
    (VALUE, "squared", 0.0),
    (VALUE, "squared", math.nan),
    (VALUE, "signed", 1e9),
    (VALUE, "value_squared", 0.0),
    (VALUE, "n", 0),
    (LABELS, "cases", 10**6),
    (LABELS, "cases", 1),
    (LABELS, "label_loss", math.inf),
    (LABELS, "label_confusion", -1),
    (LABELS, "score_counts", 0),
]


@pytest.mark.parametrize(("task", "key", "value"), FORGERIES, ids=lambda value: str(getattr(value, "kind", value)))
def test_sums_that_no_predictions_could_have_given_are_refused(task: Any, key: str, value: Any) -> None:
    arrays = {name: array.copy() for name, array in sums_of(np.random.default_rng(6), task).arrays().items()}
    sums_from(task, arrays)
    flat = arrays[key].reshape(-1)
    flat[0] = value
    with pytest.raises(InputError, match="Metric sums"):
        sums_from(task, arrays)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(TASKS, 2), ids=lambda task: task.kind)
def test_sums_of_another_kind_are_refused(one: Any, other: Any) -> None:
    with pytest.raises(InputError, match="Metric sums"):
        sums_from(one, sums_of(np.random.default_rng(7), other).arrays())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_arrays_of_another_shape_or_type_are_refused(task: Any) -> None:
    arrays = sums_of(np.random.default_rng(8), task).arrays()
    for key, array in arrays.items():
        for wrong in (array[None], array.astype("U8"), array.astype(complex), np.zeros((2, 2, 2, 2))):
            with pytest.raises(InputError, match="Metric sums"):
                sums_from(task, {**arrays, key: wrong})
    assert dice(np.zeros((1, 5)))[0] == 1
    assert isinstance(zero(CLASSES), ClassificationSums)


def test_the_worst_site_has_the_lowest_dice_and_the_largest_error(make_study) -> None:
    study = make_study(tasks=[task.model_dump(mode="json") for task in (VALUE, MASK)])
    truth, rng = np.linspace(5, 40, 30), np.random.default_rng(9)
    logits, targets, spacings = masks(rng, 70)
    good = np.where(targets == 1, 3.0, -3.0)
    sites = {
        "far": {"size": ValueSums.of(truth + 9, truth), "lesion": MaskSums.of(mask_rows(good, targets, spacings))},
        "near": {"size": ValueSums.of(truth + 1, truth), "lesion": MaskSums.of(mask_rows(logits, targets, spacings))},
    }
    values = Scores(study, sites).values()
    assert values["size"]["worst"] == {"site": "far", "mae": pytest.approx(9)}
    assert values["lesion"]["worst"]["site"] == "near"
    assert values["size"]["macro"]["mae"] == pytest.approx(5)
