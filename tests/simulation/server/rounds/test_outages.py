"""Rounds that lost their sites are repeated when these are back: real sites, in Flower's words where they are away."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedgraft.client.privacy.masking.used_masks import MaskBook
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.base.files import load_tensors, read_json, write_json
from fedgraft.common.protocol import wire
from fedgraft.server.fleet import presence, transport
from fedgraft.server.fleet.fleet import GridFleet
from fedgraft.server.fleet.presence import Presence
from fedgraft.server.rounds import app
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.grids import InProcessGrid
from fedgraft.simulations.engines.run import Hospitals, prepare
from helpers.simulated import resume, simulate

SGD = {"steps": 2, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}
METHOD = {"name": "fedavg", "rounds": 2, "local": SGD}
NAMES = ("east", "north", "south", "west")
AWAITED, GONE = 1e6, 1e9
"""Seconds for which a site is away that comes back when the round waits for it, and of one that does not."""
UNHURRIED = 600.0


class Lines(InProcessGrid):
    """A grid whose sites lose their line in the middle of exchanges, and have it again after a while.

    `CUTS` says by exchange which sites, for how many seconds; `RETURNS` who is back when an exchange has been sent. A
    site that is away is answered for as Flower does.
    """

    CUTS: ClassVar[dict[int, tuple[set[str], float]]] = {}
    RETURNS: ClassVar[dict[int, str]] = {}
    SWALLOWED: ClassVar[set[tuple[int, str]]] = set()
    """Exchanges, and the site whose reply is lost in each."""
    PATIENCE_S: ClassVar[float] = 3.0
    AWAY_S: ClassVar[float] = 0.3
    """How long a run waits where that is to have an end; elsewhere `UNHURRIED`: a busy machine takes its time."""
    made: ClassVar[list[Lines]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cuts, self.swallow = dict(self.CUTS), set(self.SWALLOWED)
        self.back: dict[str, float] = {}
        self.visits: list[tuple[int, str]] = []
        self.made.append(self)

    def online(self) -> dict[int, str]:
        names = dict(zip(self.get_node_ids(), sorted(NAMES), strict=False))
        return {node: name for node, name in names.items() if self.back.get(name, 0.0) <= time.monotonic()}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            if message.metadata.message_type == wire.VISIT:
                names = dict(zip(self.get_node_ids(), sorted(NAMES), strict=False))
                exchange = int(message.metadata.group_id)
                self.visits.append((exchange, names[message.metadata.dst_node_id]))
                sites, seconds = self.cuts.pop(exchange, (set(), 0.0))
                self.back |= dict.fromkeys(sites, time.monotonic() + seconds)
                self.back.pop(self.RETURNS.get(exchange, ""), None)
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        online = self.online()
        gone = [message for message in self._waiting if message.metadata.dst_node_id not in online]
        if gone:
            self._waiting = type(self._waiting)(message for message in self._waiting if message not in gone)
            return [Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message) for message in gone]
        return [reply for reply in super().pull_messages(message_ids) if not self._lost(reply)]

    def _lost(self, reply: Message) -> bool:
        name = dict(zip(self.get_node_ids(), sorted(NAMES), strict=False))[reply.metadata.src_node_id]
        exchange = reply.metadata.group_id
        if reply.metadata.message_type != wire.VISIT or (int(exchange), name) not in self.swallow:
            return False
        self.swallow.remove((int(exchange), name))
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> type[Lines]:
    """Sites over such lines, for whom a second is what a minute is to deployed ones."""
    monkeypatch.setattr(presence, "_LOOK_S", 0.0)
    monkeypatch.setattr(presence, "_POLL_S", 0.02)
    monkeypatch.setattr("fedgraft.simulations.engines.run.InProcessGrid", Lines)

    class Awaited(Presence):
        def wait_for(self, *args: Any, **options: Any) -> bool:
            grid = Lines.made[-1]
            soon = time.monotonic() + 2 * AWAITED
            grid.back = {name: at for name, at in grid.back.items() if at < AWAITED or at > soon}
            return super().wait_for(*args, **options)

    def fleet(grid: Lines, **options: Any) -> GridFleet:
        return GridFleet(grid, presence=Awaited(grid.online, Lines.PATIENCE_S, Lines.AWAY_S), **options)

    monkeypatch.setattr(app, "GridFleet", fleet)
    monkeypatch.setattr(Lines, "made", [])
    monkeypatch.setattr(Lines, "PATIENCE_S", Lines.PATIENCE_S)
    monkeypatch.setattr(Lines, "AWAY_S", Lines.AWAY_S)
    monkeypatch.setattr(Lines, "CUTS", {})
    monkeypatch.setattr(Lines, "RETURNS", {})
    monkeypatch.setattr(Lines, "SWALLOWED", set())
    monkeypatch.setattr(transport, "_GRACE_S", 0.05)
    return Lines


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def same(left: Path, right: Path) -> bool:
    one, other = load_tensors(left / "model.safetensors"), load_tensors(right / "model.safetensors")
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


@pytest.fixture(scope="module")
def whole(hospitals, make_study, tmp_path_factory) -> Path:
    """The run in which nothing happens."""
    return simulate(make_study(method=METHOD), hospitals, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
def test_an_outage_of_all_sites_changes_nothing(lines, hospitals, make_study, tmp_path, whole):
    lines.CUTS, lines.PATIENCE_S = {2: (set(NAMES), 1.0)}, UNHURRIED
    run = simulate(make_study(method=METHOD), hospitals, tmp_path / "run")
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert same(run, whole)


def test_a_site_that_comes_back_in_time_costs_nothing(lines, hospitals, make_study, tmp_path, whole):
    lines.CUTS, lines.AWAY_S = {2: ({"south"}, 0.15)}, UNHURRIED
    run = simulate(make_study(method=METHOD), hospitals, tmp_path / "run")
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert same(run, whole)


def test_one_that_stays_away_costs_its_part_of_the_round_alone(lines, hospitals, make_study, tmp_path):
    lines.CUTS, lines.RETURNS = {1: ({"south"}, GONE)}, {2: "south"}
    run = simulate(make_study(method=METHOD), hospitals, tmp_path / "run")
    assert [row["missing"] for row in history(run)] == [{"south": "unreachable"}] * 2 + [{}]
    assert (2, "south") not in lines.made[-1].visits, "it is not sent what it would run after"
    assert not any(event["event"] == "waiting" for event in events(run))


@pytest.mark.slow
def test_a_round_without_its_quorum_is_repeated_once_the_sites_are_back(lines, hospitals, make_study, tmp_path, whole):
    lines.CUTS = {2: ({"south", "north"}, AWAITED)}
    study = make_study(method=METHOD, rounds={"quorum": 0.75})
    run = simulate(study, hospitals, tmp_path / "run")
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert [row["repeats"] for row in history(run)] == [0, 1, 0]
    waited = next(event for event in events(run) if event["event"] == "waiting")
    assert (waited["exchange"], waited["sites"], waited["needed"]) == (2, ["north", "south"], 1)
    reference = simulate(study, hospitals, tmp_path / "reference")
    assert same(run, reference)


@pytest.mark.slow
def test_the_waiting_has_an_end_and_resume_goes_on(lines, hospitals, make_study, tmp_path, monkeypatch):
    lines.CUTS = {2: ({"south", "north"}, GONE)}
    study = make_study(method=METHOD, rounds={"quorum": 0.75})
    began = time.monotonic()
    with pytest.raises(QuorumError, match="round 2: 2 of 4 sites"):
        simulate(study, hospitals, tmp_path / "run")
    assert time.monotonic() - began > 3.0
    lines.CUTS = {}
    assert read_json(resume(tmp_path / "run") / "result.json")["headline"].startswith("4 of 4")


def keep_to_one_group(run: Path, hospitals: Hospitals, regroup: str) -> None:
    """What a deployed site's file says of groups; those of a simulation trust their coordinator."""
    for site in hospitals.cohorts:
        path = run / "sites" / site / "site.json"
        config = read_json(path)
        config["secure_aggregation"]["regroup"] = regroup
        write_json(path, config)


@pytest.fixture
def secure(hospitals, make_study, tmp_path) -> Path:
    """A study with secure aggregation over four sites, each of which masks with one group alone."""
    prepare(make_study(method=METHOD, secure_aggregation=True), hospitals, tmp_path / "secure")
    keep_to_one_group(tmp_path / "secure", hospitals, "never")
    return tmp_path / "secure"


def groups_of(run: Path, site: str) -> set[tuple[str, ...]]:
    study = RunFolder(run).study()
    return MaskBook(run / "sites" / site / "masks.sqlite").groups(study.digest, "tensors")


def test_a_masked_round_is_repeated_with_the_same_group_under_every_policy(lines, secure, hospitals, make_study):
    lines.CUTS = {2: ({"south"}, AWAITED)}
    run = resume(secure)
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert [row["repeats"] for row in history(run)] == [0, 1, 0]
    assert [groups_of(run, site) for site in NAMES] == [{NAMES}] * 4


@pytest.mark.slow
def test_a_masked_reply_that_is_lost_on_its_way_is_sealed_anew_under_another_number(lines, secure, monkeypatch):
    monkeypatch.setattr(transport, "_PROBE_S", 0.3)
    lines.SWALLOWED = {(2, "south")}
    run = resume(secure)
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert [row["repeats"] for row in history(run)] == [0, 1, 0]
    assert [groups_of(run, site) for site in NAMES] == [{NAMES}] * 4


@pytest.mark.slow
def test_a_masked_study_whose_site_stays_away_ends_and_says_why(lines, secure):
    lines.CUTS = {2: ({"south"}, GONE)}
    with pytest.raises(QuorumError, match=r"(?s)east, not_secure.*south, unreachable.*`regroup`"):
        resume(secure)
    assert [groups_of(secure, site) for site in NAMES] == [{NAMES}] * 4


@pytest.mark.slow
def test_where_every_site_allows_it_the_others_go_on_and_do_not_wait_again(lines, hospitals, make_study, tmp_path):
    lines.CUTS = {2: ({"south"}, GONE)}
    study = make_study(method=METHOD | {"rounds": 3}, secure_aggregation=True)
    run = simulate(study, hospitals, tmp_path / "run")
    assert [row["missing"] for row in history(run)] == [{}] + [{"south": "unreachable"}] * 3
    assert [row["sites_aggregated"] for row in history(run)][1:] == [["east", "north", "west"]] * 3
    waits = [event["exchange"] for event in events(run) if event["event"] == "waiting"]
    assert waits == [2]
    assert (4, "south") not in lines.made[-1].visits


def test_a_run_that_begins_again_waits_for_the_sites_that_it_had(lines, hospitals, make_study, tmp_path, whole):
    """Its server was away: the run's process is a new one, and sites come back one after the other."""
    study = make_study(method=METHOD)
    prepare(study, hospitals, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", _stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run")
    run = resume_while_sites_return(tmp_path / "run", 20)
    assert [row["missing"] for row in history(run)] == [{}] * 3
    assert same(run, whole)


def test_a_run_that_was_killed_before_its_first_round_waits_for_the_sites_that_were_there(
    lines, hospitals, make_study, tmp_path, whole
):
    """While they are greeted, say: their people did not ask for a study of whoever is back first."""
    study = make_study(method=METHOD)
    prepare(study, hospitals, tmp_path / "run")
    RunFolder(tmp_path / "run").start_deployment(study, NAMES)
    RunFolder(tmp_path / "run").found_there(NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridFleet, "greet", _stop)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run")
    run = resume_while_sites_return(tmp_path / "run", 1)
    assert [row["sites_aggregated"] for row in history(run)] == [list(NAMES)] * 3
    assert read_json(run / "result.json")["status"] == "completed"
    assert same(run, whole)
    notices = [event["text"] for event in events(run) if event["event"] == "notice"]
    assert notices == ["The run waits for east, north, south, west, as they were there before."]


def test_one_that_joined_later_is_waited_for_when_the_run_begins_again(lines, hospitals, make_study, tmp_path):
    prepare(make_study(method=METHOD), hospitals, tmp_path / "run")

    class WithoutWest(Lines):
        def online(self) -> dict[int, str]:
            west = bool(self.visits)  # it comes when the first round is under way
            return {node: name for node, name in super().online().items() if west or name != "west"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgraft.simulations.engines.run.InProcessGrid", WithoutWest)
        patch.setattr(RunFolder, "save_checkpoint", _stop_after(2))
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run")
    run = resume_while_sites_return(tmp_path / "run", 1)
    assert [row["sites_aggregated"] for row in history(run)] == [list(NAMES[:3]), list(NAMES), list(NAMES)]


def resume_while_sites_return(run: Path, looks_in_vain: int) -> Path:
    """The run goes on over sites of which nobody is there for a while, and then one more at every fourth look."""
    looks = itertools.count()

    class Returning(Lines):
        def online(self) -> dict[int, str]:
            back = max(0, next(looks) - looks_in_vain + 3) // 4
            return dict(itertools.islice(super().online().items(), back))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedgraft.simulations.engines.run.InProcessGrid", Returning)
        patch.setattr(Lines, "PATIENCE_S", UNHURRIED)
        patch.setattr(Lines, "AWAY_S", UNHURRIED)
        return resume(run)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


_save = RunFolder.save_checkpoint


def _stop_after(last: int) -> Callable[..., None]:
    def save(folder: RunFolder, done: int, *rest: Any) -> None:
        _save(folder, done, *rest)
        if done == last:
            raise KeyboardInterrupt

    return save
