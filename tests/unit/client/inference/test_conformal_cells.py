"""The cells of a case's conformal sets: what is in a set goes by log-odds, on both sides of a label."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.client.inference.answers import set_cells
from fedgraft.common.metrics.conformal import ConformalThreshold
from fedgraft.common.study.tasks import Multilabel, Task


def threshold(name: str, log_odds: float) -> ConformalThreshold:
    return ConformalThreshold(name=name, log_odds=log_odds, wanted=0.9, cases=99, low=0.8, high=0.95)


@pytest.mark.parametrize(("log_odds", "inside"), [(-2.0, "no; yes"), (0.5, "yes"), (1.5, "")])
def test_a_label_is_said_as_yes_no_both_or_neither(log_odds: float, inside: str) -> None:
    task = Multilabel(kind="multilabel", name="seen", labels=("mass", "fluid"))
    own = 1 / (1 + np.exp([-1.0, 3.0]))  # mass is likelier than not, at log-odds of 1; fluid lies at -3
    assert set_cells(task, own, {"mass": threshold("mass", log_odds)}) == {"seen:mass set": inside}
    assert set_cells(task, own, {"fluid": threshold("fluid", 2.9)}) == {"seen:fluid set": "no"}


def test_certain_answers_are_in_sets_or_out_of_them() -> None:
    task = Task(name="kind", classes=("a", "b", "c"))
    parts = {"": threshold("", -1.0)}
    assert set_cells(task, np.array([1.0, 0.0, 0.0]), parts) == {"kind set": "a"}
    assert set_cells(task, np.array([0.4, 0.3, 0.3]), parts) == {"kind set": "a; b; c"}
    assert set_cells(task, np.array([0.4, 0.3, 0.3]), {}) == {}
