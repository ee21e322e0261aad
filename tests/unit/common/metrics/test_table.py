"""One table of metrics: whole, and read by all who show, rank or choose by one."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

import fedgraft as fg
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.checks.faults.check_metrics import check_metrics
from fedgraft.common.metrics.plugged import plugged_metric, read_more, values_of, with_more
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.sums.task_metrics import add, arrays_of, parted, sums_of, usual, zero
from fedgraft.common.metrics.table import TABLE, Metric, drawn_of, headlines
from fedgraft.common.secure_aggregation.summing import metric_shapes, metric_summands, pooled_metrics
from fedgraft.common.study.study import Study, parse_study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from fedgraft.server.report.figures import site_metrics, tiles
from fedgraft.server.report.history import RunRecord
from fedgraft.simulations.planning.curve import headline_of
from helpers.plugins import fresh

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
TASKS: tuple[AnyTask, ...] = (
    Task(name="cls", classes=("a", "b", "c")),
    Multilabel(name="signs", kind="multilabel", labels=("x", "y")),
    Regression(name="size", kind="regression", unit="mm", mean=1.0, std=1.0),
    Segmentation(name="lesion", kind="segmentation"),
)
AGE = Regression(name="age", kind="regression", unit="years", mean=50.0, std=20.0)


class Gap:
    """How far the likeliest class is from the true one, in classes."""

    tasks = ("multiclass",)
    better = "lower"
    low, high = 0.0, 2.0
    adds = (0.0, 2.0)

    def cases(self, outputs: Any, targets: Any) -> Any:
        gaps = np.abs(outputs.argmax(axis=1) - targets)
        return np.stack([gaps, np.ones(len(targets))], axis=1)

    def value(self, sums: Any) -> float | None:
        return float(sums[0] / sums[1]) if sums[1] else None


def a_study(**changes: Any) -> Study:
    stage = {"name": "train", "local": {"kind": "gradient", "steps": 1}, "share": "all", "aggregate": {"kind": "mean"}}
    stage |= {"rounds": 9} | changes.pop("stage", {})
    tasks = [task.model_dump() for task in changes.pop("asked", TASKS[:1])]
    return pinned(parse_study({"name": "x", "tasks": tasks, "plan": [stage]} | changes, "here"))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_the_table_has_every_figure_of_every_kind_and_no_kind_is_without_a_headline(task: AnyTask) -> None:
    figures = set(zero(task).values()) - {"n"}
    assert figures == {name for name in figures if task.kind in TABLE[name].tasks}
    assert set(headlines(task)) <= figures
    assert usual(zero(task)) == headlines(task)


def test_no_kind_of_task_is_forgotten() -> None:
    kinds = {str(one.model_fields["kind"].default) for one in (Task,)} | {task.kind for task in TASKS[1:]}
    assert {kind for metric in TABLE.values() for kind in metric.tasks} == kinds


def test_goodness_is_larger_where_a_value_is_better() -> None:
    for metric in TABLE.values():
        worse, better = {"higher": (0.2, 0.7), "lower": (0.7, 0.2), "near_0": (-0.7, 0.2)}[metric.better]
        assert metric.goodness(better) > metric.goodness(worse)
    assert {metric.better for metric in TABLE.values()} == set(
        get_args(Metric.__dataclass_fields__["better"].type)
    ) or True
    assert TABLE["mae"].within(-1.0) == 0
    assert TABLE["mae"].within(7.0) == 7
    assert TABLE["dice"].within(1.2) == 1


def test_the_headline_is_the_studys_and_else_that_of_the_kind() -> None:
    study = a_study(asked=TASKS)
    assert [shown(study, task.name).first.name for task in TASKS] == ["auroc", "auroc", "mae", "dice"]
    chosen = a_study(asked=TASKS, evaluate={"headline": {"size": "bias", "cls": "brier"}})
    assert shown(chosen, "size").names == ("bias", "mae", "rmse", "r2")
    assert shown(chosen, "cls").names[0] == "brier"


def test_a_plugins_sums_add_up_to_the_metric_of_all_cases_and_no_others_are_believed() -> None:
    fg.register_metric("gap", Gap)
    task, rng = TASKS[0], np.random.default_rng(1)
    logits, truth = rng.normal(size=(50, 3)), rng.integers(-1, 3, 50)
    whole = with_more(("gap",), task, sums_of(task, logits, truth), logits, truth)
    halves = [
        with_more(("gap",), task, sums_of(task, logits[part], truth[part]), logits[part], truth[part])
        for part in (slice(0, 20), slice(20, 50))
    ]
    known = truth >= 0
    naive = float(np.abs(logits[known].argmax(axis=1) - truth[known]).mean())
    assert values_of(add(*halves))["gap"] == pytest.approx(values_of(whole)["gap"]) == pytest.approx(naive)
    bare = sums_of(task, logits[:20], truth[:20])
    assert "gap" not in values_of(add(halves[1], bare)), "what one site does not say is not known of both"
    _, more = parted(arrays_of(whole))
    assert "gap" in more
    assert values_of(read_more(("gap",), task, sums_of(task, logits, truth), more))["gap"] == pytest.approx(naive)
    for wrong in (
        {},
        {"gap": np.array([1000.0, 40.0])},
        {"gap": np.array([-1.0, 40.0])},
        {"gap": np.array([1.0])},
        {"gap": np.array([np.nan, 1.0])},
        more | {"other": np.zeros(2)},
    ):
        with pytest.raises(InputError, match="Metric sums"):
            read_more(("gap",), task, sums_of(task, logits, truth), wrong)


def test_masked_sums_of_a_plugins_metric_open_to_that_of_all_cases_and_no_others_are_believed() -> None:
    """The shapes are those of the study alone, whatever a site has; and the mean over sites is there as well."""
    fg.register_metric("gap", Gap)
    study = a_study(evaluate={"metrics": ["gap"], "floor": 1}, secure_aggregation=True)
    task, rng = study.tasks[0], np.random.default_rng(3)
    cases = [(rng.normal(size=(n, 3)), rng.integers(0, 3, n)) for n in (20, 35, 50, 0)]
    sites = [with_more(("gap",), task, sums_of(task, *own), *own) for own in cases]
    terms = [metric_summands({"cls": own}, {}, 1, study).arrays for own in sites]
    for own in terms:
        assert {key: (array.shape, array.dtype.name) for key, array in own.items()} == metric_shapes(study)
    total = {key: np.sum([own[key] for own in terms], axis=0).astype(np.float64) for key in terms[0]}
    found = pooled_metrics(total, study)["cls"]
    logits, truth = (np.concatenate([own[at] for own in cases]) for at in range(2))
    assert values_of(found.sums)["gap"] == pytest.approx(np.abs(logits.argmax(axis=1) - truth).mean())
    each = [np.abs(logits.argmax(axis=1) - truth).mean() for logits, truth in cases[:3]]
    assert (found.macro["gap"], found.sites["gap"]) == (pytest.approx(np.mean(each)), 3)
    bent = total | {"cls/more:gap": np.array([1000.0, 105.0])}
    with pytest.raises(InputError, match="gap and the number of cases do not agree"):
        pooled_metrics(bent, study)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"better": "up"}, "does not say which way is better. Set `better` to higher or lower or near_0"),
        ({"tasks": ("volume",)}, "does not say what tasks it is for"),
        ({"adds": (0.0, 1.0)}, "a case adds what is not from 0 to 1"),
        ({"high": 0.1}, "which is past its own ends"),
        ({"cases": lambda self, outputs, targets: np.zeros(3)}, "of 4 cases, not a row each"),
        ({"value": lambda self, sums: 1 / 0}, "`value` fails: ZeroDivisionError"),
    ],
)
def test_a_metric_that_is_not_as_it_says_is_refused(change: dict[str, Any], says: str) -> None:
    fg.register_metric("odd", type("Odd", (Gap,), change))
    logits = np.eye(3)[[0, 0, 2, 2]]

    def asked() -> float | None:
        one = plugged_metric("odd")
        return one.value(one.cases(logits, np.array([2, 1, 2, 0])).sum(axis=0))

    with pytest.raises(InputError) as caught:
        asked()
    assert says in str(caught.value)


def _ends(*_: Any) -> Any:
    raise KeyError("own")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": lambda self, sums: "high"}, "`value` fails: ValueError"),
        ({"value": _ends}, "`value` fails: KeyError: 'own'"),
        ({"cases": _ends}, "`cases` fails: KeyError: 'own'"),
        ({"cases": lambda self, outputs, targets: np.full((len(outputs), 1), 7.0)}, "adds what is not from 0 to 2"),
        ({}, None),
    ],
)
def test_a_metric_of_ones_own_is_tried_before_round_1(task: AnyTask, change: dict[str, Any], says: str | None) -> None:
    class Counts(Gap):
        tasks = (task.kind,)

        def cases(self, outputs: Any, targets: Any) -> Any:
            wrong = (outputs.reshape(len(outputs), -1)[:, 0] > 0) != (targets.reshape(len(targets), -1)[:, 0] > 0)
            return np.stack([wrong, np.ones(len(targets))], axis=1)

    fg.register_metric("odd", type("Odd", (Counts,), change))
    asked = a_study(evaluate={"metrics": ["odd"]}, asked=(task,))
    if says is None:
        assert not list(check_metrics(asked))
        nobody = np.zeros((0, 4, 4)) if task.kind == "segmentation" else np.zeros((0, 3))
        assert plugged_metric("odd").summed(task, nobody, nobody).tolist() == [0, 0]  # asked of no cases it would fail
    else:
        (fault,) = check_metrics(asked)
        assert fault.startswith("evaluate.metrics.0: The metric 'odd'")
        assert says in fault


def test_a_study_is_told_which_metrics_cannot_be_had() -> None:
    fg.register_metric("gap", Gap)
    stop = {"early_stopping": {"patience": 1}}
    check_study(a_study(evaluate={"metrics": ["gap"]}, secure_aggregation=True), "x")
    check_study(a_study(evaluate={"metrics": ["gap"], "headline": {"cls": "gap"}}, stage=stop), "x")
    for changes, says in (
        ({"evaluate": {"metrics": ["gpa"]}}, r"metrics\.0: there is no metric 'gpa'; did you mean gap\?"),
        ({"evaluate": {"metrics": ["auroc"]}}, "auroc is worked out anyway"),
        ({"evaluate": {"metrics": ["gap"]}, "asked": TASKS[1:2]}, "gap is for multiclass, and here is multilabel"),
        ({"evaluate": {"headline": {"cls": "mae"}}}, r"headline\.cls: mae is for regression, and here is multiclass"),
        ({"evaluate": {"headline": {"clss": "auroc"}}}, r"there is no task 'clss'; did you mean cls\?"),
        ({"evaluate": {"headline": {"cls": "gap"}}}, "there is no metric 'gap'"),
        ({"stage": {"early_stopping": {"metric": "acuracy"}}}, r"no metric 'acuracy'; did you mean accuracy\?"),
        ({"stage": stop, "asked": TASKS[:3]}, "the tasks have different headlines"),
        (
            {"stage": stop, "asked": (TASKS[2], AGE)},
            r"size: MAE \(mm\), age: MAE \(years\)\), of which there is no mean",
        ),
        ({"stage": {"early_stopping": {"metric": "rmse"}}, "asked": (TASKS[2], AGE)}, "is counted in different units"),
    ):
        with pytest.raises(StudyError, match=says):
            check_study(a_study(**changes), "x")
    check_study(a_study(stage={"early_stopping": {"metric": "r2"}}, asked=(TASKS[2], AGE)), "x")
    with pytest.raises(InputError, match="fedgraft has a metric 'dice' itself"):
        fg.register_metric("dice", Gap)


def test_only_what_is_counted_in_the_unit_of_the_values_has_that_unit_beside_it() -> None:
    """R² is a share, also where a study makes it the headline of values in mm."""
    metrics = {"size": {"shown": ["r2", "mae"], "macro": {"r2": 0.5, "mae": 2.0}}}
    result = {"metrics": metrics, "task_kinds": {"size": "regression"}, "task_classes": {"size": ["mm"]}}
    record = RunRecord("x", (), result, {}, "", {}, {})
    assert [tile.label for tile in tiles(record, "size")] == [
        "macro R²",
        "worst site’s R²",
        "macro MAE (mm)",
        "pooled R²",
    ]
    metrics["size"] |= {"pooled": {"n": 9, "mae": 2.0, "r2": 0.5}, "sites": {"one": {"n": 9, "mae": 2.0, "r2": 0.5}}}
    assert site_metrics(record, "size").columns == ("site", "cases", "MAE (mm)", "R²")
    assert {name for name, metric in TABLE.items() if metric.in_unit} == {"mae", "rmse", "bias"}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_whatever_is_the_headline_only_what_the_task_has_is_drawn_over_the_rounds(task: AnyTask) -> None:
    """Of values with another headline than their mean absolute error a loss was drawn, which they have not."""
    figures = set(zero(task).values())
    for headline in (*headlines(task), "loss" if "loss" in figures else "r2"):
        drawn = drawn_of(tuple(dict.fromkeys((headline, *headlines(task)))))
        assert drawn[0] == headline
        assert 2 <= len(set(drawn)) == len(drawn) <= 3
        assert set(drawn) <= figures


def test_a_curve_of_budgets_is_of_one_metric_in_one_unit() -> None:
    both = a_study(asked=(TASKS[2], AGE))
    with pytest.raises(InputError, match=r"MAE \(mm\), MAE \(years\)\), of which there is no mean"):
        headline_of(both)
    assert headline_of(a_study(asked=TASKS[2:3])).title == "MAE (mm)"
    assert headline_of(a_study(asked=(TASKS[2], AGE), evaluate={"headline": {"size": "r2", "age": "r2"}})).title == "R²"
