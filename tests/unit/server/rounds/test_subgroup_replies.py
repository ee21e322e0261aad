"""Sums by subgroup that a site sends: at the end alone, of the study's groups, and of no more cases than there are."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.subgroups import named
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.protocol.instructions import Instruction, Update
from fedgraft.common.study.schedule import last_exchange
from fedgraft.common.study.study import Study
from fedgraft.server.rounds.exchange.validation import metric_sums
from helpers.work import MakeStudy

WOMEN = named("cls", "sex", 0)


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(evaluate={"subgroups": [{"name": "sex", "values": ["female", "male"]}]})


def sums(cases: int, classes: int) -> ClassificationSums:
    rng = np.random.default_rng(cases)
    return ClassificationSums.of(rng.normal(size=(cases, classes)), rng.integers(0, classes, cases))


def came(study: Study, exchange: int, **groups: int) -> dict | None:
    classes = len(study.tasks[0].names)
    metrics = {"cls": sums(60, classes).arrays()} | {key: sums(n, classes).arrays() for key, n in groups.items()}
    asked = Instruction(study.digest, exchange, 0, 1, False, "test", {})
    return metric_sums(Update(exchange, {}, {}, {}, metrics), study, asked)


def test_groups_come_at_the_end(study: Study) -> None:
    found = came(study, last_exchange(study), **{WOMEN: 40})
    assert found is not None
    assert found[WOMEN].n == 40
    assert came(study, 1, **{WOMEN: 40}) is None
    assert came(study, 1) is not None


@pytest.mark.parametrize("groups", [{named("cls", "sex", 2): 40}, {named("cls", "age", 0): 40}, {WOMEN: 61}])
def test_groups_that_cannot_be_are_refused(study: Study, groups: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a subgroup"):
        came(study, last_exchange(study), **groups)
