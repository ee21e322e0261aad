"""A run says when it ended too soon, and says nothing of noise, of what has settled, or of what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.rounds.improving import still_improving


def study(task: dict[str, Any], **stage: Any) -> Study:
    local = {"kind": "gradient", "steps": 1}
    plan = [{"name": "train", "local": local, "share": "all", "aggregate": {"kind": "mean"}, "rounds": 12} | stage]
    image = {"kind": "image", "size": 32}
    return parse_study({"name": "x", "tasks": [task], "input": image, "plan": plan}, "here")


def rows(metric: str, *values: float | None, split: str = "val") -> list[dict[str, Any]]:
    """The history of a run that measured before its first round, and after each."""
    return [
        {
            "split": split,
            "evaluated": {"stage": "train" if number else "start", "round": number},
            "metrics": {"t": {"summary": {metric: value}}},
        }
        for number, value in enumerate(values)
    ]


CLASSES = {"name": "t", "classes": ["a", "b"]}
RISES = (0.5, 0.60, 0.62, 0.70, 0.74, 0.78, 0.80, 0.83, 0.85)


def test_what_still_rises_is_told_with_its_rounds() -> None:
    (told,) = still_improving(study(CLASSES), rows("auroc", *RISES))
    assert told.startswith("t was still improving when stage train ended: AUROC on validation went from 0.790 (rounds")
    assert "(rounds 5 to 6) to 0.840 (rounds 7 to 8)" in told
    assert "early_stopping" in told


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 0.60, 0.70, 0.80, 0.80, 0.801, 0.80, 0.801, 0.802),  # has settled
        (0.5, 0.60, 0.84, 0.85, 0.90, 0.80, 0.81, 0.83, 0.85),  # was better before
        (0.5, 0.60, 0.70, 0.80),  # too short to tell
        (0.5, None, None, None, None, None, None, None, None),
    ],
)
def test_what_does_not_rise_is_not(values: tuple[float | None, ...]) -> None:
    assert still_improving(study(CLASSES), rows("auroc", *values)) == []


def test_an_error_improves_by_falling() -> None:
    task = {"name": "t", "kind": "regression", "unit": "mm", "mean": 10, "std": 3}
    (said,) = still_improving(study(task), rows("mae", 9, 8, 7, 6, 5, 4, 3, 2, 1))
    assert "MAE (mm) on validation went from 3.500" in said
    assert still_improving(study(task), rows("mae", *range(1, 10))) == []


def test_the_test_split_and_stages_that_stop_by_themselves_say_nothing() -> None:
    assert still_improving(study(CLASSES), rows("auroc", *RISES, split="test")) == []
    assert still_improving(study(CLASSES, early_stopping={}), rows("auroc", *RISES)) == []
