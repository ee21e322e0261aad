"""What a comparison concludes: metrics under weights, intervals that cover, and words that do not say too much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.table import TABLE
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.compare.bootstrap import (
    Interval,
    draw_patients,
    holm,
    macro,
    over_replicates,
    verdict,
    worst,
)
from fedgraft.simulations.compare.measures.answers import MERGED, Answers
from fedgraft.simulations.compare.measures.measure import Measure
from fedgraft.simulations.compare.measures.of_classes import OF_CLASSES
from fedgraft.simulations.compare.measures.under_weights import under_weights
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.result import Group, answered, lines
from fedgraft.simulations.compare.running.cells import CellOutcome
from helpers.work import MakeStudy

METRICS = tuple(OF_CLASSES)
TASK = Task(name="cls", classes=("a", "b", "c", "d"))
AUROC, BRIER = (Measure(TASK, TABLE[name], 0.02) for name in ("auroc", "brier"))


def answers(cases: int = 60, classes: int = 4, seed: int = 0, patients: int | None = None) -> Answers:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, cases)
    logits = (rng.normal(size=(cases, classes)) + np.eye(classes)[targets]).round(1).astype(np.float32)  # some ties
    owners = np.sort(rng.integers(0, patients, cases)) if patients else np.arange(cases)
    return Answers(logits, targets, np.unique(owners, return_inverse=True)[1])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", METRICS)
def test_unweighted_metrics_are_those_of_a_run(name: str, classes: int) -> None:
    some = answers(classes=classes)
    exact = ClassificationSums.of(some.outputs, some.targets).values()[name]
    assert under_weights(name, TASK, some, np.ones((1, 60)))[0] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_what_is_a_tie_in_a_run_is_one_here(classes: int) -> None:
    """Two copies of an image in two batches may differ in the last bit, and have two truths."""
    logits = np.random.default_rng(0).normal(size=(40, classes)).astype(np.float32)
    again = np.nextafter(logits, np.float32(9))
    some = Answers(np.concatenate([logits, again]), np.repeat([0, 1], 40), np.arange(80))
    exact = ClassificationSums.of(some.outputs, some.targets).values()["auroc"]
    assert under_weights("auroc", TASK, some, np.ones((1, 80)))[0] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_as_good_as_so_many_copies(name: str) -> None:
    some = answers()
    weights = np.random.default_rng(1).integers(0, 4, (3, 60)).astype(float)
    for row, found in zip(weights, under_weights(name, TASK, some, weights), strict=True):
        at = np.repeat(np.arange(60), row.astype(int))
        copies = ClassificationSums.of(some.outputs[at], some.targets[at]).values()[name]
        assert found == pytest.approx(copies, abs=1e-9)


def test_what_is_undefined_is_not_a_number() -> None:
    some = Answers(np.zeros((3, 2), np.float32), np.ones(3, np.int64), np.arange(3))
    assert math.isnan(under_weights("auroc", TASK, some, np.ones((1, 3)))[0])
    none = Answers(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert np.isnan(under_weights("accuracy", TASK, none, np.ones((2, 0)))).all()


def test_patients_are_drawn_whole_and_alike_for_all_arms() -> None:
    some = answers(patients=20)
    drawn = draw_patients(some, (3, 0), "north", 200)
    assert drawn.shape == (201, 60)
    assert (drawn[0] == 1).all()
    for patient in range(some.patients.max() + 1):
        assert (np.ptp(drawn[:, some.patients == patient], axis=1) == 0).all()
    firsts = np.unique(some.patients, return_index=True)[1]
    assert (drawn[:, firsts].sum(axis=1) == len(firsts)).all()
    other = Answers(some.outputs[:, ::-1], some.targets, some.patients)
    assert (draw_patients(other, (3, 0), "north", 200) == drawn).all()
    assert (draw_patients(some, (4, 0), "north", 200) != drawn).any()
    assert (draw_patients(some, (3, 0), "south", 200) != drawn).any()


@pytest.mark.parametrize("replicates", [3, 10])
def test_intervals_cover_what_they_should(replicates: int) -> None:
    """Replicates that differ by a unit deviation: over many experiments the interval's width is that of the mean."""
    rng = np.random.default_rng(0)
    widths, covered = [], 0
    for _ in range(200):
        values = rng.normal(size=replicates)
        found = over_replicates({(seed, 0): np.full(1001, value) for seed, value in enumerate(values)})
        assert found.value == pytest.approx(values.mean())
        widths.append((found.high - found.low) / 2)
        covered += found.low <= 0 <= found.high
    wanted = 1.96 / math.sqrt(replicates)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(wanted, rel=0.25)
    assert covered / 200 > (0.75 if replicates == 3 else 0.85)


def test_p_is_small_only_where_the_interval_leaves_out_zero() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 1.0, 3.0):
        found = over_replicates({(seed, 0): rng.normal(shift, 0.5, 2001) for seed in range(5)})
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    certain = over_replicates({(seed, 0): np.full(2001, 1.0) for seed in range(5)})
    assert 0 < certain.p < 0.01


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def interval(value: float, low: float, high: float, low90: float, high90: float) -> Interval:
    return Interval(value, low, high, low90, high90, 0.5)


@pytest.mark.parametrize(
    ("found", "adjusted", "words"),
    [
        (interval(0.1, 0.05, 0.15, 0.06, 0.14), 0.01, "better"),
        (interval(-0.1, -0.15, -0.05, -0.14, -0.06), 0.01, "worse"),
        (interval(0.01, 0.005, 0.015, 0.006, 0.014), 0.01, "better, within 0.02"),
        (interval(0.0, -0.015, 0.015, -0.01, 0.01), 0.9, "as good within 0.02"),
        (interval(0.0, -0.05, 0.05, -0.04, 0.04), 0.9, "not decided"),
        (interval(0.1, 0.001, 0.2, 0.01, 0.19), 0.06, "not decided"),
    ],
)
def test_verdicts_say_no_more_than_is_known(found: Interval, adjusted: float, words: str) -> None:
    assert verdict(found, adjusted, AUROC, seeds=3) == words
    assert verdict(found, adjusted, AUROC, seeds=1) == "one seed decides nothing"


def test_of_a_score_that_should_be_low_less_is_better() -> None:
    found = interval(-0.1, -0.15, -0.05, -0.14, -0.06)
    assert verdict(found, 0.01, BRIER, seeds=2) == "better"


def group(name: str, sites: dict[str, Answers], study: Study) -> Group:
    outcomes = {
        (seed, 0): CellOutcome({MERGED: {site: {"cls": one} for site, one in sites.items()}}, (), 1.0)
        for seed in (0, 1)
    }
    return Group(name, None, outcomes, study)


def test_a_site_with_too_few_cases_is_in_no_mean_and_without_any_other_there_is_no_verdict(
    make_study: MakeStudy,
) -> None:
    study = make_study(tasks=[{"name": "cls", "classes": ["a", "b", "c", "d"]}])
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["local"]))
    large, small = answers(120), answers(5, seed=1)
    groups = [group(name, {"large": large, "small": small}, study) for name in ("study", "local")]
    result = answered(question, groups)
    row = result["rows"][1]
    whole = float(under_weights("auroc", TASK, large, np.ones((1, 120)))[0])
    assert row["macro"]["value"] == row["worst"]["value"] == row["metrics"]["auroc"] == pytest.approx(whole)
    assert row["support"]["large"]["enough"]
    assert not row["support"]["small"]["enough"]
    assert row["sites"]["small"] == pytest.approx(float(under_weights("auroc", TASK, small, np.ones((1, 5)))[0])), (
        "it is listed"
    )
    assert row["difference"]["verdict"] == "as good within 0.02"
    few = answered(question, [group(name, {"small": small}, study) for name in ("study", "local")])
    assert few["rows"][1]["difference"]["verdict"] == "too few to say"


def test_sites_count_the_same_and_undefined_ones_not_at_all() -> None:
    sites = [np.array([0.5, 0.9]), np.array([0.7, np.nan]), np.array([np.nan, np.nan])]
    assert macro(sites) == pytest.approx([0.6, 0.9])
    assert worst(sites, AUROC) == pytest.approx([0.5, 0.9])
    assert worst(sites, BRIER) == pytest.approx([0.7, 0.9])
    assert np.isnan(worst(sites[2:], AUROC)[0])


def test_what_is_written_does_not_go_by_the_order_in_which_files_are_read(make_study: MakeStudy) -> None:
    """A comparison that was cut off and goes on writes the same table; tensors come back in any order."""
    study = make_study(tasks=[{"name": "cls", "classes": ["a", "b", "c", "d"]}])
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["local"]))
    one, other = answers(60), answers(60, seed=1)
    written = [
        list(lines(question, [group(name, sites, study) for name in ("study", "local")]))
        for sites in ({"north": one, "south": other}, {"south": other, "north": one})
    ]
    assert written[0] == written[1]
    assert [line["site"] for line in written[0][:2]] == ["north", "south"]
