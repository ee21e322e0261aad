"""How long a run waits for people at a site, and whom it asks meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Answer, Code, Instruction, Refusal, Update
from fedgraft.server.fleet.fleet import Reply
from fedgraft.server.rounds.exchange import release
from fedgraft.server.rounds.exchange.release import Releases

ASKED = Instruction("0" * 64, 3, 0, 3, True, None, {"w": np.ones(4)}, "")
STATE = {"w": np.ones(4), "v": np.zeros(2)}
ANSWER = Update(3, {}, {}, {}, {})


class Fleet:
    """Sites that answer from a script; the clock goes on with each question."""

    def __init__(self, **scripts: list[Answer | str]) -> None:
        self.scripts = scripts
        self.now = 1000.0
        self.asked: list[dict[str, Instruction]] = []

    def exchange(self, some: Mapping[str, Instruction], deadline_s: float | None) -> Iterator[Reply]:
        self.asked.append(dict(some))
        self.now += 10
        for site in some:
            answer = self.scripts[site].pop(0) if len(self.scripts[site]) > 1 else self.scripts[site][0]
            yield Reply(site, Refusal(3, Code(answer)) if isinstance(answer, str) else answer, 1, 1)

    def away(self, sites: Collection[str]) -> set[str]:
        return {site for site in sites if self.scripts[site] == ["away"]}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release.time, "sleep", lambda _seconds: None)


def waited(fleet: Fleet, wait_s: float = 100.0, began: float | None = None) -> tuple[dict[str, Answer], list[Any]]:
    told: list[Any] = []
    found = Releases(
        fleet, wait_s, lambda kind, **facts: told.append((kind, facts)), lambda _: began, lambda: fleet.now
    )  # type: ignore[arg-type]
    answers = found.answers(dict.fromkeys(fleet.scripts, ASKED), dict.fromkeys(fleet.scripts, STATE), None)
    return {reply.site: reply.answer for reply in answers}, told


def test_each_site_is_asked_until_its_people_decide_and_is_sent_nothing_again() -> None:
    fleet = Fleet(north=["held", "unreachable", "held", ANSWER], south=["release_refused"])
    answers, told = waited(fleet)
    assert answers == {"south": Refusal(3, Code.RELEASE_REFUSED), "north": ANSWER}
    assert [set(asked) for asked in fleet.asked] == [{"north", "south"}, {"north"}, {"north"}, {"north"}]
    assert all(not one.tensors and one.held for asked in fleet.asked for one in asked.values())
    assert [(kind, facts["sites"]) for kind, facts in told] == [("held", ["north"]), ("held", ["south"])]


def test_a_site_that_was_started_again_gets_all_that_it_had() -> None:
    fleet = Fleet(north=["held", "missing_tensors", ANSWER])
    answers, _ = waited(fleet)
    assert answers == {"north": ANSWER}
    assert fleet.asked[-1]["north"].tensors.keys() == STATE.keys()
    assert fleet.asked[-1]["north"].held == ""


def test_the_wait_is_as_long_as_the_study_says_also_over_a_restart_of_the_server() -> None:
    fleet = Fleet(north=["held"])
    answers, _ = waited(fleet)
    assert answers == {"north": Refusal(3, Code.HELD)}
    assert fleet.now == pytest.approx(1100)
    again = Fleet(north=["held"])
    answers, told = waited(again, began=950.0)
    assert answers == {"north": Refusal(3, Code.HELD)}
    assert again.now == pytest.approx(1050)
    assert told == []


def test_a_site_that_is_away_is_not_asked_and_not_given_up() -> None:
    fleet = Fleet(north=["away"], south=["held", "held", ANSWER])
    fleet.scripts["east"] = ["held"]
    answers, _ = waited(fleet)
    assert answers == {"south": ANSWER, "north": Refusal(3, Code.HELD), "east": Refusal(3, Code.HELD)}
    assert all("north" not in asked for asked in fleet.asked)
