"""The server's own processes: on loopback, closed, quiet, kept alive, and gone with it; and who may connect."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.common.base.errors import InputError, RunError
from fedgraft.server.operations import superlink_service
from fedgraft.server.operations.superlink_service import (
    EnrolledSites,
    ServicePart,
    _check_port,
    _superexec,
    _superlink,
    _watch,
)
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.members import enrolled
from helpers.ports import free_port


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    content = {
        "name": "trial",
        "server": {"host": "localhost", "port": free_port(), "inner_port": free_port()},
        "sites": ["north", "south"],
    }
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    made = Authority(tmp_path / "kits").home
    for folder in (made.logs, made.flower / "empty", made.studies):
        folder.mkdir(parents=True)
    return made


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


def options(words: list[str]) -> dict[str, str]:
    """What follows each option, "" for a switch."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {word: "" if after.startswith("--") else after for word, after in pairs if word.startswith("--")}


def test_flower_listens_on_loopback_knows_its_sites_and_hands_tasks_to_whoever_has_the_secret(home):
    given = options(_superlink(home, 7777, 8888))
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "7777")
    assert given["--health-server-address"] == "127.0.0.1:8888"
    assert given["--isolation"] == "process"
    assert given["--superexec-auth-secret-file"] == str(home.secret)
    assert given["--ssl-keyfile"] == str(home.inner[1])
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= given.keys()
    assert "--insecure" not in given
    assert "--health-server-address" not in options(_superlink(home, 7777, None))
    given = options(_superexec(home))
    assert given["--runtime-api-address"].startswith("127.0.0.1:")
    assert given["--root-certificates"] == str(home.authority)
    assert given["--superexec-auth-secret-file"] == str(home.secret)


def test_a_part_of_the_server_reports_nothing_installs_nothing_and_finds_no_code_where_it_starts(home, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:1")
    script = "import os; print(os.getcwd(), {k: v for k, v in os.environ.items() if 'FLWR' in k or k == 'NO_PROXY'})"
    part = ServicePart("probe", [sys.executable, "-c", script], home)
    part.start()
    log = home.logs / "probe.log"
    until(lambda: log.exists() and "NO_PROXY" in log.read_text())
    said = log.read_text()
    assert said.startswith(str(home.flower / "empty"))
    assert not list((home.flower / "empty").iterdir())
    for switch in ("TELEMETRY_ENABLED': '0'", "UPDATE_CHECK': '1'", "DEPENDENCY_INSTALLATION': '1'"):
        assert switch in said
    assert "127.0.0.1,localhost" in said
    assert log.stat().st_mode & 0o077 == 0
    part.stop()


def test_a_part_that_is_stopped_takes_along_what_it_started(home):
    script = (
        "import subprocess, time; print('child', subprocess.Popen(['sleep', '99']).pid, flush=True); time.sleep(99)"
    )
    part = ServicePart("parent", [sys.executable, "-c", script], home)
    part.start()
    log = home.logs / "parent.log"
    until(lambda: log.exists() and "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    part.stop()
    assert not part.alive
    until(lambda: not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes())


@pytest.mark.slow
def test_a_part_that_is_killed_is_started_again_and_one_that_keeps_ending_seldom(home):
    part = ServicePart("mortal", [sys.executable, "-c", "import time; print('born', flush=True); time.sleep(99)"], home)
    stop = threading.Event()
    sites = EnrolledSites(home)
    watching = threading.Thread(target=_watch, args=([part], sites, stop), daemon=True)
    part.start()
    watching.start()
    log = home.logs / "mortal.log"
    until(lambda: log.exists() and "born" in log.read_text())
    assert part._process is not None
    os.killpg(part._process.pid, signal.SIGKILL)
    until(lambda: log.read_text().count("born") == 2)
    stop.set()
    watching.join()
    part.stop()
    hasty = ServicePart("hasty", [sys.executable, "-c", "print('born')"], home)
    started, log = time.monotonic(), home.logs / "hasty.log"
    hasty.start()

    def four_times() -> bool:
        hasty.keep_alive()
        return log.exists() and log.read_text().count("born") >= 4

    until(four_times)
    assert time.monotonic() - started > 1 + 2, "the first time at once, and then after one second and two"


def test_no_trouble_with_one_thing_ends_the_care_for_the_others(home, monkeypatch):
    """A machine short of processes, and a name in the list that no key can have; then a site is shut out."""
    enrolled(home.path.parent, "north")
    tries: list[int] = []

    def none_left(self: ServicePart) -> None:
        tries.append(1)
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(ServicePart, "keep_alive", none_left)
    monkeypatch.setattr(superlink_service, "_SYNC_S", 0.0)
    monkeypatch.setattr(superlink_service, "_WATCH_S", 0.01)
    sites, stop = EnrolledSites(home), threading.Event()
    watching = threading.Thread(target=_watch, args=([ServicePart("lost", ["x"], home)], sites, stop), daemon=True)
    watching.start()
    until(lambda: set(sites.admitted.values()) == {"north"})
    listed = home.sites()
    (home.path / "sites.json").write_bytes(b"\xff\xfe")
    before = len(tries)
    until(lambda: len(tries) > before + 2)
    home.write_sites({"north": listed["north"].model_copy(update={"revoked": "2026-01-01"})})
    until(lambda: not sites.admitted)
    assert watching.is_alive()
    stop.set()
    watching.join()


def test_a_revoked_site_is_out_at_the_gate_even_while_flower_cannot_be_told(home):
    for name in ("north", "south"):
        enrolled(home.path.parent, name)
    sites = EnrolledSites(home)
    with pytest.raises(RunError, match="does not answer"):
        sites.sync()
    assert set(sites.admitted.values()) == {"north", "south"}
    listed = home.sites()
    home.write_sites(listed | {"north": listed["north"].model_copy(update={"revoked": "2026-01-01"})})
    with pytest.raises(RunError, match="does not answer"):
        sites.sync()
    assert set(sites.admitted.values()) == {"south"}


def test_a_list_of_sites_that_cannot_be_read_lets_nobody_new_in(home):
    sites = EnrolledSites(home)
    with pytest.raises(RunError):
        sites.sync()
    before = dict(sites.admitted)
    (home.path / "sites.json").write_text('{"north": {"node": 3}}')
    with pytest.raises(InputError, match="not valid"):
        sites.sync()
    assert sites.admitted == before


def test_a_port_that_is_taken_is_named(home):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="Change port"):
            _check_port("127.0.0.1", taken.getsockname()[1], "port")


def test_the_log_of_a_part_has_no_codes_for_colours(home):
    part = ServicePart(
        "bright", [sys.executable, "-c", "print('\\033[92mINFO\\033[0m : \\033[1;31mready\\033[0m')"], home
    )
    part.start()
    path = home.logs / "bright.log"
    until(lambda: path.is_file() and path.read_bytes() != b"")
    part.stop()
    assert path.read_text() == "INFO : ready\n"
