"""Networks that are slow or cut, and disks that are full: the study ends as it should, or stops with a clear word."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.client.enrolment.edit_yaml import change_values
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.governance.approval import approve
from fedgraft.common.study.study import Study
from helpers.federation import Federation, Started, command, lines, same_weights, until
from helpers.line import Line
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south")
METHOD = {"name": "silobn", "rounds": 3, "local": {"epochs": 4, "batch_size": 4, "lr": 0.003}}
MBIT = 1e6 / 8
_ALONE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.fixture(scope="module")
def study(make_study) -> Study:
    return make_study(method=METHOD)


@pytest.fixture(scope="module")
def federation(found, study) -> Federation:
    """A federation whose sites do not run yet."""
    made = found(study, running=())
    made.admit(study, *SITES)
    return made


@pytest.fixture
def slow_line(federation: Federation) -> Iterator[Line]:
    """The sites reach the server over 30 Mbit/s, 100 ms each way."""
    line = Line(federation.port, 30 * MBIT, 0.1)
    lead_over(federation, line.port)
    yield line
    for name in SITES:
        federation.processes[name].terminate()
    for name in SITES:
        federation.processes[name].wait(60)
    lead_over(federation, federation.port)
    line.close()


def lead_over(federation: Federation, port: int) -> None:
    for name in SITES:
        home = SiteHome(federation.site(name))
        change_values(home.config, {"server": {"address": f"localhost:{port}", "ca": str(home.authority)}})


AGAIN = "the server does not answer; trying again"


def test_a_line_that_is_far_slow_and_cut_twice_changes_nothing(federation, study, three, slow_line, tmp_path):
    for name in SITES:
        federation.start_site(name)
    process = federation.start_run(study, "line")
    for exchange in (1, 2):
        federation.await_event("exchange", "line", exchange=exchange)
        with slow_line.cut():
            time.sleep(4)
            until(lambda: AGAIN in federation.output("east"), 60, "east, which may be at work, to notice")
    assert process.wait(300) == 0, federation.output("line")
    assert slow_line.carried > 5_000_000, "the study went over the line"
    rows = federation.history("line")
    assert [row["missing"] for row in rows] == [{}] * len(rows)
    assert same_weights(federation.root / "line", simulate(study, three, tmp_path / "reference"))


def small_disk(folder: Path, free_kb: int, words: list[str], federation: Federation) -> None:
    """Run a command for which `folder` lies on a disk with that little space; for no other process does it."""
    moved = folder.with_name(f"{folder.name}.before")
    shutil.copytree(folder, moved)
    # Filled, then freed: how a system counts folders and parts of pages makes no difference.
    script = (
        'mount -t tmpfs -o size=2m tmpfs "$1" && cp -a "$2"/. "$1" || exit 1; '
        'cat /dev/zero > "$1/filler" 2>/dev/null; truncate -s "-$3" "$1/filler" && shift 3 && exec "$@"'
    )
    federation.spawn("small", [*_ALONE, "sh", "-c", script, "sh", str(folder), str(moved), f"{free_kb}K", *words])


@pytest.fixture
def _namespaces() -> None:
    tried = subprocess.run([*_ALONE, "true"], check=False)
    if tried.returncode:
        pytest.skip("this machine gives no namespaces to make a small disk in")


@pytest.fixture
def disk(federation: Federation, _namespaces: None) -> Iterator[tuple[Path, list[str]]]:
    """A small disk as the outside sees it, and what runs a command for which it lies at `disk` of the root."""
    (federation.root / "disk").mkdir()
    script = 'mount -t tmpfs -o size=24m tmpfs "$1" && echo ready && exec sleep 600'
    words = [*_ALONE, "sh", "-c", script, "sh", str(federation.root / "disk")]
    holder = Started(words, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    inside = ["nsenter", "-t", str(holder.pid), "-U", "-m", "--preserve-credentials", "--"]
    yield Path(f"/proc/{holder.pid}/root{federation.root / 'disk'}"), inside
    holder.kill()
    holder.wait()


def fill(disk: Path) -> None:
    """Write until no byte fits."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_server_whose_disk_is_full_stops_with_a_word_and_continues(federation, make_study, three, disk, tmp_path):
    """Nothing that was aggregated is lost, and no round is worked on twice but the one that could not be kept."""
    place, inside = disk
    study = make_study(method=METHOD | {"rounds": 6})
    for name in SITES:
        approve(federation.site(name), study.digest)
        federation.start_site(name)
    federation.processes["server"].terminate()
    assert federation.processes["server"].wait(40) == 0
    federation.start_server(within=inside)
    # nsenter begins in another folder.
    out = federation.root / "disk" / "small"
    process = federation.start_run(study, str(out), within=inside)
    until(lambda: any(row["exchange"] == 2 for row in lines(place / "small" / "history.jsonl")), 180, "two exchanges")
    fill(place)
    assert process.wait(120) == 1, federation.output("small")
    assert ": No space left on device. Free some space there" in federation.output("small")
    assert "--resume" in federation.output("small")
    (place / "filler").unlink()
    again = federation.start("again", "server", "run", "--resume", out, "--home", federation.home, within=inside)
    assert again.wait(200) == 0, federation.output("again")
    rows = lines(place / "small" / "history.jsonl")
    assert [row["exchange"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert all(event["event"] for event in lines(place / "small" / "events.jsonl"))
    assert same_weights(place / "small", simulate(study, three, tmp_path / "reference"))
    for name in SITES:
        federation.processes[name].terminate()
    for name in SITES:
        federation.processes[name].wait(60)


@pytest.mark.usefixtures("_namespaces")
def test_a_site_whose_disk_is_full_says_so_and_the_others_go_on(federation, make_study):
    study = make_study(method=METHOD, seed=55, rounds={"min_sites": 2})
    for name in SITES:
        approve(federation.site(name), study.digest)
    for name in ("east", "north"):
        federation.start_site(name)
    home = federation.site("south")
    start = command(["site", "start", "--home", home])
    small_disk(home / "state", 24, start, federation)
    federation.run(study, "full")
    result = json.loads((federation.root / "full" / "result.json").read_text())
    assert "south, disk" in result["headline"], result["headline"]
    assert set(result["sites"]) >= {"east", "north"}
    federation.processes["small"].terminate()
