"""A simulation over a Ray cluster of two machines, in namespaces of their own: same bits, and sites that stay."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT, CompletedProcess, Popen

import pytest

from fedgraft.common.base.files import PACKAGE, load_tensors, read_json
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals, prepare
from helpers.federation import until
from helpers.machines import ADDRESSES, Machines, can_make_machines
from helpers.simulated import resume, simulate

pytestmark = [pytest.mark.ray, pytest.mark.slow]
HEAD = f"{ADDRESSES[0]}:6379"
LEAST = ("--disable-usage-stats", "--object-store-memory=80000000", "--num-gpus=0", "--include-log-monitor=false")
NAMES = ("one", "two")
METHOD = {"name": "fedbn", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}


SAID = (
    "has the code of fedgraft",
    "cannot read the data of east",
    "has other files as the data of west than this machine",
    "does not see the run's folder",
)


class Cluster:
    """Two machines that run Ray; fedgraft is called on the first."""

    def __init__(self, machines: Machines, local: Path) -> None:
        self.machines = machines
        self.environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_TMPDIR": str(local),
            "PYTHONPATH": str(Path(PACKAGE).parent),
            "OMP_NUM_THREADS": "1",
            "RAY_raylet_start_wait_time_s": "600",  # a busy machine is no failure
        }
        self.start(0, "--head", "--port=6379", "--include-dashboard=false", "--no-monitor", "--num-cpus=1")
        self.start(1, f"--address={HEAD}", "--num-cpus=1")

    def start(self, machine: int, *words: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        where = f"--node-ip-address={ADDRESSES[machine]}"
        done = self.machines.run(machine, ray, "start", where, *LEAST, *words, environment=self.environment)
        assert done.returncode == 0, done.stdout + done.stderr

    def fedgraft(self, *words: str) -> CompletedProcess[str]:
        called = [sys.executable, "-m", "fedgraft", *words]
        return self.machines.run(0, *called, environment=self.environment)

    def carry_out(self, run: Path) -> CompletedProcess[str]:
        """Carry out a run that is set up on this cluster."""
        return self.fedgraft(*on_cluster(run))

    def begin(self, run: Path) -> Popen[str]:
        """The same, without waiting for it."""
        command = self.machines.command(0, [sys.executable, "-m", "fedgraft", *on_cluster(run)])
        return Popen(command, env=self.environment, stdout=PIPE, stderr=STDOUT, text=True)

    def hide(self, machine: int, path: Path, by: Path | None = None) -> None:
        """Let a machine see an empty folder in place of `path`, or what is at another one."""
        words = ("--bind", str(by)) if by else ("-t", "tmpfs", "none")
        assert self.machines.run(machine, "mount", *words, str(path)).returncode == 0

    def show(self, machine: int, *paths: Path) -> None:
        """Undo it."""
        for path in paths:
            assert self.machines.run(machine, "umount", str(path)).returncode == 0


def on_cluster(run: Path) -> list[str]:
    return ["simulate", "--resume", str(run), "--engine", "ray", "--ray-address", HEAD]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    if not can_make_machines():
        pytest.skip("this machine gives no namespaces for two machines")
    local = Path(
        tempfile.mkdtemp(prefix="fg-", dir="/tmp")
    )  # Ray's sockets lie below it, and their paths must be short
    machines = Machines(local)
    try:
        yield Cluster(machines, local)
    finally:
        machines.close()
        shutil.rmtree(local)


def same(here: Path, there: Path) -> None:
    ours, theirs = (load_tensors(run / "model.safetensors") for run in (here, there))
    assert all((ours[key] == theirs[key]).all() for key in ours)
    assert read_json(here / "result.json")["metrics"] == read_json(there / "result.json")["metrics"]


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study(method=METHOD)


def test_two_machines_give_the_same_bits_and_a_site_stays_where_it_is(
    cluster: Cluster, hospitals: Hospitals, make_study: Callable[..., Study], tmp_path: Path
) -> None:
    """Also where one of the processes is killed on the way, and another has to go on."""
    study = make_study(method=METHOD | {"rounds": 6})
    there = tmp_path / "there"
    prepare(study, hospitals, there)
    begun = cluster.begin(there)
    try:
        until(lambda: (there / "history.jsonl").exists() or begun.poll() is not None, 300, "the first round")
        [process] = re.findall(r"by process (\d+)", (there / "sites" / "east" / "site.log").read_text())
        assert cluster.machines.run(1, "kill", "-KILL", process).returncode == 0
        said, _ = begun.communicate()
    finally:
        begun.kill()
        begun.wait()
    assert begun.returncode == 0, said
    assert f"The process on {ADDRESSES[1]} that simulated" in said
    same(simulate(study, hospitals, tmp_path / "here"), there)
    places = read_json(there / "places.json")
    assert sorted(places) == list(ADDRESSES)
    assert sorted(site for sites in places.values() for site in sites) == sorted(hospitals.cohorts)
    for address, name in zip(ADDRESSES, NAMES, strict=True):
        for site in places[address]:
            log = (there / "sites" / site / "site.log").read_text()
            assert set(re.findall(r"simulated on (\w+) by", log)) == {name}, log


def test_what_a_node_has_otherwise_is_said_before_anything_is_done(
    cluster: Cluster, hospitals: Hospitals, study: Study, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    prepare(study, hospitals, run)
    east, west = (hospitals.cohorts[site].root for site in ("east", "west"))  # they are on the second
    code = PACKAGE / "common" / "base" / "seeds.py"
    changed, others = tmp_path / "seeds.py", tmp_path / "others"
    changed.write_text(code.read_text() + "# of another version\n")
    shutil.copytree(west, others)
    (others / "left" / "0000.png").unlink()
    hidden = [(code, changed), (east, None), (west, others), (run, None)]
    for path, by in hidden:
        cluster.hide(1, path, by)
    try:
        done = cluster.carry_out(run)
    finally:
        cluster.show(1, *(path for path, _ in hidden))
    assert done.returncode == 2, done.stdout + done.stderr
    for words in SAID:
        assert f"{ADDRESSES[1]} {words}" in " ".join(done.stderr.split()), done.stderr
    assert ADDRESSES[0] not in done.stderr
    assert not (run / "history.jsonl").exists()


def test_a_run_whose_node_is_gone_ends_in_words_and_can_be_resumed(
    cluster: Cluster, hospitals: Hospitals, make_study: Callable[..., Study], tmp_path: Path
) -> None:
    """The last: the second machine stays off."""
    study = make_study(method=METHOD | {"rounds": 8})
    there = tmp_path / "there"
    prepare(study, hospitals, there)
    begun = cluster.begin(there)
    try:
        until(lambda: (there / "history.jsonl").exists() or begun.poll() is not None, 300, "the first round")
        cluster.machines.switch_off(1)
        said, _ = begun.communicate()
    finally:
        begun.kill()
        begun.wait()
    assert begun.returncode == 1, said
    assert f"The process on {ADDRESSES[1]} that simulated" in said
    assert "--resume" in said
    assert not (there / "result.json").exists()
    same(simulate(study, hospitals, tmp_path / "here"), resume(there))
