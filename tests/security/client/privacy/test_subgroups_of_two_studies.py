"""Figures by subgroup in several studies over the same test cases: together they tell no more than each of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.privacy.release.metric_release import LEAST, without_confusion
from fedgraft.client.privacy.release.subgroup_release import CaseGroups
from fedgraft.client.runtime.sessions import Models, Session
from fedgraft.common.base.errors import DataError
from fedgraft.common.metrics.subgroups import named
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.first_look import first_look
from fedgraft.simulations.engines.run import OPEN
from helpers.tables import sgd, study

YES = ("yes", "no")


def asking(*subgroups: Mapping[str, Any], **local: Any) -> Study:
    stage = {"name": "train", "rounds": 1, "local": sgd(**local), "share": "all", "aggregate": {"kind": "mean"}}
    return study(stage, evaluate={"every": 0, "subgroups": list(subgroups)})


class Coordinator:
    """Who asks one site, study by study, for figures of one model by what it likes. All cases are test cases."""

    def __init__(self, root: Path, table: Mapping[str, np.ndarray], **policy: Any) -> None:
        """`table` has by attribute whether each patient is in its first group."""
        self.table = table
        count = len(next(iter(table.values())))
        rng = np.random.default_rng(0)
        self.truth = np.arange(count) % 2
        self.logits = rng.normal(size=(count, 2))
        rows = ["PatientID,cls,one,two,split," + ",".join(table)]
        for at in range(count):
            words = (YES[0] if own[at] else YES[1] for own in table.values())
            rows.append(f"p{at},{'ab'[self.truth[at]]},0,1,test,{','.join(words)}")
        path = root / "t.csv"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        spec = CohortSpec(kind="table", root=path, patient_column="PatientID", split_column="split")
        rules = SitePolicy(**({"metrics": "exact", "subgroups": dict.fromkeys(table, YES)} | policy))
        self.config = SiteConfig(name="north", cohort=spec, state=root / "state", cache=root / "cache", policy=rules)

    def asks(self, *names: str, coarse: bool = False) -> dict[str, TaskSums]:
        """What a study by these attributes gets."""
        asked = asking(*({"name": name, "values": YES} for name in names))
        place = place_of(self.config, asked.digest)
        cohort = load_cohort("north", self.config.cohort, cohort_request(self.config, asked), place)
        cases = cohort.splits["test"]
        assert len(cases) == len(self.truth)
        groups = CaseGroups.of(cohort, cases, asked)
        answers = {"cls": (self.logits[cases], self.truth[cases])}
        if coarse:
            return groups.coarse(answers, asked.tasks_by_name, without_confusion)
        return groups.exact(answers, asked.tasks_by_name)

    def people(self, name: str) -> np.ndarray:
        """Who is in all, and in each group of the attribute of which figures were had: (groups, patients)."""
        sums, own = self.asks(name), self.table[name]
        shown = [there for at, there in enumerate((own, ~own)) if named("cls", name, at) in sums]
        return np.array(shown, dtype=float).reshape(len(shown), len(own))


def of(*spans: tuple[int, int], count: int) -> np.ndarray:
    """Who lies in one of these ranges."""
    return np.any([(np.arange(count) >= low) & (np.arange(count) < high) for low, high in spans], axis=0)


def fewest(known: np.ndarray) -> int:
    """Over how few patients a sum of these rows is, each added or subtracted once or not at all."""
    sums = np.array(list(product((-1, 0, 1), repeat=len(known)))) @ known
    sizes = (np.abs(sums) > 0).sum(axis=1)
    return int(sizes[sizes > 0].min())


@pytest.mark.parametrize("coarse", [False, True])
def test_one_study_by_sex_and_one_by_ward_do_not_tell_who_is_in_one_alone(tmp_path: Path, coarse: bool) -> None:
    """49 women and a man were in the ward and one woman was not: both studies together would tell of these two."""
    women, ward = of((0, 50), count=100), of((0, 49), (50, 51), count=100)
    one = Coordinator(tmp_path, {"sex": women, "ward": ward}, metrics="suppressed" if coarse else "exact")
    first, second = one.asks("sex", coarse=coarse), one.asks("ward", coarse=coarse)
    assert set(first) == {named("cls", "sex", at) for at in range(2)}
    assert second == {}
    assert set(one.asks("ward", "sex", coarse=coarse)) == set(first)


def test_three_studies_do_not_tell_of_the_three_that_none_of_them_shows(tmp_path: Path) -> None:
    """Of 63 of a ward 30 are women and 30 others smoke: no two of these studies tell of few, and all three do."""
    table = {
        "ward": of((0, 63), count=123),
        "women": of((0, 30), count=123),
        "smokers": of((30, 60), count=123),
    }
    one = Coordinator(tmp_path, table)
    known = np.concatenate([np.ones((1, 123)), *(one.people(name) for name in table)])
    assert len(known) > 1
    assert fewest(known) >= LEAST
    # The attack, on what each study alone may show.
    naive = [np.stack([own, ~own]).astype(float) for own in table.values()]
    assert fewest(np.concatenate([np.ones((1, 123)), *naive])) == 3


@pytest.mark.parametrize("seed", range(6))
def test_what_is_shown_does_not_depend_on_which_study_asks(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.uniform(size=90) < 0.5
    table = {name: base ^ (rng.uniform(size=90) < odd) for name, odd in (("a", 0.03), ("b", 0.08), ("c", 0.5))}
    one = Coordinator(tmp_path, table)
    alone = [set(one.asks(name)) for name in table]
    assert set().union(*alone) == set(one.asks(*reversed(table)))
    known = np.concatenate([np.ones((1, 90)), *(one.people(name) for name in table)])
    assert fewest(known) >= LEAST


def test_groups_of_its_own_do_not_come_out_under_those_of_the_policy(tmp_path: Path) -> None:
    """A study that asks for sex as the site lists it and for other groups of the ward gets the first alone."""
    women, ward = of((0, 50), count=100), of((25, 75), count=100)
    one = Coordinator(tmp_path, {"sex": women, "ward": ward})
    asked = asking({"name": "sex", "values": YES}, {"name": "ward", "values": ("yes", "elsewhere")})
    wanted = cohort_request(one.config, asked)
    cohort = load_cohort("north", one.config.cohort, wanted, place_of(one.config, asked.digest))
    assert [group.name for group in wanted.subgroups] == ["sex", "ward"]
    assert CaseGroups.of(cohort, cohort.splits["test"], asked).asked == ["sex"]


def test_an_attribute_that_nothing_says_is_no_way_round(tmp_path: Path) -> None:
    """What is listed and cannot be looked at is a fault, and not left out of what is judged."""
    rules = {"sex": YES, "ward": YES, "region": YES}
    one = Coordinator(tmp_path, {"sex": of((0, 50), count=100), "ward": of((25, 75), count=100)}, subgroups=rules)
    with pytest.raises(DataError, match="has no column 'region' for the subgroup 'region', which the policy allows"):
        one.asks("sex")
    assert one.asks() == {}


def test_nothing_need_say_the_subgroups_of_a_source(tmp_path: Path) -> None:
    """No figures of its cases leave, and its table has no such column; neither a run's first look nor the site asks."""
    one = Coordinator(tmp_path, {"sex": of((0, 50), count=100)})
    path = tmp_path / "source.csv"
    path.write_text("PatientID,cls,one,two\n" + "".join(f"s{at},{'ab'[at % 2]},0,1\n" for at in range(60)))
    spec = CohortSpec(kind="table", root=path, patient_column="PatientID")
    mine = one.config.cohort.model_copy(update={"split_column": None})
    open_ = OPEN.model_copy(update={"subgroups": {"sex": YES}})
    config = one.config.model_copy(update={"cohort": mine, "source": spec, "policy": open_})
    home = tmp_path / "sites" / "north" / "site.json"
    config.write(home)
    losses = [{"kind": "supervised"}, {"kind": "discrepancy", "measure": "mmd", "weight": 0.1}]
    asked = asking({"name": "sex", "values": YES}, losses=losses)
    first_look(asked, tmp_path, print, allow_missing_sites=False)
    assert Session(home, Models()).site(asked).name == "north"


@pytest.mark.parametrize("groups", [(), ("female", "female"), (40.0, 20.0), (40.0,)])
def test_a_policy_with_odd_groups_is_refused(groups: tuple[Any, ...]) -> None:
    """They are judged whichever study asks, so that they must be groups."""
    with pytest.raises(ValueError, match=r"sex: .*(give either values or|values must differ|bands are two or more)"):
        SitePolicy(metrics="exact", subgroups={"sex": groups})
