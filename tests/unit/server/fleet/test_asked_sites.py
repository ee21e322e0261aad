"""Whatever a site sends when it is asked what it could supply: it speaks for itself alone, and is not obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import AskedPrice, SiteAnswer, TaskSupply
from fedgraft.common.protocol.instructions import Code, Greeting, Hello, Refusal
from fedgraft.server.fleet.fleet import GridFleet
from fedgraft.server.fleet.presence import Presence
from fedgraft.simulations.engines.grids import LocalGrid
from helpers.asked import a_study

HELLO = Hello(a_study().to_json())
NORTH = SiteAnswer(
    "north",
    True,
    False,
    (60, 60),
    {"cls": TaskSupply({"benign": (60, 60)})},
    {},
    {},
    AskedPrice(0.0, 0.0),
    "ab" * 32,
    "cd" * 32,
)


class Answering(LocalGrid):
    """Nodes 2, 3, ... that answer whatever they are asked with these records."""

    def __init__(self, *answers: RecordDict) -> None:
        super().__init__([Path()] * len(answers))
        self._answers = dict(zip(self._configs, answers, strict=True))
        self._waiting: list[Message] = []

    def _queue(self, message: Message) -> None:
        self._waiting.append(message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        del message_ids
        sent, self._waiting = self._waiting, []
        return [Message(self._answers[one.metadata.dst_node_id], reply_to=one) for one in sent]

    def close(self) -> None:
        """There is nothing."""


def asked(*answers: SiteAnswer, names: Mapping[int, str] | None = None) -> Mapping[str, SiteAnswer | Refusal]:
    presence = None if names is None else Presence(lambda: names)
    grid = Answering(*map(wire.pack_answer, answers))
    return GridFleet(grid, presence=presence, expected=(names and ("west",)) or ()).ask(HELLO)


def test_answers_are_kept_by_name() -> None:
    south = replace(NORTH, site="south")
    assert asked(south, NORTH) == {"north": NORTH, "south": south}


@pytest.mark.parametrize("name", ["\x1b[2Jnorth", "nor\nth", "\u202enorth", "", "n" * 600])
def test_a_name_that_a_terminal_obeys_is_no_name(name: str) -> None:
    assert asked(replace(NORTH, site=name)) == {"node 0": Refusal(0, Code.GARBAGE)}


def test_a_word_that_a_terminal_obeys_is_no_word() -> None:
    odd = replace(NORTH, tasks={"cls": TaskSupply({"\x1b]0;x\x07": (60, 60)})})
    assert asked(odd) == {"node 0": Refusal(0, Code.GARBAGE)}


def test_another_message_is_no_answer() -> None:
    grid = Answering(wire.pack_greeting(Greeting("north", {"train": 3}, {})))
    assert GridFleet(grid).ask(HELLO) == {"node 0": Refusal(0, Code.GARBAGE)}


def test_two_sites_of_one_name_end_it() -> None:
    with pytest.raises(RunError, match="Two sites are called 'north'"):
        asked(NORTH, NORTH)


def test_a_site_that_was_there_a_moment_ago_is_waited_for() -> None:
    whole = {2: "north", 3: "south"}
    looks = iter([{2: "north"}] * 2)
    seen = Presence(lambda: next(looks, whole))
    grid = Answering(wire.pack_answer(NORTH), wire.pack_answer(south := replace(NORTH, site="south")))
    fleet = GridFleet(grid, presence=seen, expected=("north", "south", "west"))
    found = fleet.ask(HELLO, there={"north", "south"})
    assert found["south"] == south
    assert found["west"] == Refusal(0, Code.UNREACHABLE, "west"), "who was not there is not waited for"


def test_an_enrolled_site_speaks_for_itself_alone_and_who_is_away_is_named() -> None:
    found = asked(NORTH, replace(NORTH, site="north"), names={2: "north", 3: "south"})
    assert found["north"] == NORTH
    assert found["south"] == Refusal(0, Code.WRONG_NAME)
    assert found["west"] == Refusal(0, Code.UNREACHABLE, "west")
