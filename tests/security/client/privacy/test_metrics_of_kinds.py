"""Labels, values and masks under a careful policy: what one patient changes, what is told, and what never is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.release import metric_release as shown
from fedgraft.client.privacy.release.metric_release import (
    LEAST,
    bound,
    noised_counts,
    suppressed,
)
from fedgraft.client.privacy.release.metric_release_kinds import bounded_sums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.sums.mask_metrics import MaskSums
from fedgraft.common.metrics.sums.task_metrics import sums_from, sums_of
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.study.tasks import (
    Multilabel,
    Regression,
    Segmentation,
    Task,
)

TASKS: dict[str, Any] = {
    "signs": Multilabel(name="signs", kind="multilabel", labels=("a", "b")),
    "size": Regression(name="size", kind="regression", unit="mm", mean=20.0, std=10.0),
    "lesion": Segmentation(name="lesion", kind="segmentation"),
    "cls": Task(name="cls", classes=("x", "y", "z")),
}
CASES = 60


def answers(seed: int = 0, cases: int = CASES) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((cases, 2)) < 0.2, np.nan, rng.random((cases, 2)) < 0.4)
    size = np.where(rng.random(cases) < 0.2, np.nan, rng.normal(20, 10, cases))
    true = rng.integers(0, 3, cases) * 20
    predicted = np.where(rng.random(cases) < 0.2, 0, 30)
    both = np.minimum(true, predicted) * rng.random(cases) // 1
    rows = np.stack([both, predicted, true, rng.random(cases), rng.random(cases)], axis=1)
    unknown = rng.random(cases) < 0.2
    rows[unknown] = np.nan
    return {
        "signs": (rng.normal(size=(cases, 2)) + np.nan_to_num(labels), labels),
        "size": (np.nan_to_num(size) + rng.normal(0, 30, cases), size),
        "lesion": (rows, np.where(unknown, -1, 0)),
        "cls": (rng.normal(size=(cases, 3)), rng.integers(-1, 3, cases)),
    }


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """All numbers as they are before noise, in the instruction in which they are made."""
    found: list[np.ndarray] = []
    real_counts, real_sums = shown.counts, bounded_sums

    def of_counts(*given: Any) -> Any:
        confusion, rows = real_counts(*given)
        found.extend(part.ravel().copy() for part in (confusion, *rows))
        return confusion, rows

    def of_sums(*given: Any) -> Any:
        sums = real_sums(*given)
        found.append(sums.copy())
        return sums

    monkeypatch.setattr(shown, "counts", of_counts)
    monkeypatch.setattr(shown, "bounded_sums", of_sums)
    return found


def released(noise_multiplier: float, patients: list[str], kept: list[int], seed: int = 0) -> dict[str, Any]:
    labelled = torch.tensor(kept)
    some = {task: (given[kept], targets[kept]) for task, (given, targets) in answers(seed).items()}
    return noised_counts(some, labelled, units_of(labelled, patients, "patient"), noise_multiplier, TASKS)


def test_one_patient_changes_all_figures_together_by_at_most_the_bound(seen: list[np.ndarray]) -> None:
    largest = 0.0
    for lot in range(12):
        patients = [str(max(0, case - (0, 25)[lot % 2])) for case in range(CASES)]
        parts = []
        for kept in (list(range(CASES)), [case for case in range(CASES) if patients[case] != "0"]):
            seen.clear()
            released(1e-12, patients, kept, lot)
            parts.append(np.concatenate(seen))
        change = float(np.linalg.norm(parts[0] - parts[1])) / bound(TASKS.values())
        assert change <= 1 + 1e-9
        largest = max(largest, change)
    assert largest > 0.75


@pytest.mark.parametrize("task", ["size", "lesion"])
def test_a_single_case_can_reach_the_bound(task: str) -> None:
    """An error beyond the largest, or a perfect mask: no case does more."""
    asked = TASKS[task]
    worst = np.array([1e6]) if task == "size" else np.array([[20.0, 20.0, 20.0, 0.0, 0.1]])
    reach = bounded_sums(asked, worst, np.array([0.0]), np.ones(1))
    assert np.linalg.norm(reach) == pytest.approx(bound([asked]))


def test_figures_carry_the_noise_that_is_paid_for_and_it_is_fresh() -> None:
    """To six standard errors: sound noise is off by chance once in 100 million runs."""
    patients, noise_multiplier = list(map(str, range(CASES))), 2.0
    exact = released(1e-12, patients, list(range(CASES)))
    drawn = [released(noise_multiplier, patients, list(range(CASES))) for _ in range(500)]
    for task, of in (
        ("size", lambda own: own.absolute / TASKS["size"].largest_error),
        ("lesion", lambda own: own.dice),
    ):
        figures = np.array([of(own[task]) for own in drawn])
        counts = np.array([own[task].n for own in drawn])
        deviation = noise_multiplier * bound(TASKS.values())
        assert counts.mean() == pytest.approx(exact[task].n, abs=6 * deviation / np.sqrt(500) + 1)
        assert counts.std() == pytest.approx(deviation, rel=0.2)
        assert len(set(figures.tolist())) > 250  # some are cut off at 0 or at the count


def test_with_next_to_no_noise_figures_are_the_exact_ones_up_to_what_is_cut_off() -> None:
    patients = list(map(str, range(CASES)))
    told = released(1e-12, patients, list(range(CASES)))
    given = answers()
    guess, truth = given["size"]
    errors = np.minimum(np.abs(guess - truth), 40.0)
    assert told["size"].values()["mae"] == pytest.approx(np.nanmean(errors), rel=1e-6)
    exact = MaskSums.of(given["lesion"][0]).values()
    assert told["lesion"].values()["dice"] == pytest.approx(exact["dice"], rel=1e-6)
    labels = LabelSums.of(*given["signs"])
    assert told["signs"].confusion.tolist() == labels.confusion.tolist()
    assert told["signs"].values()["auroc"] == pytest.approx(labels.values()["auroc"], abs=0.05)


def test_what_is_not_noised_is_not_told() -> None:
    told = released(3.0, list(map(str, range(CASES))), list(range(CASES)))
    for own in (told, {task: suppressed(sums_of(TASKS[task], *pair)) for task, pair in answers().items()}):
        size, lesion, signs = own["size"].values(), own["lesion"].values(), own["signs"].values()
        assert all(size[key] is None for key in ("rmse", "bias", "r2"))
        assert all(lesion[key] is None for key in ("hd95_mm", "missed", "alarms", "dice_pooled", "loss"))
        assert signs["loss"] is None
        for task, sums in own.items():  # and the coordinator takes it
            assert sums_from(TASKS[task], sums.arrays()).values() == sums.values()


def test_fewer_than_ten_are_not_shown_and_more_only_to_two_digits() -> None:
    truth = np.full(LEAST, 20.0)
    shown_values = suppressed(ValueSums.of(truth + 3.14159, truth)).values()
    assert shown_values["mae"] == pytest.approx(3.1)
    assert suppressed(ValueSums.of(truth[1:] + 3.14159, truth[1:])).values() | {"n": 0} == shown_values | {
        "n": 0,
        "mae": None,
    }
    rows = np.tile([15.0, 21.0, 20.0, 3.0, 0.1], (LEAST, 1))
    assert suppressed(MaskSums.of(rows)).values()["dice"] == pytest.approx(0.73)
    few = suppressed(MaskSums.of(np.concatenate([rows[1:], [[0, 0, 0, np.nan, 0.1]] * 40])))
    assert few.values()["dice"] is None
    assert few.n == 0
    few_yes = np.zeros((40, 1))
    few_yes[:9] = 1
    labels = suppressed(LabelSums.of(np.random.default_rng(0).normal(size=(40, 1)), few_yes))
    assert labels.values()["auroc"] is None
    assert not labels.confusion[0, 1].any()
