"""Figures by subgroup against somebody who subtracts: nothing of fewer than ten patients follows from what is shown."""

from __future__ import annotations

from itertools import chain, combinations, product

import numpy as np
import pytest

from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.privacy.release.metric_release import LEAST, suppressed, without_confusion
from fedgraft.client.privacy.release.open_groups import open_groups
from fedgraft.client.privacy.release.subgroup_release import CaseGroups
from fedgraft.common.metrics.subgroups import named
from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_of
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task
from helpers.work import MakeStudy

TWO = Task(name="cls", classes=("no", "yes"))


def answers(classes: int, cases: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, cases)
    return (rng.normal(size=(cases, classes)) + np.eye(classes)[truth]).astype(np.float32), truth


def shown_of(
    by: dict[str, np.ndarray], people: np.ndarray, pair: tuple[np.ndarray, np.ndarray], task: AnyTask = TWO
) -> dict[str, TaskSums]:
    return CaseGroups(by, people, by).exact({task.name: pair}, {task.name: task})


def unions(sets: list[frozenset[int]]) -> set[frozenset[int]]:
    chosen = chain.from_iterable(combinations(sets, n) for n in range(len(sets) + 1))
    return {frozenset().union(*some) for some in chosen}


def test_a_small_group_is_not_the_rest_of_all_others() -> None:
    """100 women and 4 men: who has the figures of all, and those of the women, has those of the men."""
    sex = np.array([0] * 100 + [1] * 4)
    pair = answers(2, 104)
    people = np.arange(104)
    assert shown_of({"sex": sex}, people, pair) == {}
    # The attack, on what a floor alone lets out: the four men, label by label.
    whole, women = sums_of(TWO, *pair), sums_of(TWO, pair[0][sex == 0], pair[1][sex == 0])
    men = whole.confusion - women.confusion
    assert (men == sums_of(TWO, pair[0][sex == 1], pair[1][sex == 1]).confusion).all()


def test_the_smallest_large_group_goes_with_a_small_one() -> None:
    age = np.array([0] * 60 + [1] * 30 + [2] * 5)
    found = shown_of({"age": age}, np.arange(95), answers(2, 95))
    assert set(found) == {named("cls", "age", 0)}
    assert found[named("cls", "age", 0)].n == 60


def test_cases_of_unknown_value_are_a_rest_too() -> None:
    """Five patients of whom the sex is not known follow from all cases less both sexes."""
    sex = np.array([0] * 60 + [1] * 40 + [-1] * 5)
    assert set(shown_of({"sex": sex}, np.arange(105), answers(2, 105))) == {named("cls", "sex", 0)}


def test_a_patient_with_many_images_is_one() -> None:
    sex = np.array([0] * 60 + [1] * 40)
    people = np.where(sex == 1, 1000, np.arange(100))
    assert shown_of({"sex": sex}, people, answers(2, 100)) == {}


def test_a_group_within_another_s_group_does_not_tell_those_between() -> None:
    """Pregnant patients are women: 46 women less 43 pregnant ones are 3."""
    sex = np.array([0] * 46 + [1] * 50)
    pregnant = np.array([0] * 43 + [1] * 53)
    found = shown_of({"sex": sex, "pregnant": pregnant}, np.arange(96), answers(2, 96))
    assert set(found) == {named("cls", "sex", 0), named("cls", "sex", 1)}
    apart = np.array([0] * 23 + [1] * 73)
    both = shown_of({"sex": sex, "pregnant": apart}, np.arange(96), answers(2, 96))
    assert {named("cls", "sex", 0), named("cls", "pregnant", 0)} <= set(both)


@pytest.mark.parametrize("seed", range(40))
def test_no_subtraction_of_what_is_shown_leaves_few(seed: int) -> None:
    """Somebody who tries all unions of two attributes' groups, on cohorts whose attributes lie within each other."""
    rng = np.random.default_rng(seed)
    cases = int(rng.integers(40, 160))
    people = rng.integers(0, cases, cases) if seed % 2 else np.arange(cases)
    age = rng.integers(0, 90, cases)
    by = {
        "age": np.searchsorted([0, 30, 60], age, side="right") - 1,
        "ward": np.where(age < int(rng.integers(28, 45)), 0, rng.integers(0, 3, cases)),
        "sex": np.where(rng.uniform(size=cases) < 0.9, rng.integers(0, 2, cases), -1),
    }
    found = open_groups(by, people, [np.ones(cases, bool)], LEAST)
    everybody = frozenset(range(cases))
    derived: dict[str, set[frozenset[int]]] = {}
    for name, groups in found.items():
        sets = [frozenset(np.flatnonzero(by[name] == one).tolist()) for one in groups]
        derived[name] = unions([*sets, everybody.difference(*sets)]) if sets else {frozenset(), everybody}
    for one, other in combinations(derived.values(), 2):
        for a in one:
            for b in other:
                between = a - b if b <= a else b - a if a <= b else frozenset[int]()
                assert not between or len(set(people[sorted(between)].tolist())) >= LEAST


def test_two_groups_that_are_nearly_the_same_do_not_tell_who_is_in_one_alone() -> None:
    """49 women and a man were in the ward, and one woman was not: less each other, the figures are these two people's.

    Neither group lies within the other, and a histogram shows both: one bin up, one bin down.
    """
    sex = np.array([0] * 50 + [1] * 50)
    ward = np.array([0] * 49 + [1] + [0] + [1] * 49)
    pair = answers(2, 100)
    found = shown_of({"sex": sex, "ward": ward}, np.arange(100), pair)
    women, there = (sums_of(TWO, pair[0][own == 0], pair[1][own == 0]) for own in (sex, ward))
    assert np.abs(women.confusion - there.confusion).sum() <= 2
    assert set(found) == {named("cls", "sex", 0), named("cls", "sex", 1)}


def test_three_attributes_together_do_not_tell_of_few() -> None:
    """Of 63 from one ward 30 are women, 30 more are smokers, and nobody both: 63 less 30 less 30 are 3."""
    ward = np.array([0] * 63 + [1] * 60)
    women = np.array([0] * 30 + [1] * 93)
    smokers = np.array([1] * 30 + [0] * 30 + [1] * 63)
    by = {"ward": ward, "women": women, "smokers": smokers}
    found = open_groups(by, np.arange(123), [np.ones(123, bool)], LEAST)
    assert found == {"ward": (0, 1), "women": (0, 1), "smokers": ()}


@pytest.mark.parametrize("seed", range(20))
def test_no_sum_of_groups_is_over_few(seed: int) -> None:
    """Somebody who adds and subtracts all groups of three attributes in all ways, each once."""
    rng = np.random.default_rng(seed)
    cases = int(rng.integers(40, 120))
    base = rng.integers(0, 2, cases)
    by = {
        name: np.where(rng.uniform(size=cases) < few, rng.integers(0, groups, cases), base)
        for name, groups, few in (("a", 2, 0.05), ("b", 3, 0.1), ("c", 3, rng.uniform(0, 1)))
    }
    people = rng.integers(0, cases, cases) if seed % 2 else np.arange(cases)
    found = open_groups(by, people, [np.ones(cases, bool)], LEAST)
    shown = [np.ones(cases), *(1.0 * (by[name] == one) for name, groups in found.items() for one in groups)]
    ways = np.array(list(product((-1, 0, 1), repeat=len(shown))))
    for sums in np.unique(ways @ np.array(shown), axis=0):
        assert not sums.any() or len(np.unique(people[sums != 0])) >= LEAST


def test_of_many_small_cells_what_cannot_be_looked_at_is_not_shown() -> None:
    """Four attributes of eight groups over 400 patients: the site answers, and soon."""
    rng = np.random.default_rng(0)
    by = {name: rng.integers(0, 8, 400) for name in "abcd"}
    found = open_groups(by, np.arange(400), [np.ones(400, bool)], LEAST)
    assert len(found["a"]) == len(found["b"]) == 8
    assert found["d"] == ()


def test_of_coarse_counts_every_class_is_large_inside_and_outside() -> None:
    """Where no cell below ten is shown, no group is one that leaves 5 positives outside."""
    truth = np.array([1] * 40 + [0] * 60 + [1] * 5 + [0] * 40)
    sex = np.array([0] * 100 + [1] * 45)
    logits = np.stack([np.zeros(145), np.linspace(-2, 2, 145)], axis=1)
    groups = CaseGroups({"sex": sex}, np.arange(145), ["sex"])
    assert groups.coarse({"cls": (logits, truth)}, {"cls": TWO}, without_confusion) == {}
    more = np.array([1] * 40 + [0] * 60 + [1] * 15 + [0] * 30)
    found = groups.coarse({"cls": (logits, more)}, {"cls": TWO}, without_confusion)
    assert set(found) == {named("cls", "sex", 0), named("cls", "sex", 1)}
    for sums in found.values():
        assert not sums.confusion.any()
        assert (sums.scores.totals() >= LEAST).all()
    whole = suppressed(sums_of(TWO, logits, more))
    rest = whole.scores.totals() - found[named("cls", "sex", 0)].scores.totals()
    assert (rest >= LEAST).all()


def test_each_label_has_its_own_groups() -> None:
    """Of a label that is known for three men, nobody learns it: not from the men, nor from all less the women."""
    task = Multilabel(name="finding", kind="multilabel", labels=("a", "b"))
    sex = np.array([0] * 50 + [1] * 50)
    truth = np.tile(np.array([[0.0, 1.0], [1.0, 0.0]]), (50, 1))
    truth[53:, 1] = np.nan
    logits = np.random.default_rng(0).normal(size=(100, 2))
    found = shown_of({"sex": sex}, np.arange(100), (logits, truth), task)
    for sums in found.values():
        assert sums.known.tolist() == [50, 0]


@pytest.mark.parametrize(
    ("task", "pair"),
    [
        (
            Regression(name="size", kind="regression", unit="mm", mean=0.0, std=1.0),
            (np.zeros(40), np.where(np.arange(40) < 33, 1.0, np.nan)),
        ),
        (
            Segmentation(name="mask", kind="segmentation"),
            (
                np.where(np.arange(40)[:, None] < 33, [1.0, 2.0, 2.0, np.nan, 0.1], np.nan),
                np.where(np.arange(40) < 33, 0, -1),
            ),
        ),
    ],
)
def test_cases_whose_answer_is_not_known_count_nowhere(task: AnyTask, pair: tuple[np.ndarray, np.ndarray]) -> None:
    """20 women and 20 men, of whom 13 have a value: seven without one are no patients that hide the others."""
    sex = np.array([0] * 20 + [1] * 20)
    found = shown_of({"sex": sex}, np.arange(40), pair, task)
    assert {name: sums.n for name, sums in found.items()} == {
        named(task.name, "sex", 0): 20,
        named(task.name, "sex", 1): 13,
    }
    few = np.array([0] * 25 + [1] * 15)
    assert shown_of({"sex": few}, np.arange(40), pair, task) == {}


def test_another_set_of_groups_is_refused(make_study: MakeStudy) -> None:
    """Bands to 40 in one study and to 41 in the next would tell those who are 40: a policy names one set for all."""
    policy = SitePolicy(metrics="exact", subgroups={"age": (0, 40, 120), "sex": ("female", "male")})

    def allowed(policy: SitePolicy = policy, **asked: object) -> list[str]:
        study = make_study(evaluate={"subgroups": [asked]})
        return [one.name for one in policy.subgroups_of(study)]

    assert allowed(name="age", bands=[0, 40, 120]) == ["age"]
    assert allowed(name="age", bands=[0, 41, 120]) == []
    assert allowed(name="age", values=["0", "40", "120"]) == []
    assert allowed(name="sex", values=["female", "male"]) == ["sex"]
    assert allowed(name="sex", values=["female", "male", "other"]) == []
    assert allowed(name="vendor", values=["GE"]) == []
    assert allowed(SitePolicy(metrics="exact"), name="sex", values=["female", "male"]) == []
    for metrics in ("none", "noised", "secure_aggregation"):
        closed = policy.model_copy(update={"metrics": metrics})
        assert allowed(closed, name="sex", values=["female", "male"]) == []


def test_few_patients_who_are_in_several_groups_are_few() -> None:
    """Six patients seen in two wards are between the two wards and the women: six, however many images they have."""
    people = np.array([*range(40), *range(100, 106), *range(100, 106), *range(200, 220)])
    sex = np.array([0] * 40 + [1] * 32)
    ward = np.array([0] * 20 + [1] * 20 + [0] * 6 + [1] * 6 + [2] * 20)
    found = shown_of({"sex": sex, "ward": ward}, people, answers(2, 72))
    assert set(found) == {named("cls", "sex", 0), named("cls", "sex", 1)}


def test_errors_of_a_group_do_not_leave_those_of_the_rest() -> None:
    """No cell of the women's errors is small, nor of all patients', and those of the men would be: 2 and 1."""
    truth = np.array(([0] * 40 + [1] * 40) * 2)
    said = np.array([0] * 25 + [1] * 15 + [0] * 15 + [1] * 25 + [0] * 38 + [1] * 2 + [0] * 1 + [1] * 39)
    logits = np.stack([1.0 - said, said], axis=1)
    sex = np.array([0] * 80 + [1] * 80)
    assert (sums_of(TWO, logits, truth).confusion >= LEAST).all()
    groups = CaseGroups({"sex": sex}, np.arange(160), ["sex"])
    found = groups.coarse({"cls": (logits, truth)}, {"cls": TWO}, without_confusion)
    assert found
    assert not any(sums.confusion.any() for sums in found.values())
