"""`server run` says truly how a run ended; over TLS, with a scripted server in Flower's place."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from flwr.proto.node_pb2 import NodeInfo

from fedgraft.common.base.errors import InputError, ResumeError, RunError
from fedgraft.server.operations import deploy, overview
from fedgraft.server.operations.deploy import Wait, prepare, run_study
from fedgraft.server.provisioning.home import Enrolled, OldKey, ServerHome
from fedgraft.server.runs.run_folder import REASON, RunFolder
from helpers.scripted_control import SITES

READY = Wait(2, 5.0)


def test_a_run_that_failed_for_a_reason_of_its_own_is_not_tried_again(home, control, run):
    control.ends = [("failed", f"Exception: {REASON}no site can take part")]
    with pytest.raises(RunError, match="no site can take part"):
        run_study(home, run, READY, print)
    assert control.started == 1


def test_a_run_is_followed_over_one_connection(home, control, run):
    control.ends, control.status = [("stopped", "")], "running"
    threading.Timer(1.0, lambda: setattr(control, "status", "finished")).start()
    with pytest.raises(RunError, match="stopped"):
        run_study(home, run, READY, print)
    assert len(control.followed) == 1


def test_a_run_that_was_stopped_can_be_continued_and_is_not_by_itself(home, control, run):
    control.ends = [("stopped", "")]
    with pytest.raises(RunError, match="stopped"):
        run_study(home, run, READY, print)
    assert control.started == 1


@pytest.mark.slow
def test_a_run_that_was_killed_is_started_again_until_it_gets_no_further(home, control, run):
    control.ends, began = [("failed", "")], time.monotonic()
    with pytest.raises(RunError, match="finished:failed"):
        run_study(home, run, READY, print)
    assert control.started == deploy._TRIES + 1
    pauses = [deploy._PAUSE_S * 2**again for again in range(deploy._TRIES - 1)]
    assert time.monotonic() - began > sum(pauses), "each time it waits twice as long"
    assert len(json.loads((run / "deployment.json").read_text())["started"]) == control.started


@pytest.mark.slow
def test_a_run_is_not_completed_because_flower_says_so(home, control, run):
    """Without a result there is nothing that was completed; one of an earlier start does not count."""
    (run / "result.json").write_text("{}")
    control.ends = [("completed", "")]
    with pytest.raises(RunError, match="finished:completed"):
        run_study(home, run, READY, print)
    assert not (run / "result.json").exists()


def test_what_flower_calls_failed_after_a_reason_of_others_is_tried_again(home, control, run):
    control.ends = [("failed", "killed"), ("failed", f"{REASON}the disk is full")]
    with pytest.raises(RunError, match="the disk is full"):
        run_study(home, run, READY, print)
    assert control.started == 2


def test_a_study_does_not_start_before_its_sites_are_there(home, control, run):
    control.online = 1
    with pytest.raises(RunError, match="1 of 2 sites are online"):
        run_study(home, run, Wait(2, 0.3), print)
    assert control.started == 0


@pytest.fixture
def enrolled(home: ServerHome) -> Iterator[None]:
    """North and south may connect, and so may east, which joined the consortium after the run was begun."""
    home.write_sites({name: Enrolled(node=f"key of {name}") for name in ("east", *SITES)})
    yield
    home.write_sites({})


@pytest.mark.usefixtures("enrolled")
def test_a_resumed_run_waits_for_its_own_sites_and_for_none_that_joined_later(home, control, run):
    control.ends = [("failed", f"{REASON}so far")]
    with pytest.raises(RunError, match="so far"):
        run_study(home, run, Wait(None, 0.3), print)
    assert control.started == 1
    control.online = 1
    with pytest.raises(RunError, match="1 of 2 sites are online; not: south"):
        run_study(home, run, Wait(None, 0.3), print)


@pytest.mark.usefixtures("enrolled")
def test_who_was_there_when_a_run_was_begun_is_on_record_before_any_site_is_asked(home, control, run):
    """Its process waits for them if it is killed while they are greeted; for others it does not."""
    control.ends = [("failed", f"{REASON}so far")]
    control.nodes = [NodeInfo(node_id=n, name=name, status="online") for n, name in enumerate(("north", "east"))]
    control.nodes.append(NodeInfo(node_id=9, name="south", status="offline"))
    with pytest.raises(RunError, match="so far"):
        run_study(home, run, Wait(1, 0.3), print)
    assert RunFolder(run).had() == {"north"}


def test_a_run_has_a_folder_of_its_own(home, control, study, run, tmp_path):
    with pytest.raises(InputError, match="not empty"):
        prepare(study, SITES, run)
    (tmp_path / "other").mkdir()
    with pytest.raises(ResumeError, match="no deployed run"):
        run_study(home, tmp_path / "other", READY, print)
    assert control.started == 0


def test_a_server_that_does_not_answer_is_named(home, run):
    with pytest.raises(RunError, match="does not answer"):
        run_study(home, run, READY, print)


def test_status_and_stop_say_where_a_run_is_and_what_to_type_to_continue_it(home, control, run, command):
    """In full: a folder that a table cuts off can be copied nowhere."""
    control.ends = [("stopped", "")]
    with pytest.raises(RunError, match="stopped"):
        run_study(home, run, READY, print)
    again = f"fedgraft server run --resume {run.resolve()} --home {home.path}"
    code, out, _ = command("server", "status", "--home", home.path)
    assert code == 0
    assert f"test is in {run.resolve()}\n" in out
    assert f"stopped; continue it with: {again}\n" in out
    control.status = "running"
    code, out, _ = command("server", "stop", "--home", home.path)
    assert code == 0
    assert f"in {run.resolve()} is stopped\n" in out
    assert f"continue it with: {again}\n" in out
    assert control.stopped == 1


@pytest.mark.parametrize(
    "content", [b"[1, 2]\n", b"{}\n", b"\xff\xfe\n", b"7\n", b'{"missing": 3}\n', b"[" * 9999 + b"\n"]
)
def test_a_damaged_run_is_shown_as_one_and_hides_no_other(home, control, run, command, content: bytes):
    """One file of one run, and `server status` had nothing to say of all of them."""
    control.ends = [("stopped", "")]
    with pytest.raises(RunError, match="stopped"):
        run_study(home, run, READY, print)
    (run / "history.jsonl").write_bytes(content)
    code, out, err = command("server", "status", "--home", home.path)
    assert (code, err) == (0, "")
    assert "damaged" in out
    assert f"{run.resolve()}/history.jsonl: is not a " in out
    note = max(home.studies.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    whole = note.read_bytes()
    note.write_bytes(content)
    code, _, err = command("server", "status", "--home", home.path)
    note.write_bytes(whole)
    assert code == 2
    assert str(note) in err
    assert "should not have happened" not in err


@pytest.mark.usefixtures("enrolled")
def test_a_site_that_is_away_shows_when_it_was_last_heard_of(home, control):
    """Also one that was given new keys and has not come with them, and one that was shut out."""
    hour = time.time() - 3600
    old = OldKey(node="old key of north", until=datetime.now(UTC) + timedelta(hours=1))
    south = Enrolled(node="key of south", revoked="2026-01-01T00:00:00+00:00")
    home.write_sites({"north": Enrolled(node="key of north", old=(old,)), "south": south})
    gone = {"status": "offline", "last_activated_at": "2026-01-01T00:00:00+00:00", "online_until": hour}
    control.nodes = [
        NodeInfo(node_id=1, name="north", public_key=b"key of north", status="offline"),
        NodeInfo(node_id=2, name="north", public_key=b"old key of north", **gone),
        NodeInfo(node_id=3, name="south", public_key=b"key of south", **gone | {"status": "unregistered"}),
    ]
    rows = {row.name: row for row in overview.sites(home)}
    assert (rows["north"].state, rows["south"].state) == ("offline", "revoked")
    assert all(3590 < (row.heard_s or 0) < 3700 for row in rows.values()), rows
