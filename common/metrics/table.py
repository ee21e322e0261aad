"""All metrics in one table: what people read, which way is better, between what ends, of which kinds of tasks.

Reports, the live page, comparisons and early stopping read it; a metric that is not in it is a plug-in's, which says
the same of itself, or an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

Better = Literal["higher", "lower", "near_0"]


@dataclass(frozen=True)
class Metric:
    """One metric. `low` and `high` are the ends that no value passes; None for no end."""

    name: str
    title: str
    tasks: tuple[str, ...]
    better: Better = "higher"
    low: float | None = 0.0
    high: float | None = 1.0
    in_unit: bool = False
    """Whether it is counted in the unit of the task's values."""

    def goodness(self, value: float) -> float:
        """A number that is larger where the value is better."""
        match self.better:
            case "higher":
                return value
            case "lower":
                return -value
            case "near_0":
                return -abs(value)
        assert_never(self.better)

    def within(self, value: float) -> float:
        """The value, or the end that it passes: as an interval is cut off where the metric ends."""
        value = value if self.low is None else max(self.low, value)
        return value if self.high is None else min(self.high, value)

    def plain(self) -> dict[str, Any]:
        """As a run's record has it, for whoever has not the plug-in that it is of."""
        return {"better": self.better, "low": self.low, "high": self.high, "tasks": list(self.tasks)}


_CLASSES, _BOTH = ("multiclass",), ("multiclass", "multilabel")
_VALUES, _MASKS = ("regression",), ("segmentation",)
_ROWS = (
    Metric("auroc", "AUROC", _BOTH),
    Metric("average_precision", "average precision", _BOTH),
    Metric("accuracy", "accuracy", _BOTH),
    Metric("balanced_accuracy", "balanced accuracy", _BOTH),
    Metric("recall", "recall", _BOTH),
    Metric("specificity", "specificity", _BOTH),
    Metric("ppv", "PPV", _BOTH),
    Metric("npv", "NPV", _BOTH),
    Metric("f1", "F1", _BOTH),
    Metric("brier", "Brier", _CLASSES, "lower", high=2.0),
    Metric("ece", "ECE", _CLASSES, "lower"),
    Metric("mae", "MAE", _VALUES, "lower", high=None, in_unit=True),
    Metric("rmse", "RMSE", _VALUES, "lower", high=None, in_unit=True),
    Metric("bias", "bias", _VALUES, "near_0", low=None, high=None, in_unit=True),
    Metric("r2", "R²", _VALUES, low=None),
    Metric("dice", "Dice", _MASKS),
    Metric("dice_pooled", "Dice of all pixels", _MASKS),
    Metric("hd95_mm", "HD95 (mm)", _MASKS, "lower", high=None),
    Metric("missed", "missed", _MASKS, "lower"),
    Metric("alarms", "false alarms", _MASKS, "lower"),
    Metric("loss", "loss", (*_BOTH, *_MASKS), "lower", high=None),
)
TABLE: Mapping[str, Metric] = {metric.name: metric for metric in _ROWS}
"""By name, in the order in which reports show them."""


OF_CLASSES = ("auroc", "accuracy", "balanced_accuracy")
OF_VALUES = ("mae", "rmse", "r2")
OF_MASKS = ("dice", "hd95_mm", "missed")
"""What is shown first of a kind of task: the headline, and what stands beside it."""


def headlines(task: AnyTask) -> tuple[str, ...]:
    """What is shown first of a task, unless the study says another: the headline, and what stands beside it."""
    match task:
        case Task() | Multilabel():
            return OF_CLASSES
        case Regression():
            return OF_VALUES
        case Segmentation():
            return OF_MASKS
    assert_never(task)


def drawn_of(shown: Sequence[str]) -> tuple[str, ...]:
    """What is drawn over the rounds, by what is shown first: the headline, what stands beside it last, the loss."""
    first, *others = shown
    third = "r2" if "mae" in shown else "loss"
    beside = {"auroc": "balanced_accuracy", "mae": "rmse", "dice": "hd95_mm"}.get(first, others[0])
    return tuple(dict.fromkeys((first, beside, third)))


SHARES = frozenset(metric.title for metric in _ROWS if (metric.low, metric.high) == (0.0, 1.0))
"""Titles of what lies between 0 and 1."""


def title(key: str) -> str:
    """A metric's name as reports print it; a plug-in's is its name in words."""
    return TABLE[key].title if key in TABLE else key.replace("_", " ")


def title_with_unit(metric: Metric, task: AnyTask) -> str:
    """A metric's name as reports print it, with the unit that the task's values have: "MAE (mm)"."""
    unit = f" ({task.unit})" if metric.in_unit and isinstance(task, Regression) else ""
    return title(metric.name) + unit
