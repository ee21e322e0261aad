"""Who is away for long is not waited for; when nobody is heard of, nobody is to blame, and the waiting has an end."""

from __future__ import annotations

import pytest

from fedgraft.server.fleet import presence
from fedgraft.server.fleet.presence import Presence

EAST, NORTH, SOUTH = 1, 2, 3
AWAY_S = 45.0
NAMES = {EAST: "east", NORTH: "north", SOUTH: "south"}
RENEWED = 4
ALL = NAMES | {RENEWED: "south"}


class World:
    """Sites that are there or not, at a time that passes as it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.there = set(NAMES)
        self.looks = 0

    def look(self) -> dict[int, str]:
        self.looks += 1
        return {node: ALL[node] for node in sorted(self.there)}

    def pass_by(self, seen: Presence, seconds: float) -> None:
        """As an exchange does that looks every second."""
        for _ in range(int(seconds)):
            self.now += 1
            seen.online()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def sleep(seconds: float) -> None:
        made.now += seconds

    monkeypatch.setattr(presence.time, "sleep", sleep)
    return made


@pytest.fixture
def seen(world: World) -> Presence:
    return Presence(world.look, patience_s=600.0, away_s=AWAY_S, clock=lambda: world.now)


def test_a_site_that_is_away_has_a_moment_to_come_back(world, seen):
    assert not seen.lost(SOUTH)
    world.there = {EAST, NORTH}
    world.pass_by(seen, AWAY_S - 2)
    assert not seen.lost(SOUTH)
    world.pass_by(seen, 4)
    assert seen.lost(SOUTH)
    assert not seen.lost(EAST)
    world.there.add(SOUTH)
    world.pass_by(seen, 2)
    assert not seen.lost(SOUTH)


def test_when_nobody_is_heard_of_it_is_the_server_that_was_away(world, seen):
    seen.online()
    world.there = set()
    world.pass_by(seen, 400)
    assert not any(seen.lost(node) for node in NAMES)
    world.there = {EAST}  # the first one is back; the others ask every 15 s
    world.pass_by(seen, AWAY_S - 2)
    assert not seen.lost(SOUTH)
    world.pass_by(seen, 4)
    assert seen.lost(SOUTH)


def test_a_server_that_nobody_comes_back_to_is_not_waited_for_without_end(world, seen):
    seen.online()
    world.there = set()
    world.pass_by(seen, 599)
    assert not seen.lost(EAST)
    world.pass_by(seen, 3)
    assert seen.lost(EAST)


def test_a_site_with_new_keys_is_not_waited_for_under_the_old_ones(world, seen):
    seen.online()
    world.there = {EAST, NORTH, RENEWED}
    world.pass_by(seen, 2)
    assert seen.lost(SOUTH)
    assert not seen.lost(RENEWED)


def test_the_server_is_asked_once_a_second(world, seen):
    for _ in range(50):
        seen.online()
        world.now += 0.1
    assert world.looks <= 6


def test_what_flower_says_of_a_site_counts_before_the_next_look(world, seen):
    assert SOUTH in seen.online()
    seen.missed(SOUTH)
    assert SOUTH not in seen.online()
    world.pass_by(seen, 2)
    assert SOUTH in seen.online()


def test_waiting_ends_with_as_many_as_are_needed_or_with_the_patience(world, seen):
    world.there = {EAST}
    assert seen.wait_for({"east", "south"}, 1, patiently=True)
    assert world.now == 1000.0
    assert not seen.wait_for({"east", "south"}, 2, patiently=True)
    assert 1600 <= world.now <= 1602
    began = world.now
    assert not seen.wait_for({"south"}, 1, patiently=False)
    assert world.now - began < AWAY_S + 2


def test_a_short_patience_runs_only_while_somebody_is_heard_of(world, seen, monkeypatch):
    def sleep(seconds: float) -> None:
        world.now += seconds
        world.there = {EAST} if world.now > 1200 else set()
        world.there |= {SOUTH} if world.now > 1220 else set()

    monkeypatch.setattr(presence.time, "sleep", sleep)
    world.there = set()
    assert seen.wait_for({"south"}, 1, patiently=False)
    assert world.now > 1220
