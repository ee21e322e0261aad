"""What the server has done though nobody heard so: it is neither done twice nor taken for somebody else's doing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.common.base.errors import RunError
from fedgraft.server.operations import overview
from fedgraft.server.operations.deploy import Wait, prepare, run_study
from fedgraft.server.runs.run_folder import REASON, RunFolder
from helpers.scripted_control import SITES

READY = Wait(2, 5.0)


@pytest.fixture
def killed(control, run) -> Iterator[None]:
    """The process of the first start is at work for a second, and gone; Flower has not noticed it."""
    control.ends, control.status = [("failed", f"{REASON}so far")], "running"
    held = threading.Event()

    def work() -> None:
        with RunFolder(run).held():
            held.set()
            while not control.started:
                time.sleep(0.01)
            time.sleep(1)

    process = threading.Thread(target=work)
    process.start()
    held.wait()
    yield
    process.join()


def demand_free(*_: object) -> None:
    """The folder is taken from the start on here, so that no moment of it is missed."""


@pytest.mark.parametrize("starting", [False, True], ids=["", "a server that starts and refuses at first"])
@pytest.mark.usefixtures("killed")
def test_a_killed_run_that_this_command_stops_goes_on_though_nobody_hears_that_it_was_stopped(
    home, control, run, monkeypatch, starting: bool
):
    """The server is killed while it does so: that the run was stopped is no word of anybody's."""
    monkeypatch.setattr(RunFolder, "demand_free", demand_free)
    control.unanswered = {"stop-run"}
    control.refused_once = {"list-runs"} if starting else set()
    said: list[str] = []
    threading.Timer(2.5, lambda: setattr(control, "status", "finished")).start()
    with pytest.raises(RunError, match="so far"):
        run_study(home, run, READY, said.append)
    assert (control.started, control.stopped, control.unanswered) == (2, 1, set()), said


@pytest.mark.usefixtures("killed")
def test_a_killed_run_that_somebody_else_has_stopped_does_not_go_on(home, control, run, monkeypatch):
    monkeypatch.setattr(RunFolder, "demand_free", demand_free)
    control.refused = {"stop-run"}  # as Flower refuses it for a run that is over
    threading.Timer(3, lambda: control.over.add(1)).start()
    with pytest.raises(RunError, match="The run was stopped"):
        run_study(home, run, READY, print)
    assert control.started == 1


def test_a_run_is_started_once_though_nobody_hears_that_it_was(home, control, run):
    """A second process would find the folder taken, and say so as the reason for the study's end."""
    control.ends, control.unanswered = [("failed", f"{REASON}so far")], {"start-run"}
    said: list[str] = []
    with pytest.raises(RunError, match="so far"):
        run_study(home, run, READY, said.append)
    assert control.started == 1
    assert "the server does not answer; waiting for it" in said
    assert json.loads((run / "deployment.json").read_text())["started"] == ["1"]


def test_a_server_that_does_not_start_runs_says_so_at_once(home, control, run):
    control.refused = {"start-run"}
    with pytest.raises(RunError, match="refused"):
        run_study(home, run, READY, print)


def test_the_end_of_a_run_is_known_after_any_number_of_others(home, control, study, tmp_path):
    """Flower tells of the newest 20, and an older one that had failed was shown as running."""
    control.ends = [("failed", f"{REASON}so far")]
    for number in range(23):
        prepare(study, SITES, tmp_path / str(number))
        with pytest.raises(RunError, match="so far"):
            run_study(home, tmp_path / str(number), READY, print)
    rows = {Path(row.folder).name: row for row in overview.runs(home)}
    assert {rows[str(number)].status for number in range(23)} == {"failed"}
    control.runs.clear()  # a server that began anew
    rows = {Path(row.folder).name: row for row in overview.runs(home)}
    assert {rows[str(number)].status for number in range(23)} == {"stopped"}
    (tmp_path / "3" / "result.json").write_text('{"status": "incomplete"}')
    with RunFolder(tmp_path / "4").held():
        rows = {Path(row.folder).name: row for row in overview.runs(home)}
    assert [rows[number].status for number in "234"] == ["stopped", "incomplete", "running"]
