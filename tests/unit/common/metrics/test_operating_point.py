"""The operating point: the rule's own threshold, by a naive twin; and what it gives, case by case."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.stats import binomtest

from fedgraft.client.privacy.release.metric_release import suppressed
from fedgraft.common.checks.check import check
from fedgraft.common.metrics.operating_point import OperatingPoint, at_threshold, chosen, counted
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.study.operating import OperatingRule
from fedgraft.common.study.schedule import last_exchange, schedule, split_at, step_at
from fedgraft.common.study.study import Study, parse_study
from fedgraft.common.study.tasks import Multilabel, Task
from helpers.work import MakeStudy

TASK = Task(name="cls", classes=("benign", "malignant"))
YOUDEN = OperatingRule()


def cases(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds off their middle, as of a model that is not calibrated, and whether each is positive."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=count) < 0.3
    return (rng.normal(size=count) + 1.5 * truth + 1.2).astype(np.float32), truth


def sums_of(score: np.ndarray, truth: np.ndarray) -> ClassificationSums:
    return ClassificationSums.of(np.stack([np.zeros(len(score)), score], axis=1), truth.astype(int))


def twin(score: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    said = score >= threshold
    return tuple(int(part.sum()) for part in (said & truth, ~said & truth, said & ~truth, ~said & ~truth))


def test_youden_s_index_is_as_large_as_any_threshold_of_the_grid_makes_it() -> None:
    score, truth = cases()
    (point,) = chosen(TASK, sums_of(score, truth), YOUDEN, 10)
    indices = []
    for threshold in np.arange(-5, 8, 0.01):
        found, missed, alarms, rejected = twin(score, truth, round(float(threshold), 2))
        indices.append(found / (found + missed) + rejected / (alarms + rejected) - 1)
    assert point.sensitivity + point.specificity - 1 == pytest.approx(max(indices))
    false, true, _ = sk.roc_curve(truth, score)
    assert max(indices) == pytest.approx((true - false).max(), abs=0.01)
    assert (point.name, point.rule, point.positives, point.negatives) == (
        "malignant",
        "Youden's index",
        truth.sum(),
        (~truth).sum(),
    )
    assert 1 < point.log_odds < 3, "where the scores are, not at a half"
    assert point.log_odds == round(point.log_odds, 2), "no patient's own score"


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_a_wanted_sensitivity_is_reached_by_the_highest_threshold_that_does(wanted: float) -> None:
    score, truth = cases(seed=3)
    (point,) = chosen(TASK, sums_of(score, truth), OperatingRule(sensitivity=wanted), 10)
    found, missed, *_ = twin(score, truth, point.log_odds)
    assert found / (found + missed) == point.sensitivity >= wanted
    found, missed, *_ = twin(score, truth, point.log_odds + 0.0101)
    assert found / (found + missed) < wanted


@pytest.mark.parametrize("times", [30.0, 1e5])
@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
def test_a_model_that_is_very_sure_has_its_point_where_its_scores_are(times: float, shift: float) -> None:
    """A grid that ends before the scores do would find less than was wanted, and say so to nobody."""
    score, truth = cases(seed=3)
    sums = sums_of((score + shift) * times, truth)
    (point,) = chosen(TASK, sums, OperatingRule(sensitivity=0.9), 10)
    assert point.sensitivity >= 0.9
    found, missed, *_ = twin((score + shift) * times, truth, point.log_odds + 0.002 * abs(point.log_odds) + 0.02)
    assert found / (found + missed) < 0.9
    (best,) = chosen(TASK, sums, OperatingRule(), 10)
    (plain,) = chosen(TASK, sums_of(score, truth), OperatingRule(), 10)
    assert best.sensitivity + best.specificity == pytest.approx(plain.sensitivity + plain.specificity, abs=0.03)


def test_what_a_point_gives_is_counted_case_by_case() -> None:
    score, truth = cases(seed=1)
    point = OperatingPoint(
        name="malignant", log_odds=1.37, rule="x", positives=9, negatives=9, sensitivity=1, specificity=1
    )
    found, missed, alarms, rejected = twin(score, truth, 1.37)
    plain = counted(sums_of(score, truth), 0, point).plain()
    assert (plain["found"], plain["missed"], plain["alarms"], plain["rejected"]) == (found, missed, alarms, rejected)
    said = score >= 1.37
    assert plain["recall"] == pytest.approx(sk.recall_score(truth, said))
    assert plain["ppv"] == pytest.approx(sk.precision_score(truth, said))
    assert plain["specificity"] == pytest.approx(sk.recall_score(~truth, ~said))
    assert plain["npv"] == pytest.approx(sk.precision_score(~truth, ~said))
    wanted = binomtest(found, found + alarms).proportion_ci(method="wilson")
    assert plain["intervals"]["ppv"] == pytest.approx((wanted.low, wanted.high))
    none = at_threshold(sums_of(score, truth).scores, 0, 99.0).plain()
    assert (none["ppv"], none["intervals"]["ppv"], none["recall"]) == (None, None, 0.0)


def test_a_case_at_the_threshold_is_positive() -> None:
    score, truth = np.array([-0.5, 0.25, 0.25, 0.75], np.float32), np.array([False, True, False, True])
    assert twin(score, truth, 0.25) == (2, 0, 1, 1)
    here = at_threshold(sums_of(score, truth).scores, 0, 0.25)
    assert (here.found, here.missed, here.alarms, here.rejected) == (2, 0, 1, 1)
    above = at_threshold(sums_of(score, truth).scores, 0, 0.26)
    assert (above.found, above.missed, above.alarms, above.rejected) == (1, 1, 0, 2)


def test_each_label_has_a_point_of_its_own_and_too_few_cases_have_none() -> None:
    task = Multilabel(name="signs", kind="multilabel", labels=("common", "rare"))
    rng = np.random.default_rng(0)
    yes = np.stack([rng.uniform(size=200) < 0.5, np.arange(200) < 4], axis=1).astype(np.float32)
    sums = LabelSums.of((rng.normal(size=(200, 2)) + 2 * yes).astype(np.float32), yes)
    common, rare = chosen(task, sums, YOUDEN, 10)
    assert (common.name, rare) == ("common", None)
    assert chosen(task, sums, YOUDEN, 4)[1].name == "rare"


def test_coarse_counts_are_not_counted_at_a_point() -> None:
    """Merged bins of scores are no longer where the cases were: a threshold among them would be another one."""
    score, truth = cases()
    (point,) = chosen(TASK, sums_of(score, truth), YOUDEN, 10)
    assert counted(suppressed(sums_of(score, truth)), 0, point) is None


def test_the_schedule_has_one_more_exchange_which_evaluates_validation_cases(make_study: MakeStudy) -> None:
    plain, asked = make_study(), make_study(evaluate={"operating_point": "youden"})
    assert [split_at(plain, step) for step in schedule(plain)][-2:] == ["val", "test"]
    steps = list(schedule(asked))
    assert len(steps) == len(list(schedule(plain))) + 1
    assert [(step.work, split_at(asked, step)) for step in steps[-2:]] == [(False, "val"), (False, "test")]
    assert [step_at(asked, step.exchange) for step in steps] == steps
    assert (last_exchange(asked), step_at(asked, steps[-1].exchange + 1)) == (steps[-1].exchange, None)


def faults_of(study: Study) -> list[str]:
    return [fault for fault in check(study, {}) if fault.startswith("evaluate.operating_point")]


def test_a_study_that_can_have_none_is_refused(make_study: MakeStudy) -> None:
    model = make_study()
    three = parse_study(model.model_dump() | {"evaluate": {"operating_point": {"sensitivity": 0.9}}}, "x")
    assert three.evaluate.operating_point.words == "a sensitivity of 0.9"
    assert parse_study(three.model_dump(mode="json"), "x").digest == three.digest != model.digest
    (fault,) = faults_of(three)
    assert "two classes or of labels" in fault
    no_val = make_study(
        tasks=[{"name": "cls", "classes": ["a", "b"]}],
        split={"train": 0.5, "val": 0.0, "test": 0.5},
        evaluate={"every": 0, "operating_point": "youden"},
    )
    (fault,) = faults_of(no_val)
    assert "give val a share" in fault
