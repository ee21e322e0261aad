"""Whether a run has completed: all that were asked, in every round, or as few as the study says."""

from __future__ import annotations

from typing import Any

import pytest

from fedgraft.common.protocol.instructions import Code, Greeting
from fedgraft.server.rounds.exchange.attendance import attendance

SITES = ("east", "north", "south")


def greetings(*names: str) -> dict[str, Greeting]:
    return {name: Greeting(name, {"train": 10}, {}, labelled=True) for name in names}


def rows(rounds: int, took_part: dict[str, range], missing: str = "deadline") -> list[dict[str, Any]]:
    """The history of one stage and of the evaluation after it; a site is asked from the first round it was there in."""
    found = []
    for number in range(1, rounds + 2):
        last = number == rounds + 1
        there = [site for site, numbers in took_part.items() if number in numbers]
        asked = [site for site, numbers in took_part.items() if number >= numbers.start]
        found.append(
            {
                "stage_index": 0,
                "stage": "evaluate" if last else "train",
                "round": 1 if last else number,
                "sites_asked": asked,
                "sites_aggregated": there,
                "missing": {site: missing for site in asked if site not in there},
            }
        )
    return found


def test_all_to_the_end_is_completed(make_study):
    study = make_study(method="fedavg")
    found = attendance(study, greetings(*SITES), {}, rows(4, dict.fromkeys(SITES, range(1, 6))))
    assert (found.status, found.headline, found.enough) == ("completed", "3 of 3 sites", True)


def test_one_of_three_that_trained_for_37_of_40_rounds_is_no_success(make_study):
    study = make_study(method="fedavg")
    took_part = {"east": range(1, 42), "north": range(1, 4), "south": range(1, 4)}
    found = attendance(study, greetings(*SITES), {}, rows(40, took_part))
    assert (found.status, found.enough) == ("incomplete", False)
    assert found.headline == "1 of 3 sites; missing: north, deadline; south, deadline"


def test_a_site_that_came_later_was_missing_before(make_study):
    study = make_study(method="fedavg")
    took_part = {"east": range(1, 42), "north": range(38, 42), "south": range(38, 42)}
    found = attendance(study, greetings(*SITES), {}, rows(40, took_part))
    assert (found.status, found.enough) == ("incomplete", False)
    assert "3 of 3 sites at the end; missing on the way: " in found.headline
    assert "north, not there yet (train, rounds 1 to 37)" in found.headline


def test_a_round_without_a_site_is_named_and_no_success_by_itself(make_study):
    study = make_study(method="fedavg")
    history = rows(4, dict.fromkeys(SITES, range(1, 6)))
    history[1] |= {"sites_aggregated": ["east", "south"], "missing": {"north": "deadline"}}
    found = attendance(study, greetings(*SITES), {}, history)
    assert found.headline == "3 of 3 sites at the end; missing on the way: north, deadline (train, round 2)"
    assert (found.status, found.enough) == ("incomplete", False)


@pytest.mark.parametrize(
    ("rules", "enough"),
    [
        ({}, False),
        ({"min_sites": 2}, True),
        ({"quorum": 0.6}, True),
        ({"min_sites": 3}, False),
        ({"quorum": 0.7}, False),
    ],
)
def test_the_study_says_how_few_will_do(make_study, rules, enough):
    """One of three never came: two took part to the end."""
    study = make_study(method="fedavg", rounds=rules)
    history = rows(4, dict.fromkeys(("east", "north"), range(1, 6)))
    found = attendance(study, greetings("east", "north"), {"south": Code.UNREACHABLE}, history)
    assert (found.status, found.enough) == ("incomplete", enough)
    assert found.headline == "2 of 3 sites; missing: south, unreachable"


def test_what_the_study_says_holds_to_the_end(make_study):
    """Too few at the last evaluation are too few, whatever the rounds before had."""
    study = make_study(method="fedavg", rounds={"min_sites": 2})
    took_part = {"east": range(1, 6), "north": range(1, 5), "south": range(1, 5)}
    assert not attendance(study, greetings(*SITES), {}, rows(4, took_part)).enough


def test_what_the_study_says_holds_in_every_round(make_study):
    """All are there at the end, and one of them trained alone before: a run like that was a success."""
    study = make_study(method="fedavg", rounds={"min_sites": 2})
    took_part = {"east": range(1, 6), "north": range(3, 6), "south": range(3, 6)}
    found = attendance(study, greetings(*SITES), {}, rows(4, took_part))
    assert (found.status, found.enough) == ("incomplete", False)


def test_one_site_alone_completes(make_study):
    study = make_study(method="fedavg")
    found = attendance(study, greetings("east"), {}, rows(2, {"east": range(1, 4)}))
    assert (found.status, found.enough) == ("completed", True)
