"""Arms of tasks of every kind: metrics under weights, and differences, against naive twins; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.metrics.sums.task_metrics import sums_of
from fedgraft.common.metrics.table import TABLE
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from fedgraft.simulations.compare.bootstrap import draw_patients, over_replicates
from fedgraft.simulations.compare.measures.answers import MERGED, Answers
from fedgraft.simulations.compare.measures.measure import measure
from fedgraft.simulations.compare.measures.under_weights import own_metrics, under_weights
from fedgraft.simulations.compare.paired import differences
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.refusals import measured, refuse_unmeasured
from fedgraft.simulations.compare.result import Group, answered, lines
from fedgraft.simulations.compare.running.cells import CellOutcome
from helpers.work import MakeStudy

TASKS: dict[str, AnyTask] = {
    "cls": Task(name="cls", classes=("a", "b", "c")),
    "signs": Multilabel(name="signs", kind="multilabel", labels=("one", "two")),
    "size": Regression(name="size", kind="regression", unit="mm", mean=20, std=10),
    "mask": Segmentation(name="mask", kind="segmentation"),
}
PAIRS = [(task, name) for task, asked in TASKS.items() for name in own_metrics(asked)]


def answers(task: str, skill: float = 1.0, seed: int = 0, cases: int = 60) -> Answers:
    """The same patients with the same targets for every skill and seed; some answers are ties, some targets missing."""
    rng, truth = np.random.default_rng([seed, round(100 * skill)]), np.random.default_rng(5)
    patients = np.arange(cases) // 2
    if task == "cls":
        targets = truth.integers(0, 3, cases)
        return Answers((rng.normal(size=(cases, 3)) + skill * np.eye(3)[targets]).round(1), targets, patients)
    if task == "signs":
        yes = truth.integers(0, 2, (cases, 2)).astype(np.float32)
        yes[::7, 0] = np.nan  # of one label it is not known, of the other it is
        logits = rng.normal(size=(cases, 2)) + skill * (np.nan_to_num(yes) - 0.5)
        return Answers(logits.round(1).astype(np.float32), yes, patients)
    if task == "size":
        values = truth.normal(20, 10, cases).astype(np.float32)
        return Answers(values + rng.normal(0, 6 / skill, cases), values, patients)
    true = truth.integers(0, 60, cases) * (np.arange(cases) % 4 > 0)
    guess = rng.integers(0, 60, cases) * (rng.uniform(size=cases) < 0.8)
    both = np.minimum(np.minimum(true, guess), (rng.uniform(0.2, 0.9, cases) * skill * true).astype(int))
    apart = np.where((true > 0) & (guess > 0) & (np.arange(cases) % 5 > 0), rng.uniform(1, 30, cases) / skill, np.nan)
    rows = np.stack([both, guess, true, apart, rng.uniform(0.1, 1, cases)], axis=1).astype(np.float64)
    return Answers(rows, np.zeros(cases, np.int64), patients)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_weight_is_as_good_as_so_many_copies(task: str, name: str) -> None:
    some, asked = answers(task), TASKS[task]
    weights = np.random.default_rng(1).integers(0, 4, (3, 60)).astype(float)
    weights[2] = 1
    for row, found in zip(weights, under_weights(name, asked, some, weights), strict=True):
        at = np.repeat(np.arange(60), row.astype(int))
        copies = sums_of(asked, some.outputs[at], some.targets[at]).values()[name]
        assert copies is not None
        assert found == pytest.approx(copies, abs=1e-9)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_of_no_case_nothing_is_a_number(task: str, name: str) -> None:
    some = answers(task)
    assert np.isnan(under_weights(name, TASKS[task], some, np.zeros((2, 60)))).all()
    none = Answers(some.outputs[:0], some.targets[:0], some.patients[:0])
    assert np.isnan(under_weights(name, TASKS[task], none, np.zeros((2, 0)))).all()


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_of_the_table_is_drawn_or_refused_with_a_reason(task: str, make_study: MakeStudy) -> None:
    """Whoever adds one to the table has to say which."""
    study = make_study(tasks=[TASKS[task].model_dump()])
    for metric in TABLE.values():
        if TASKS[task].kind in metric.tasks and metric.name in own_metrics(TASKS[task]):
            assert measure(study, None, metric.name, None).metric == metric
        else:
            with pytest.raises(InputError, match=metric.name):
                measure(study, None, metric.name, None)


def naive(task: str, own: Answers, counts: np.ndarray) -> float:
    """The headline of a task's kind, by its definition, with case after case as often as it counts."""
    at = [case for case, count in enumerate(counts) for _ in range(int(count))]
    if task == "size":
        return float(np.mean([abs(own.outputs[case] - own.targets[case]) for case in at]))
    if task == "mask":
        found = [case for case in at if own.outputs[case, 2] > 0]
        return float(np.mean([2 * own.outputs[c, 0] / (own.outputs[c, 1] + own.outputs[c, 2]) for c in found]))
    rows = []
    for label in range(own.outputs.shape[1]):
        if task == "signs":
            known = [case for case in at if not np.isnan(own.targets[case, label])]
            score = {case: float(own.outputs[case, label]) for case in known}
            yes = [case for case in known if own.targets[case, label] == 1]
        else:
            known = at
            rest = [other for other in range(3) if other != label]
            score = {c: own.outputs[c, label] - np.log(np.exp(own.outputs[c, rest]).sum()) for c in at}
            yes = [case for case in at if own.targets[case] == label]
        no = [case for case in known if case not in set(yes)]
        ours, theirs = (np.array([round(score[case], 6) for case in side]) for side in (yes, no))
        above = (ours[:, None] > theirs).mean() + 0.5 * (ours[:, None] == theirs).mean()
        rows.append(float(above))
    return float(np.mean(rows))


def groups(study: Study, task: str) -> list[Group]:
    """Of an arm that knows more than the others, at two sites, from three seeds; and of each site alone."""
    skills = {"study": 1.4, "local": 0.7}
    found = []
    for arm, skill in skills.items():
        outcomes = {}
        for seed in range(3):
            own = {site: {task: answers(task, skill + at / 10, seed)} for at, site in enumerate(("north", "south"))}
            models = dict.fromkeys(("north", "south"), own) if arm == "local" else {MERGED: own}
            outcomes[seed, 0] = CellOutcome(models, (), 1.0)
        found.append(Group(arm, None, outcomes, study))
    return found


def of_site(group: Group, seed: int, site: str, task: str) -> Answers:
    """What counts at a site: its own model's answers, or those of the one that all share."""
    found = group.outcomes[seed, 0].found
    return found.get(site, found.get(MERGED, {}))[site][task]


@pytest.mark.parametrize("task", TASKS)
def test_the_paired_difference_is_that_of_a_naive_twin(task: str, make_study: MakeStudy) -> None:
    """The estimate and every draw of patients, case after case by definition; who is better goes by the direction."""
    study, draws = make_study(tasks=[TASKS[task].model_dump()]), 12
    question = Question(arms=(BUILT_IN["local"], BUILT_IN["study"]), against="local")
    own = groups(study, task)
    result = answered(question, own)
    metric, lower = {"size": ("mae", True), "mask": ("dice", False)}.get(task, ("auroc", False))
    assert (result["metric"], result["better"] == "lower") == (metric, lower)
    decides, drawn, twins = measure(study, None, None, None), [], []
    for group in own:
        arm, twin = {}, {}
        for seed in range(3):
            sites = {site: of_site(group, seed, site, task) for site in ("north", "south")}
            counts = {site: draw_patients(one, (seed, 0), site) for site, one in sites.items()}
            arm[seed, 0] = {site: decides.of(one, counts[site]) for site, one in sites.items()}
            twin[seed] = {
                site: np.array([naive(task, one, counts[site][draw]) for draw in range(draws)])
                for site, one in sites.items()
            }
        drawn.append(arm)
        twins.append(twin)
    apart = differences(drawn[0], drawn[1])
    for seed in range(3):
        wanted = sum(twins[0][seed][site] - twins[1][seed][site] for site in ("north", "south")) / 2
        assert apart[seed, 0][:draws] == pytest.approx(wanted, abs=1e-6)
    row = {row["arm"]: row for row in result["rows"]}["study"]
    difference, found = row["difference"], over_replicates(apart)
    assert difference["value"] == pytest.approx(np.mean([own[0] for own in apart.values()]), abs=1e-9)
    assert (difference["low"], difference["high"]) == (found.low, found.high)
    assert difference["verdict"].startswith("better")
    assert (difference["value"] < 0) is lower
    gain = row["gains"]["north"]
    firsts = [twins[0][seed]["north"][0] - twins[1][seed]["north"][0] for seed in range(3)]
    assert gain["value"] == pytest.approx(np.mean(firsts), abs=1e-6)
    assert gain["verdict"].startswith("better")
    lowest = [(max if lower else min)(own[0] for own in twins[0][seed].values()) for seed in range(3)]
    assert row["worst"]["value"] == pytest.approx(np.mean(lowest), abs=1e-6)
    (written, *_) = lines(question, own)
    assert {*own_metrics(TASKS[task])} <= set(written)
    assert written[metric] == pytest.approx(twins[0][0]["north"][0], abs=1e-6)


def test_a_control_with_less_error_is_the_best_and_who_has_more_is_not_clear_of_it(make_study: MakeStudy) -> None:
    study = make_study(tasks=[TASKS["size"].model_dump()])
    arms = ("study", {"name": "good", "control": True}, {"name": "bad", "control": True})
    question = Question.model_validate({"arms": arms})
    own = []
    for arm, skill in {"study": 1.0, "good": 2.0, "bad": 0.5}.items():
        outcomes = {
            (seed, 0): CellOutcome({MERGED: {"north": {"size": answers("size", skill, seed)}}}, (), 1.0)
            for seed in range(3)
        }
        own.append(Group(arm, None, outcomes, study))
    row = answered(question, own)["rows"][0]
    assert (row["control"]["control"], row["control"]["clear"]) == ("good", False)
    assert row["control"]["value"] > 0
    own[0], own[1] = (Group(a.arm, None, b.outcomes, study) for a, b in ((own[0], own[1]), (own[1], own[0])))
    row = answered(question, own)["rows"][0]
    assert (row["control"]["control"], row["control"]["clear"]) == ("good", True)


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ({"task": "cls", "metric": "mae"}, "mae is for regression, and task cls is multiclass"),
        ({"task": "size", "metric": "auroc"}, "auroc is for multiclass and multilabel, and task size is regression"),
        ({"task": "sise"}, "there is no task 'sise'; did you mean size"),
        ({"task": "size", "metric": "rmse", "shots": [5], "who": "new_site"}, "so many cases of each class"),
    ],
)
def test_what_cannot_decide_is_refused_before_anything_is_trained(
    question: dict[str, Any], fault: str, make_study: MakeStudy
) -> None:
    study = make_study(tasks=[task.model_dump() for task in TASKS.values()])
    arms = ["new_site", "source_only"] if question.pop("who", None) else ["study", "local"]
    asked = Question.model_validate({"arms": arms, "against": arms[0]} | question)
    with pytest.raises(StudyError, match=fault):
        measured(asked, study, "here")


@pytest.mark.parametrize(
    ("metric", "fault"), [("bias", "best near 0"), ("ppv", "threshold"), ("dyce", "did you mean dice")]
)
def test_a_metric_that_never_decides_is_refused_where_it_is_read(metric: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Question.model_validate({"arms": ["study", "local"], "metric": metric})


def test_an_arm_that_leaves_masks_to_chance_is_refused(make_study: MakeStudy) -> None:
    """A ridge on thumbnails would answer with the masks of random entries, and be a control that anything beats."""
    study = make_study(tasks=[TASKS["cls"].model_dump(), TASKS["mask"].model_dump()])
    decides = measure(study, "mask", None, None)
    ridge = BUILT_IN["ridge_probe"]
    with pytest.raises(StudyError, match="sums over features solve no masks"):
        refuse_unmeasured(ridge.apply(study, "x"), ridge, decides, "here")
    refuse_unmeasured(ridge.apply(study, "x"), ridge, measure(study, "cls", None, None), "here")
    other = make_study(tasks=[TASKS["size"].model_dump() | {"unit": "cm"}])
    with pytest.raises(StudyError, match="asks size in another way"):
        refuse_unmeasured(
            other, BUILT_IN["study"], measure(make_study(tasks=[TASKS["size"].model_dump()]), None, None, None), "x"
        )


def test_the_margin_goes_by_what_the_metric_is_counted_in(make_study: MakeStudy) -> None:
    study = make_study(tasks=[task.model_dump() for task in TASKS.values()])
    margins = {(task, name): measure(study, task, name, None).margin for task, name in PAIRS}
    assert (margins["size", "mae"], margins["size", "r2"], margins["mask", "hd95_mm"]) == (0.5, 0.02, 1.0)
    assert margins["cls", "auroc"] == margins["mask", "dice"] == margins["signs", "auroc"] == 0.02
    assert measure(study, "size", None, 3.0).margin == 3.0
    assert measure(study, "size", None, None).title == "MAE (mm)"
    assert measure(study, "size", "r2", None).title == "R²"
    named = make_study(tasks=[TASKS["size"].model_dump()], evaluate={"headline": {"size": "rmse"}})
    assert measure(named, None, None, None).metric.name == "rmse", "the headline that the study names"
