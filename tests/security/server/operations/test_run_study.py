"""`server run` says truly how a run ended; over TLS, with a scripted server in Flower's place."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from flwr.proto.control_pb2 import ListNodesResponse, ListRunsResponse, StartRunResponse, StopRunResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus

from fedgraft.common.base.errors import InputError, ResumeError, RunError
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.operations import deploy, overview
from fedgraft.server.operations.deploy import Wait, prepare, run_study
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import Enrolled, OldKey, ServerHome
from fedgraft.server.provisioning.provision import Authority
from fedgraft.server.runs.run_folder import REASON, RunFolder
from helpers.ports import free_port

STUDY = {
    "name": "test",
    "tasks": [{"name": "cls", "classes": ["a", "b"]}],
    "input": {"kind": "image", "size": 32},
    "model": {"backbone": "slim_resnet", "weights": None},
    "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
}
READY = Wait(2, 5.0)
SITES = ("north", "south")


class Control:
    """Flower's Control API from a script: the end of each run that is started, (sub status, details), in order."""

    def __init__(self, home: ServerHome) -> None:
        self.ends: list[tuple[str, str]] = []
        self.online, self.started, self.stopped = 2, 0, 0
        self.status = "finished"
        self.followed: set[object] = set()
        """The connections over which a run's state was asked for."""
        self.nodes: list[NodeInfo] = []
        files = {"ssl_certfile": str(home.inner[0]), "ssl_keyfile": str(home.inner[1])}
        config = uvicorn.Config(
            self, port=home.facts().server.inner_port, log_config=None, lifespan="off", ws="none", **files
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        while not self._server.started:
            threading.Event().wait(0.02)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"].endswith("list-runs"):
            self.followed.add(scope["client"])
        body = self._answer(scope["path"].rpartition("/")[2]).SerializeToString()
        headers = [(b"content-type", b"application/x-protobuf")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, call: str) -> Any:
        if call == "list-nodes":
            nodes = [
                NodeInfo(node_id=n + 1, name=name, status="online" if n < self.online else "offline")
                for n, name in enumerate(SITES)
            ]
            return ListNodesResponse(nodes_info=self.nodes or nodes)
        if call == "start-run":
            self.started += 1
            return StartRunResponse(run_id=self.started)
        if call == "stop-run":
            self.stopped += 1
            return StopRunResponse(success=True)
        how, details = self.ends[min(self.started, len(self.ends)) - 1]
        status = RunStatus(status=self.status, sub_status=how if self.status == "finished" else "", details=details)
        return ListRunsResponse(run_dict={self.started: Run(run_id=self.started, status=status)})

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    kits = tmp_path_factory.mktemp("kits") / "kits"
    server = {"host": "localhost", "port": free_port(), "inner_port": free_port()}
    Authority(kits).provision(
        Consortium.model_validate({"name": "trial", "server": server, "sites": ["north", "south"]})
    )
    made = Authority(kits).home
    made.studies.mkdir()
    return made


@pytest.fixture
def control(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Control]:
    monkeypatch.setattr(deploy, "_POLL_S", 0.02)
    monkeypatch.setattr(deploy, "_PAUSE_S", 0.05)
    made = Control(home)
    yield made
    made.close()


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY, "test")


@pytest.fixture
def run(study: Study, tmp_path: Path) -> Path:
    prepare(study, SITES, tmp_path / "run")
    return tmp_path / "run"


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
