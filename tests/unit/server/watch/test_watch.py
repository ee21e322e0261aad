"""What is seen of a run from before it begins until it is over: in the terminal, and from the page's server."""

from __future__ import annotations

import fcntl
import http.client
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from fedgraft.common.base.errors import InputError
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.screen import Lines, figures_of, picture
from fedgraft.server.watch.snapshot import WatchedRun
from fedgraft.server.watch.web import Page
from helpers.live import LiveRun

PLAN = {"name": "fedavg", "rounds": 3, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J"


@pytest.fixture
def live(tmp_path: Path, make_study) -> LiveRun:
    return LiveRun(tmp_path / "run", tmp_path / "source", make_study(method=PLAN))


@pytest.fixture
def board(live: LiveRun, tmp_path: Path) -> Board:
    return Board(ServerHome(tmp_path / "no server"), live.folder)


def lines_of(*boards: Board) -> str:
    screen = io.StringIO()
    lines = Lines(Console(file=screen, width=200))
    for board in boards:
        lines.show(board.view())
    return screen.getvalue()


def test_a_run_is_seen_from_before_its_beginning_to_its_end(live, board):
    watched = WatchedRun(live.folder)
    assert (watched.look().state, watched.look().sites) == ("not started", ())
    live.begin()
    seen = watched.look()
    assert (seen.state, seen.study, seen.stage, seen.exchanges) == ("running", "test", "greeting", 4)
    assert [site.name for site in seen.sites] == ["east", "north", "south"]
    live.start(1)
    live.event("reply", exchange=1, site="north")
    seen = watched.look()
    assert (seen.exchange, seen.stage, seen.round) == (1, "finetune", 1)
    assert {site.name: site.answered for site in seen.sites} == {"east": False, "north": True, "south": False}
    for exchange in (1, 2, 3):
        live.done(exchange)
        assert {site.answered for site in watched.look().sites} == {None}
        live.start(exchange + 1)
    seen = watched.look()
    assert (seen.stage, len(seen.history), seen.over) == ("evaluate", 3, False)
    south = seen.sites[2]
    assert (south.exchange, south.refusals) == (2, {"deadline": 1})
    assert seen.bytes_up == sum(row["bytes_up"] for row in live.rows[:3])
    assert south.metrics["cls"]["auroc"] == live.rows[1]["metrics"]["cls"]["sites"]["south"]["auroc"]
    live.done(4)
    assert not watched.look().over, "the model is still to be written"
    live.finish()
    assert (watched.look().state, watched.look().over) == ("incomplete", True)
    assert "south, deadline" in watched.look().headline


def test_what_was_spent_is_seen_and_so_is_what_no_noise_covers(live):
    live.begin()
    spend = {"epsilon": 1.25, "delta": 1e-4, "unit": "patient", "steps": 5}
    live.done(1, spent={"north": spend})
    live.done(2, spent={"north": spend | {"epsilon": 2.5}, "east": spend})
    seen = WatchedRun(live.folder).look()
    assert [site.epsilon for site in seen.sites] == [1.25, 2.5, None]
    assert seen.plain == ("train",)


def test_a_deployed_run_whose_process_ended_is_interrupted(live):
    live.begin()
    live.start(1)
    (live.folder / "lock").touch()
    assert WatchedRun(live.folder).look().state == "interrupted"
    assert RunFolder(live.folder).is_taken() is False
    with (live.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert WatchedRun(live.folder).look().state == "running"


def test_a_run_that_is_continued_is_not_over_though_it_has_a_result(live, board):
    live.begin()
    for exchange in (1, 2, 3, 4):
        live.done(exchange)
    live.finish()
    assert board.view().run.over
    live.event("greeting")
    assert not board.view().run.over


def test_watching_writes_nothing(live, board):
    live.begin()
    live.done(1)
    before = {path: path.stat().st_mtime_ns for path in live.folder.rglob("*")} | {live.folder: 0}
    board.view()
    assert {path: path.stat().st_mtime_ns for path in live.folder.rglob("*")} | {live.folder: 0} == before


def test_lines_say_what_is_new_once_and_again_after_a_run_was_set_back(live, board):
    screen = io.StringIO()
    lines = Lines(Console(file=screen, width=200))
    lines.show(board.view())
    live.begin()
    live.done(1)
    lines.show(board.view())
    lines.show(board.view())
    live.done(2)
    live.done(3)
    lines.show(board.view())
    shown = screen.getvalue()
    assert shown.splitlines()[0].endswith("no run yet")
    assert [shown.count(f"\n{number}/4 finetune, round {number} of 3: ") for number in (1, 2, 3)] == [1, 1, 1]
    assert "missing: south, deadline" in shown
    assert "AUROC 0." in shown
    assert "3.7 MB up" in shown
    history = (live.folder / "history.jsonl").read_text().splitlines(keepends=True)
    (live.folder / "history.jsonl").write_text(history[0])
    lines.show(board.view())
    live.done(2)
    lines.show(board.view())
    assert screen.getvalue().count("\n2/4 ") == 2


def test_figures_of_tasks_of_all_kinds_are_seen_and_not_those_of_too_few_cases(live, board):
    live.begin()
    sites = ("east", "north", "south")
    supports = {site: {"enough": site != "north"} for site in sites}
    of_sites = {"cls": {"auroc": 0.9}, "size": {"mae": 2.5, "rmse": 3.5}, "lesion": {"dice": 0.75}}
    metrics = {
        task: {"sites": dict.fromkeys(sites, own), "macro": own, "support": {"sites": supports}, "shown": list(own)}
        for task, own in of_sites.items()
    }
    live.done(1, metrics=metrics)
    run = board.view().run
    east, north, _ = run.sites
    assert figures_of(east, run.called) == "cls AUROC 0.900, size MAE 2.500, lesion Dice 0.750"
    assert figures_of(north, run.called) == "cls too few to say, size too few to say, lesion too few to say"
    drawn = Console(file=io.StringIO(), width=300)
    drawn.print(picture(board.view()))
    assert figures_of(east, run.called) in drawn.file.getvalue()


def test_nothing_that_a_site_says_reaches_the_terminal_as_a_command(live, board):
    live.begin()
    live.done(1, missing={HOSTILE: HOSTILE}, sites_asked=[HOSTILE])
    drawn = Console(file=io.StringIO(), force_terminal=True, width=200)
    drawn.print(picture(board.view()))
    assert "onerror" in drawn.file.getvalue()
    for text in (drawn.file.getvalue(), lines_of(board)):
        assert "\x1b[2J" not in text


def test_a_board_needs_a_run_or_a_server(tmp_path):
    with pytest.raises(InputError, match="Which run"):
        Board(ServerHome(tmp_path), None)


def test_a_study_that_cannot_be_read_is_a_fault_and_not_the_end(live, board):
    live.folder.mkdir()
    (live.folder / "study.yaml").write_text("name: 3\n")
    view = board.view()
    assert view.run is None
    assert "study.yaml" in view.fault
    assert "study.yaml" in lines_of(board)


@pytest.fixture
def page(board: Board) -> Iterator[Page]:
    with Page(board, "127.0.0.1", 0) as page:
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        yield page
        page.shutdown()
        thread.join()


def ask(page: Page, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=120)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for key, value in headers.items():
        connection.putheader(key, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_is_read_only_and_whole(page, live):
    live.begin()
    for path in ("/", "/page.js", "/page.css", "/state"):
        answer, body = ask(page, "GET", path)
        assert (answer.status, bool(body)) == (200, True)
        head, nothing = ask(page, "HEAD", path)
        assert (head.status, nothing) == (200, b"")
        policy = answer.getheader("Content-Security-Policy")
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert b"http://" not in body.replace(b"http://www.w3.org", b"")
        assert b"https://" not in body
    assert json.loads(ask(page, "GET", "/state")[1])["run"]["state"] == "running"


def test_the_same_in_figures_for_prometheus(page, live):
    live.begin()
    live.start(1)
    live.done(1)
    live.event("reply", exchange=2, site="north", code="budget")
    answer, body = ask(page, "GET", "/metrics")
    assert answer.getheader("Content-Type").startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    state = json.loads(ask(page, "GET", "/state")[1])["run"]
    assert found["fedgraft_run_state", "running", "test"] == 1
    assert found["fedgraft_run_state", "completed", "test"] == 0
    assert found["fedgraft_run_exchanges_done", "test"] == len(state["history"]) == 1
    assert found["fedgraft_run_exchanges", "test"] == state["exchanges"] == 4
    assert found["fedgraft_run_bytes_total", "up", "test"] == state["bytes_up"]
    shown = state["history"][-1]["metrics"]["cls"]
    told = {key[1]: value for key, value in found.items() if key[0] == "fedgraft_run_metric" and key[3] == "cls"}
    assert told == {name: value for name, value in shown.items() if value is not None}
    assert found["fedgraft_site_exchange", "north"] == 1


@pytest.mark.parametrize("path", ["/history.jsonl", "/../commands.py", "/%2e%2e/board.py", "/state?x=1", "/page.html"])
def test_there_is_nothing_else(page, path):
    assert ask(page, "GET", path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_changed(page, method):
    answer, body = ask(page, method, "/state")
    assert (answer.status, body) == (501, b"")


@pytest.mark.parametrize("host", ["evil.example.org", "evil.example.org:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_page_that_calls_itself_otherwise_is_refused(page, host):
    answer, body = ask(page, "GET", "/state", Host=host.format(port=page.server_address[1]))
    assert (answer.status, body) == (421, b"")


@pytest.mark.parametrize("hosts", [(), ("127.0.0.1:{port}", "evil.example.org"), ("127.0.0.1:{port}",) * 2])
def test_a_page_has_one_name(page, hosts):
    connection = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=120)
    connection.putrequest("GET", "/state", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host.format(port=page.server_address[1]))
    connection.endheaders()
    assert connection.getresponse().status == 421
    connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "LocalHost:{port}"])
def test_its_own_names_are_taken(page, host):
    assert ask(page, "GET", "/state", Host=host.format(port=page.server_address[1]))[0].status == 200


def test_a_port_that_is_taken_is_named(page, board):
    with pytest.raises(InputError, match="cannot be listened on"):
        Page(board, "127.0.0.1", page.server_address[1])
