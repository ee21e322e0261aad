"""Whoever waits for a message is answered when one has come, and Flower is not asked in vain meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.server.fleet.bell import ASK_ANYWAY_S, Bell, Waits

EMPTY, MESSAGE = "nothing", "a message"


class Flower:
    """Counts the questions; answers with what there is, once."""

    def __init__(self) -> None:
        self.asked, self.messages = 0, list[str]()
        self.during: Callable[[], None] = lambda: None

    async def __call__(self) -> str:
        self.asked += 1
        answer = self.messages.pop() if self.messages else EMPTY
        self.during()
        return answer


@pytest.fixture
def bell(tmp_path: Path) -> Bell:
    return Bell(tmp_path / "bell")


@pytest.fixture
def flower() -> Flower:
    return Flower()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgraft.server.fleet.bell._HOLD_S", 0.1)
    monkeypatch.setattr("fedgraft.server.fleet.bell._LISTEN_S", 0.01)


def asks(waits: Waits[str], flower: Flower, name: str = "north", question: str = "q") -> str:
    return asyncio.run(waits.ask(name, question, flower, lambda answer: answer == EMPTY))


def test_who_asked_in_vain_is_answered_without_flower_until_the_bell_rings(bell, flower):
    waits = Waits[str](bell)
    assert [asks(waits, flower) for _ in range(4)] == [EMPTY] * 4
    assert flower.asked == 1
    flower.messages.append(MESSAGE)
    bell.ring()
    assert (asks(waits, flower), flower.asked) == (MESSAGE, 2)
    assert (asks(waits, flower), flower.asked) == (EMPTY, 3), "after a message the next may be there at once"


def test_who_waits_is_answered_when_the_bell_rings_and_not_when_the_wait_is_over(bell, flower, monkeypatch):
    monkeypatch.setattr("fedgraft.server.fleet.bell._HOLD_S", 600.0)
    monkeypatch.setattr("fedgraft.server.fleet.bell.ASK_ANYWAY_S", 600.0)
    waits = Waits[str](bell)
    asks(waits, flower)

    async def both() -> str:
        waiting = asyncio.create_task(waits.ask("north", "q", flower, lambda answer: answer == EMPTY))
        await asyncio.sleep(0.05)
        flower.messages.append(MESSAGE)
        bell.ring()
        return await waiting

    assert asyncio.run(both()) == MESSAGE


def test_a_message_that_comes_while_flower_says_that_there_is_none_is_not_missed(bell, flower):
    waits = Waits[str](bell)

    def comes() -> None:
        flower.messages.append(MESSAGE)
        bell.ring()
        flower.during = lambda: None

    flower.during = comes
    assert [asks(waits, flower) for _ in range(2)] == [EMPTY, MESSAGE]


def test_nobody_is_answered_with_what_another_was_answered_or_to_another_question(bell, flower):
    waits = Waits[str](bell)
    asks(waits, flower)
    asks(waits, flower, "south")
    asks(waits, flower, "north", "another")
    assert flower.asked == 3


def test_flower_is_asked_now_and_then_though_no_bell_rings(bell, flower):
    """A server's disk may be full, and then no bell can ring."""
    now = [0.0]
    waits = Waits[str](bell, lambda: now[0])
    asks(waits, flower)
    now[0] += ASK_ANYWAY_S
    asks(waits, flower)
    assert flower.asked == 2


def test_every_ring_is_another_one_and_a_bell_that_cannot_ring_harms_nobody(bell, tmp_path):
    heard = {bell.rung()}
    for _ in range(100):
        bell.ring()
        heard.add(bell.rung())
    assert len(heard) == 101
    lost = Bell(tmp_path / "no" / "such" / "folder")
    lost.ring()
    assert lost.rung() == 0
