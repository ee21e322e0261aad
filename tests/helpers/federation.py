"""A real consortium on loopback: the commands a coordinator and hospitals type, as processes of their own, over TLS."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import yaml

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.join import join
from fedgraft.client.enrolment.pseudonyms import keep_key
from fedgraft.client.governance.approval import approve
from fedgraft.common.base.files import load_tensors
from fedgraft.common.base.seeds import derive
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.consortium import read_consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.engines.run import OPEN, Hospitals
from fedgraft.simulations.poc.consortium import pin_each_other
from helpers.ports import free_port

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]

SLOW = 3.0
"""Limits are those of a quiet machine; one that is so many times slower is borne with, and costs nobody else time."""

_END_S, _LEAVE_S = 60.0, 20.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """For a process that was just forked: it is killed when the tests' own is, however that ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Started(subprocess.Popen[bytes]):
    """A process that ends with the tests' own, even if that is killed; its limits are those of a slow machine."""

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        super().__init__(words, preexec_fn=end_with_parent, **options)

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(None if timeout is None else timeout * SLOW)


class Federation:
    """Folders under `root`: kits, sites/NAME, runs. `end` ends all processes that were started."""

    living: ClassVar[list[Federation]] = []

    def __init__(self, root: Path, hospitals: Hospitals, sites: Sequence[str], **server: Any) -> None:
        self.root = root
        self.hospitals = hospitals
        self.kits, self.home = root / "kits", root / "kits" / "server"
        self.port, self.inner = free_port(), free_port()
        self.processes: dict[str, Started] = {}
        """The newest by name; those before it are in `_started` too."""
        self._started: list[Started] = []
        self.server = {"host": "localhost", "port": self.port, "listen": "127.0.0.1", "inner_port": self.inner} | server
        root.mkdir(parents=True, exist_ok=True)
        Federation.living.append(self)
        self.provision(sites)

    def provision(self, sites: Sequence[str]) -> None:
        content = {"name": "trial", "server": self.server, "sites": list(sites)}
        (self.root / "consortium.yaml").write_text(yaml.safe_dump(content))
        Authority(self.kits).provision(read_consortium(self.root / "consortium.yaml"))

    def fedgraft(self, *arguments: object, fails: bool = False) -> Done:
        done = subprocess.run(
            command(arguments), cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False
        )
        if not fails:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, name: str, *arguments: object, within: Sequence[str] = ()) -> Started:
        return self.spawn(name, [*within, *command(arguments)])

    def spawn(self, name: str, words: Sequence[str], *paths: Path) -> Started:
        """Start any program, which `end` ends; its output is that of `name`, and `paths` come before Python's own."""
        with (self.root / f"{name}.out").open("ab") as log:
            process = Started(
                words, cwd=self.root, env=self.environment(*paths), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes[name] = process
        self._started.append(process)
        return process

    def environment(self, *paths: Path) -> dict[str, str]:
        found = [*map(str, paths), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def running(self) -> set[str]:
        """The names of all that was started here and has not ended."""
        return {name for name, process in self.processes.items() if process.poll() is None}

    def recover(self, before: set[str]) -> None:
        """After a test that failed: end what it started, let go on what it halted, start again what it ended."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        for name in self.running() - before:
            self.processes[name].kill()
            self.processes[name].wait()
        if "server" in before and self.processes["server"].poll() is not None:
            self.start_server()
        if "server" in before:
            self.fedgraft("server", "stop", "--home", self.home, fails=True)
        for name in before - self.running() - {"server"}:
            if (self.site(name) / "site.yaml").exists():
                self.start_site(name)

    def whole(self, *sites: str) -> bool:
        """Whether the server and these sites run."""
        return all(name in self.processes and self.processes[name].poll() is None for name in ("server", *sites))

    def start_server(self, *more: object, within: Sequence[str] = ()) -> None:
        """`within` is a command that runs another one, in some place of its own."""
        before = self.output("server").count("listens")
        self.start("server", "server", "start", "--home", self.home, *more, within=within)
        until(lambda: self.output("server").count("listens") > before, 120, "the server's start")

    def join(self, name: str, study: Study | None = None, kit: Path | None = None) -> None:
        """Join with the site's data; given a study, with the key that a simulation of it has, since it splits.

        The coordinator is not asked yet: see `enrol`.
        """
        home, code = SiteHome(self.site(name)), (self.kits / f"{name}.code").read_text().strip()
        # As the command does, which the guide's test types: in a process of its own it takes seconds for each site.
        join(kit or self.kits / f"{name}.zip", code, self.hospitals.cohorts[name], OPEN, home)
        config = yaml.safe_load(home.config.read_text())
        if study is not None:
            keep_key(home.path / "state", derive(study.seed, name, "secret").to_bytes(16, "big"))
        home.config.write_text(
            yaml.safe_dump(config | {"threads": 1, "device": "cpu", "policy": OPEN.model_dump(mode="json")})
        )

    def admit(self, study: Study, *names: str) -> None:
        """All that comes before sites can be started: they join, are enrolled, pin each other and approve the study."""
        for name in names:
            self.join(name, study)
        self.enrol(*names)
        for name in names:
            approve(self.site(name), study.digest)

    def enrol(self, *names: str) -> None:
        """The coordinator takes in what sites made when they joined, and each site pins those that are enrolled."""
        for name in names:
            Authority(self.kits).enrol(self.site(name) / f"{name}.enrolment.json")
        pin_each_other(self.kits, [SiteHome(self.site(name)) for name in names])
        if names and "server" in self.processes:
            self.await_admitted()

    def await_admitted(self) -> None:
        """Wait until the running server lets in all that are enrolled."""
        count = str(len(Authority(self.kits).home.admitted()))
        until(lambda: re.findall(r"(\d+) sites may connect", self.log("server"))[-1:] == [count], 30, "the enrolled")

    def start_site(self, name: str, *studies: Study) -> Started:
        for study in studies:
            approve(self.site(name), study.digest)
        return self.start(name, "site", "start", "--home", self.site(name))

    def site(self, name: str) -> Path:
        return self.root / "sites" / name

    def write(self, study: Study, name: str = "study.yaml") -> Path:
        (self.root / name).write_text(study.to_yaml())
        return self.root / name

    def start_run(self, study: Study, out: str = "run", *more: object, within: Sequence[str] = ()) -> Started:
        self._demand_new(out)
        path = self.write(study, f"{Path(out).name}.yaml")
        words = ("server", "run", path, "--home", self.home, "--out", out, *more)
        return self.start(Path(out).name, *words, within=within)

    def run(self, study: Study, out: str = "run", *more: object, fails: bool = False) -> Done:
        self._demand_new(out)
        path = self.write(study, f"{out}.yaml")
        return self.fedgraft("server", "run", path, "--home", self.home, "--out", out, *more, fails=fails)

    def _demand_new(self, out: str) -> None:
        """Tests that share a federation must not wait for what another one's run of the same name has told."""
        assert not (self.root / out).exists(), f"{out}: this federation has a run of that name; choose another"

    def output(self, name: str) -> str:
        path = self.root / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def log(self, part: str) -> str:
        return (self.home / "logs" / f"{part}.log").read_text(errors="replace")

    def events(self, out: str = "run") -> list[dict[str, Any]]:
        return lines(self.root / out / "events.jsonl")

    def history(self, out: str = "run") -> list[dict[str, Any]]:
        return lines(self.root / out / "history.jsonl")

    def await_event(self, kind: str, out: str = "run", seconds: float = 180, **facts: object) -> None:
        def seen() -> bool:
            events = self.events(out) if (self.root / out).exists() else []
            return any(e["event"] == kind and facts.items() <= e.items() for e in events)

        until(seen, seconds, f"{kind} {facts}")

    def child(self, name: str) -> int:
        """The number of a process of the server by the name of its program."""
        found = self.children(name)
        assert found, f"no {name} runs"
        return found[0]

    def children(self, name: str) -> list[int]:
        return children(self.processes["server"].pid, name)

    def kill(self, name: str, chance: Random) -> bool:
        """Kill a process of the server whose command line contains `name`; whether there was one to kill."""
        with contextlib.suppress(ProcessLookupError, IndexError):  # it may end between being found and being killed
            os.kill(chance.choice(self.children(name)), signal.SIGKILL)
            return True
        return False

    def end(self) -> None:
        """End all that was started here, and all that this started in turn; what ends only by force is named."""
        if self in Federation.living:
            Federation.living.remove(self)
        running = [process for process in self._started if process.poll() is None]
        family = [child for process in running for child in children(process.pid, "")]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in running:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        ends = time.monotonic() + SLOW * _LEAVE_S
        while (left := [child for child in family if line_of(child)]) and time.monotonic() < ends:
            time.sleep(0.1)
        named = [line_of(child) for child in left]
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert not named, f"left behind: {named}"


def command(arguments: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "fedgraft", *map(str, arguments)]


def children(parent: int, name: str) -> list[int]:
    """All descendants of a process whose command line contains `name`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [parent]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            waiting.append(child)
            if (line := line_of(child)) and name in line:
                found.append(child)
    return found


def line_of(process: int) -> str:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    ends = time.monotonic() + SLOW * seconds
    while not holds():
        assert time.monotonic() < ends, f"waited {SLOW * seconds:.0f} s in vain for {what}"
        time.sleep(0.1)


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def same_weights(left: Path, right: Path) -> bool:
    """Whether two runs ended with the same model, bit for bit."""
    one, other = (load_tensors(run / "model.safetensors") for run in (left, right))
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)
