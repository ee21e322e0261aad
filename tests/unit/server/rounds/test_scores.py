"""What a coordinator makes of sums: means over sites that have enough cases, and a choice that rests on them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedgraft.common.metrics.intervals import deviation
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.value_metrics import ValueSums
from fedgraft.common.metrics.support import intervals
from fedgraft.common.protocol.states import States
from fedgraft.common.secure_aggregation.summing import metric_summands, pooled_metrics
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.cli.figures import task_table
from fedgraft.server.rounds.scores import Scores
from fedgraft.server.rounds.stopping import best, stopped

LOCAL = {"kind": "gradient", "steps": 1}
STAGE = {"name": "train", "local": LOCAL, "share": "all", "aggregate": {"kind": "mean"}, "rounds": 9}


def a_study(**changes: Any) -> Study:
    base = {"name": "x", "tasks": [{"name": "cls", "classes": ["no", "yes"]}], "plan": [STAGE]}
    return parse_study(base | changes, "here")


def a_site(positives: int, negatives: int, skill: float, seed: int = 0) -> dict[str, ClassificationSums]:
    rng = np.random.default_rng(seed)
    truth = np.repeat([1, 0], [positives, negatives])
    score = rng.normal(size=len(truth)) + skill * truth
    return {"cls": ClassificationSums.of(np.stack([np.zeros(len(truth)), score], axis=1), truth)}


SITES = {"large": a_site(60, 90, 1.0), "middle": a_site(20, 30, 1.5, 1), "one": a_site(1, 40, -9.0, 2)}


def auroc(site: str) -> float:
    return SITES[site]["cls"].values()["auroc"]


def test_a_site_with_one_positive_is_no_third_of_the_headline() -> None:
    found = Scores(a_study(), SITES).values()["cls"]
    assert auroc("one") < 0.1
    assert found["macro"]["auroc"] == pytest.approx((auroc("large") + auroc("middle")) / 2)
    assert found["worst"]["site"] in ("large", "middle")
    assert found["support"]["sites"]["one"] == {
        "n": 41,
        "positives": [1],
        "negatives": [40],
        "effective": 1.0,
        "enough": False,
    }
    assert found["sites"]["one"]["auroc"] == auroc("one"), "the record has all there is"
    all_count = Scores(a_study(evaluate={"floor": 1}), SITES).values()["cls"]
    assert all_count["macro"]["auroc"] == pytest.approx(sum(map(auroc, SITES)) / 3)
    assert all_count["worst"] == {"site": "one", "auroc": auroc("one")}


def test_means_over_sites_have_intervals_each_counting_alike_and_by_precision() -> None:
    found = Scores(a_study(), SITES).values()["cls"]
    errors = {site: deviation(intervals(SITES[site]["cls"])["auroc"]) for site in ("large", "middle")}
    weights = {site: error**-2 for site, error in errors.items()}
    precise = sum(weights[site] * auroc(site) for site in weights) / sum(weights.values())
    assert found["macro_by_precision"]["auroc"]["value"] == pytest.approx(precise)
    equal = found["macro_intervals"]["auroc"]
    assert equal["sites"] == 2
    assert deviation((equal["low"], equal["high"])) == pytest.approx(np.hypot(*errors.values()) / 2)
    assert found["intervals"]["sites"]["large"]["auroc"] == intervals(SITES["large"]["cls"])["auroc"]


def test_no_mean_of_shares_may_be_above_one() -> None:
    sure = {site: a_site(15, 15, 4.0, seed) for seed, site in enumerate(("a", "b"))}
    found = Scores(a_study(), sure).values()["cls"]
    for means in (found["macro_intervals"], found["macro_by_precision"]):
        assert means["auroc"]["high"] == 1.0
        assert means["auroc"]["low"] < means["auroc"]["value"] <= 1.0


FEW = {site: a_site(6, 9, 1.0, seed) for seed, site in enumerate(("a", "b", "c"))}


def test_where_every_site_has_too_few_all_cases_together_may_say_something() -> None:
    found = Scores(a_study(), FEW).values()["cls"]
    assert found["macro"] == {"auroc": None, "accuracy": None, "balanced_accuracy": None}
    assert found["worst"] is None
    assert found["summary"]["auroc"] == found["pooled"]["auroc"] is not None
    alone = Scores(a_study(), {"a": FEW["a"]}).values()["cls"]
    assert alone["summary"]["auroc"] is None


def test_early_stopping_is_not_swayed_by_a_site_with_one_positive() -> None:
    """The one case ranks ever better, and the other sites ever worse: it is these that end the stage."""
    study = a_study(plan=[STAGE | {"early_stopping": {"patience": 2}}])
    states = States()
    ended = []
    for number in range(1, 5):
        skill = 2 - 0.5 * number
        sites = {
            "large": a_site(60, 90, skill),
            "middle": a_site(20, 30, skill, 1),
            "one": a_site(1, 40, 3 * number - 9, 2),
        }
        ended.append(stopped(study.plan[0], number, Scores(study, sites), {"x": np.array([number])}, states))
    assert ended == [None, None, 0, 0]
    assert best(study.plan[0], states)["x"].tolist() == [1]


@pytest.mark.parametrize("metric", [None, "mae"])
def test_a_stage_of_values_goes_on_while_errors_fall_and_ends_when_they_rise(metric: str | None) -> None:
    size = {"name": "size", "kind": "regression", "unit": "mm", "mean": 0.0, "std": 1.0}
    study = a_study(tasks=[size], plan=[STAGE | {"early_stopping": {"patience": 1, "metric": metric}}])
    states, ended, truth = States(), [], np.arange(30.0)
    for number, error in enumerate((3.0, 2.0, 1.0, 1.5), start=1):
        sites = {site: {"size": ValueSums.of(truth + error * (-1) ** truth, truth)} for site in ("one", "two")}
        ended.append(stopped(study.plan[0], number, Scores(study, sites), {"x": np.array([number])}, states))
    assert ended == [None, None, None, 2]
    assert best(study.plan[0], states)["x"].tolist() == [3]
    assert Scores(study, sites).values()["size"]["worst"] == {"site": "one", "mae": 1.5}


def test_under_masks_a_site_with_too_few_is_in_no_mean_over_sites() -> None:
    study = a_study()
    four = {**SITES, "other": a_site(30, 30, 1.2, 3)}
    terms = [metric_summands(own, {}, study.evaluate.floor).arrays for own in four.values()]
    sums = {key: np.sum([own[key].astype(np.float64) for own in terms], axis=0) for key in terms[0]}
    found = pooled_metrics(sums, study)["cls"]
    known = [own["cls"].values()["auroc"] for site, own in four.items() if site != "one"]
    assert found.macro["auroc"] == pytest.approx(np.mean(known))
    assert found.sums.n == sum(own["cls"].n for own in four.values())
    told = Scores(study, {}, {"cls": found}).values()["cls"]
    assert told["macro"]["auroc"] == found.macro["auroc"]
    assert told["support"]["pooled"]["positives"] == [111]
    assert told["intervals"]["pooled"]["auroc"][0] < told["pooled"]["auroc"]


def test_the_terminal_says_what_figures_rest_on() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(task_table("cls", Scores(a_study(), SITES).values()["cls"]))
    lines = {words[0]: line for line in console.export_text().splitlines() if (words := line.replace("│", " ").split())}
    low, high = intervals(SITES["large"]["cls"])["auroc"]
    assert "60 / 90" in lines["large"]
    assert f"{low:.3f}–{high:.3f}".replace("0.", ".").replace("1.000", "1") in lines["large"]
    assert "too few to say" in lines["one"]
    assert f"{auroc('one'):.3f}" not in lines["one"]
