"""A run is pinned to what a site answered: the site begins only if it is its own answer, over the cases it has now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedgraft.client.runtime.app import forget
from fedgraft.common.protocol.answers import Pin, SiteAnswer
from fedgraft.common.protocol.instructions import Code, Greeting, Refusal, Update
from helpers.asked import PLAIN, a_site, a_study, patients, write
from helpers.played import PlayedSite

STUDY = a_study()
ROWS = patients(benign=30, malignant=30)


@pytest.fixture
def site(tmp_path) -> Iterator[PlayedSite]:
    yield a_site(tmp_path / "north", ROWS)
    forget()


def pin_of(site: PlayedSite, study=STUDY) -> Pin:
    answer = site.supplies(study)
    assert isinstance(answer, SiteAnswer)
    return answer.pin


def refused(answer: Greeting | Refusal) -> Code | None:
    return answer.code if isinstance(answer, Refusal) else None


def test_a_site_that_is_as_it_said_takes_part(site) -> None:
    pin = pin_of(site)
    assert isinstance(site.greets(STUDY, pin), Greeting)
    changed = a_study(plan=[PLAIN[0] | {"rounds": 3}])
    assert isinstance(site.greets(changed, pin), Greeting), "a longer plan asks the same of the data"


@pytest.mark.parametrize("what", ["a label", "a patient", "a value"])
def test_a_site_whose_cases_changed_says_so_to_both(site, tmp_path, what: str) -> None:
    pin, table = pin_of(site), tmp_path / "north" / "table.csv"
    before = table.read_text()
    match what:
        case "a label":
            table.write_text(before.replace("benign0,benign,", "benign0,malignant,", 1))
        case "a patient":
            write(table, [*ROWS, ("new", "benign")])
        case _:
            table.write_text(before.replace(",50,", ",51,", 1))
    assert table.read_text() != before
    assert refused(site.greets(STUDY, pin)) is Code.COHORT_CHANGED
    assert "the cases are not those over which this site answered" in (site.state / "site.log").read_text()
    table.write_text(before)
    assert isinstance(site.greets(STUDY, pin), Greeting)


def test_a_forged_agreement_is_refused(site, tmp_path) -> None:
    """The coordinator makes up an answer, or takes that of another site, question or time for this one."""
    pin = pin_of(site)
    other = a_site(tmp_path / "other", ROWS)
    more = replace(site.supplies(STUDY), patients=(1000, 1499))
    forged = [
        replace(pin, answer=more.digest),
        replace(pin, state="0" * 64),
        replace(pin, seal="0" * 64),
        pin_of(other),
        pin_of(site, a_study("benign", "malignant", "cyst")),
    ]
    assert [refused(site.greets(STUDY, one)) for one in forged] == [Code.OTHER_AGREEMENT] * len(forged)
    assert "never gave" in (site.state / "site.log").read_text()


@pytest.mark.slow
def test_a_study_that_has_begun_does_not_end_when_patients_come(site, tmp_path) -> None:
    pin = pin_of(site)
    site.greets(STUDY, pin)
    assert isinstance(site.visits(STUDY, 1), Update)
    write(tmp_path / "north" / "table.csv", [*ROWS, ("new", "benign")])
    site.restart()
    assert isinstance(site.greets(STUDY, pin), Greeting)
