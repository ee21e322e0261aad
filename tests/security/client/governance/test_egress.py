"""Everything that leaves a site stands in its egress log first, and the log cannot be changed unseen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedgraft.client.governance.egress import FIRST, EgressLog
from fedgraft.client.privacy.ledger.hash_chain import Mark
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.base.files import canonical_json, read_json
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Code, Greeting, Hello, Refusal, Update
from fedgraft.simulations.engines.grids import InProcessGrid
from helpers.played import PlayedSite
from helpers.simulated import simulate

UPDATE = Update(1, {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"trunk": 4.0}, {"loss": 0.5}, {})


def lines(folder: Path) -> list[bytes]:
    return (folder / "egress.jsonl").read_bytes().splitlines(keepends=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three messages."""
    one = EgressLog(tmp_path)
    one.record("ab", UPDATE, "because")
    one.record("ab", Refusal(2, Code.BUDGET, "north"), "a constant word")
    EgressLog(tmp_path).record("cd", UPDATE, "because")
    return tmp_path


def test_a_line_says_what_left_and_why(log: Path) -> None:
    first, second, third = EgressLog(log).entries()
    assert first.tensors == {"w": ("<f4", (2, 3), hashlib.sha256(UPDATE.tensors["w"].tobytes()).hexdigest())}
    assert first.words == {"weights": {"trunk": 4.0}, "train": {"loss": 0.5}, "spent": None}
    assert (first.kind, first.study, first.exchange, first.why) == ("update", "ab", 1, "because")
    assert (second.kind, second.words) == ("refusal", {"code": "budget", "site": "north"})
    assert (third.seq, third.study) == (3, "cd")
    assert (log / "egress.jsonl").stat().st_mode & 0o777 == 0o600


TAMPERINGS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a word changed": lambda rows: [rows[0].replace(b"because", b"becausE"), *rows[1:]],
    "a digest changed": lambda rows: [rows[0].replace(b'"<f4"', b'"<f8"'), *rows[1:]],
    "the first gone": lambda rows: rows[1:],
    "one gone": lambda rows: [rows[0], rows[2]],
    "two swapped": lambda rows: [rows[0], rows[2], rows[1]],
    "one twice": lambda rows: [*rows, rows[2]],
    "no JSON": lambda rows: [rows[0], b"{\n", rows[2]],
    "another key": lambda rows: [rows[0].replace(b'"why"', b'"how"'), *rows[1:]],
    "a number renumbered": lambda rows: [*rows[:2], rows[2].replace(b'"seq":3', b'"seq":4')],
}


@pytest.mark.parametrize("harm", TAMPERINGS)
def test_a_log_that_was_changed_is_found_out(log: Path, harm: str) -> None:
    (log / "egress.jsonl").write_bytes(b"".join(TAMPERINGS[harm](lines(log))))
    with pytest.raises(LedgerError, match="line"):
        list(EgressLog(log).entries())


def test_a_line_that_this_process_wrote_is_read_as_any_other(tmp_path: Path) -> None:
    """Whoever reads on finds what is on the disk, though the log remembers its own last line."""
    log, fresh = EgressLog(tmp_path), EgressLog(tmp_path)
    log.record("ab", UPDATE, "because")
    (first, size), *_ = log.after(FIRST, 0)
    assert [(first, size)] == list(fresh.after(FIRST, 0))
    mark = Mark(first.seq, first.hash)
    log.record("ab", Refusal(2, Code.BUDGET, "north"), "a constant word")
    fresh.record("cd", UPDATE, "because")
    assert [entry.study for entry, _ in log.after(mark, size)] == ["ab", "cd"]


IN_PLACE: dict[str, Callable[[bytes], bytes]] = {
    "a word changed": lambda line: line.replace(b"budget", b"failed"),
    "the place of another line": lambda line: line.replace(b'"seq":2', b'"seq":3'),
    "its hash changed": lambda line: line[:-4] + bytes([line[-4] ^ 1]) + line[-3:],
}


@pytest.mark.parametrize("harm", IN_PLACE)
def test_a_line_that_was_changed_after_it_was_written_is_found_out_at_once(tmp_path: Path, harm: str) -> None:
    """By the process that has written it, and in a file that is as long as before."""
    log = EgressLog(tmp_path)
    log.record("ab", UPDATE, "because")
    (first, size), *_ = log.after(FIRST, 0)
    log.record("ab", Refusal(2, Code.BUDGET, "north"), "a constant word")
    before, last = lines(tmp_path)
    with (tmp_path / "egress.jsonl").open("r+b") as file:
        file.seek(len(before))
        file.write(IN_PLACE[harm](last))
    with pytest.raises(LedgerError, match="line 2"):
        list(log.after(Mark(first.seq, first.hash), size))


def test_a_line_torn_by_a_crash_never_left_and_is_no_damage(log: Path) -> None:
    whole = (log / "egress.jsonl").read_bytes()
    (log / "egress.jsonl").write_bytes(whole + lines(log)[0][:40])
    assert len(list(EgressLog(log).entries())) == 3
    EgressLog(log).record("ef", UPDATE, "because")
    assert [entry.study for entry in EgressLog(log).entries()] == ["ab", "ab", "cd", "ef"]


def test_all_replies_of_a_run_stand_in_the_log_before_they_leave(hospitals, make_study, tmp_path, monkeypatch) -> None:
    """Seen at the wire: at the moment a reply is handed over, the last line of its site's log describes it."""
    seen: list[tuple[str, Update]] = []
    run = tmp_path / "run"
    names = sorted(hospitals.cohorts)
    real = InProcessGrid.pull_messages

    def watched(self: InProcessGrid, ids: list[str]) -> list[Message]:
        found = list(real(self, ids))
        for message in found:
            try:
                update = wire.unpack_reply(message.content)
            except wire.WireError:  # a greeting
                continue
            assert isinstance(update, Update)
            site = names[self.get_node_ids().index(message.metadata.src_node_id)]
            last = list(EgressLog(run / "sites" / site).entries())[-1]
            sent = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in update.tensors.items()}
            assert {key: digest for key, (_, _, digest) in last.tensors.items()} == sent
            assert last.words["weights"] == dict(update.weights)
            assert {f"{t}/{k}" for t, sums in update.metrics.items() for k in sums} == set(last.metrics)
            seen.append((site, update))
        return found

    monkeypatch.setattr(InProcessGrid, "pull_messages", watched)
    simulate(make_study(), hospitals, run)
    assert len(seen) == 3 * 4
    for site in names:
        kinds = [(entry.kind, entry.exchange) for entry in EgressLog(run / "sites" / site).entries()]
        assert kinds == [("greeting", 0), ("update", 1), ("update", 2), ("update", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_site_that_cannot_write_its_log_sends_a_constant_word(
    hospitals, make_study, tmp_path, monkeypatch, engine: str
) -> None:
    from fedgraft.server.runs.run_folder import RunFolder
    from fedgraft.simulations.engines.run import Engine

    save = RunFolder.save_checkpoint

    def harmed(self: RunFolder, exchange: int, *rest: object) -> None:
        save(self, exchange, *rest)
        path = self.path / "sites" / "west" / "egress.jsonl"
        if exchange == 1:
            path.unlink()
            path.mkdir()  # what a full disk does, for whoever is root

    monkeypatch.setattr(RunFolder, "save_checkpoint", harmed)
    run = simulate(make_study(), hospitals, tmp_path / "run", Engine(name=engine))
    refusals = read_json(run / "result.json")["refusals"]
    assert [(row["site"], row["exchange"], row["code"]) for row in refusals] == [
        ("west", 2, "disk"),
        ("west", 3, "disk"),
    ]


def test_a_line_is_on_the_disk_before_the_message_leaves_unless_a_simulation_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(
        "fedgraft.client.governance.egress.os.fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size)
    )
    log = EgressLog(tmp_path / "real")
    log.record("ab", UPDATE, "because")
    witness = tmp_path / "real.witness" / "egress.witness"
    assert synced == [each.stat().st_size for each in (tmp_path / "real" / "egress.jsonl", witness)], "in this order"
    EgressLog(tmp_path / "played", sync=False).record("ab", UPDATE, "because")
    assert len(synced) == 2
    assert len(list(EgressLog(tmp_path / "played").entries())) == 1


# --- every word that leaves


def leaves(message: Message) -> list[str]:
    """All that a reply says, as a line of the log would say it: its words, and digests of its arrays; or its error."""
    if message.has_error():
        return [f'"code":{message.error.code}']
    found = []
    for record in message.content.values():
        if isinstance(record, ConfigRecord):
            words = json.loads(str(record["json"]))
            named = {{"refused": "code"}.get(key, key): value for key, value in words.items()}
            found += [canonical_json({key: value}).decode()[1:-1] for key, value in named.items()]
        else:
            assert isinstance(record, ArrayRecord)
            found += [hashlib.sha256(array.tobytes()).hexdigest() for array in wire._unpack_arrays(record).values()]
    return found


def greeting_text(site: PlayedSite) -> str:
    """The last line of the log, as text."""
    return (site.state / "egress.jsonl").read_bytes().splitlines()[-1].decode()


def test_every_reply_has_its_line_and_every_word_of_it_stands_there(hospitals, make_study, tmp_path, monkeypatch):
    """Greetings, updates, refusals of all kinds with the site's name, pings, and errors in place of a reply."""
    site, study = PlayedSite(tmp_path / "north", hospitals.cohorts["north"]), make_study()
    sent: list[Message] = []
    plain = site.sends

    def noted(kind: str, records: RecordDict) -> Message:
        before = len(list(site.log.entries()))
        sent.append(plain(kind, records))
        assert len(list(site.log.entries())) == before + 1, "one line for one reply"
        assert [what for what in leaves(sent[-1]) if what not in greeting_text(site)] == []
        return sent[-1]

    monkeypatch.setattr(site, "sends", noted)
    garbage = RecordDict({"words": ConfigRecord({"json": "[]"})})
    noted(wire.HELLO, garbage)
    assert '"site":"north"' in greeting_text(site), "a hello that is refused is told who refuses"
    noted(wire.HELLO, wire.pack_hello(Hello(study.to_json())))
    assert '"not_approved"' in greeting_text(site)
    assert isinstance(site.greets(study), Greeting)
    noted(wire.VISIT, garbage)
    assert isinstance(site.visits(study, 1), Update)
    noted(wire.PING, RecordDict())
    with monkeypatch.context() as patch:
        patch.setattr(wire, "pack_reply", lambda *_, **__: 1 / 0)
        before = len(list(site.log.entries()))
        assert plain(wire.VISIT, garbage).has_error()
        assert [entry.kind for entry in site.log.entries()][before:] == ["refusal", "error"]
    kinds = [entry.kind for entry in site.log.entries()]
    assert kinds == ["refusal", "refusal", "greeting", "refusal", "update", "ping", "refusal", "error"]
    site.restart()
