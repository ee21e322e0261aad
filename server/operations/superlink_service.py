"""The running server: Flower's SuperLink and SuperExec on loopback, kept alive, and the gate in front of them."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from fedgraft.common.base.errors import ENDS, FedgraftError, InputError, RunError
from fedgraft.common.base.logs import file_log
from fedgraft.server.bodies.bodies import FOLDER, Bodies
from fedgraft.server.fleet.bell import Bells
from fedgraft.server.operations import supervise
from fedgraft.server.operations.control import RunControl
from fedgraft.server.operations.doors import DoorLimits
from fedgraft.server.operations.gate import Gate, gate_server
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.provisioning.home import ServerHome

_START_S = 60.0
_WATCH_S = 0.5
_SYNC_S = 2.0
_QUICK_S = 5.0
"""A process that lives shorter than this is started again only after a pause that grows up to `_PAUSE_S`."""

_PAUSE_S = 30.0

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""What Flower writes for terminals, which no file needs."""

_log = logging.getLogger("fedgraft.server")


def serve(home: ServerHome, health_port: int | None, say: Callable[[str], None]) -> None:
    """Run the server until it is told to stop by SIGTERM or SIGINT. InputError if it runs already or cannot listen.

    `health_port`, if given, answers gRPC health checks on loopback.
    """
    facts = home.facts().server
    home.check_certificates()
    home.sites()
    for folder in (home.logs, home.flower, home.studies):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with home.lock():
        _check_port("127.0.0.1", facts.inner_port, "inner_port")
        port = facts.listen_port or facts.port
        _check_port(facts.listen, port, "port")
        inner = f"127.0.0.1:{facts.inner_port}"
        (home.flower / "empty").mkdir(exist_ok=True)
        parts = [
            ServicePart("superlink", _superlink(home, facts.inner_port, health_port), home),
            ServicePart("superexec", _superexec(home), home),
        ]
        sites = EnrolledSites(home)
        limits = DoorLimits(per_address=facts.connections_per_address, all=max(512, 2 * facts.connections_per_address))
        auth, bodies, bells = RequestAuth(lambda: sites.admitted), Bodies(home.bodies), Bells(home.flower)
        gate = Gate(auth, f"https://{inner}", home.authority, limits, bodies=bodies, bells=bells)

        def listens() -> None:
            say(f"{home.facts().consortium}: the gate listens on {facts.says_where}.")

        server = gate_server(gate, (facts.listen, port), home.gate, listens)
        stop = threading.Event()
        home.found_database()
        try:
            parts[0].start()
            _until_listening(parts[0], facts.inner_port)
            parts[1].start()
            sites.sync()
            watch = threading.Thread(target=_watch, args=(parts, sites, stop), daemon=True)
            watch.start()
            # uvicorn ends at SIGTERM and SIGINT, and then raises them again; it ends at one that comes before it too.
            for kind in (signal.SIGTERM, signal.SIGINT):
                signal.signal(kind, lambda *_: setattr(server, "should_exit", True))
            server.run()
        finally:
            stop.set()
            for part in reversed(parts):
                part.stop()


class ServicePart:
    """One of the server's processes. It ends with this one, however that ends."""

    def __init__(self, name: str, command: Sequence[str], home: ServerHome) -> None:
        self.name = name
        self._command = command
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause_s = 0.0
        self._log = file_log(home.logs / f"{name}.log")

    @property
    def alive(self) -> bool:
        """Whether its process is there and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, with its output in a log of its own."""
        process = subprocess.Popen(
            [sys.executable, "-P", supervise.__file__, str(os.getpid()), *self._command],
            cwd=self._home.flower / "empty",
            env=environment(self._home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        threading.Thread(target=self._copy, args=(process.stdout,), daemon=True).start()
        self._process, self._started = process, time.monotonic()

    def _copy(self, output: IO[bytes]) -> None:
        """Write what the process says to its log, as long as it says something."""
        for line in output:
            self._log.info(_COLOURS.sub("", line.decode(errors="replace")).rstrip())

    def keep_alive(self) -> None:
        """Start it again if it ended; a process that keeps ending is started less and less often."""
        if self.alive:
            return
        lived_s = time.monotonic() - self._started
        if lived_s < self._pause_s:
            return
        self._pause_s = min(max(1.0, 2 * self._pause_s), _PAUSE_S) if lived_s < _QUICK_S else 0.0
        _log.warning("%s ended and is started again", self.name)
        self.start()

    def stop(self) -> None:
        """End its process and all that this started; killed if it does not end within 10 s."""
        if self._process is None:
            return
        for how, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(patience_s)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


class EnrolledSites:
    """Who may connect: taken from the server's folder, told to Flower, and taken again when the folder changes."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._told: Mapping[str, str] | None = None
        self.admitted: Mapping[str, str] = {}

    def sync(self) -> None:
        """Take over what changed, old keys whose time is over too. What Flower could not be told is told next time."""
        admitted = self._home.admitted()
        if admitted != self.admitted:
            self.admitted = admitted
            _log.info("%d sites may connect, with %d keys", len(set(admitted.values())), len(admitted))
        if admitted != self._told:
            with RunControl(self._home) as control:
                nodes = {node.key: node for node in control.nodes()}
                for key, node in nodes.items():
                    if key not in self.admitted:
                        control.unregister(node)
                for key, name in self.admitted.items():
                    if key not in nodes:
                        control.register(name, key)
            self._told = admitted


def environment(home: ServerHome) -> dict[str, str]:
    """The environment of the server's processes: nothing is installed, reported or looked up."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "FLWR_HOME": str(home.flower),
        FOLDER: str(home.bodies),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONSAFEPATH": "1",
        # Every question costs a write to the database, for which the models in transit wait.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _superlink(home: ServerHome, port: int, health_port: int | None) -> list[str]:
    certificate, key = home.inner
    health = [] if health_port is None else ["--health-server-address", f"127.0.0.1:{health_port}"]
    return [
        *(
            sys.executable,
            "-P",
            "-m",
            "fedgraft.server.operations.superlink",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ),
        *("--ssl-ca-certfile", str(home.authority), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
        *("--enable-supernode-auth", "--database", str(home.database), "--isolation", "process"),
        *("--disable-runtime-dependency-installation", "--superexec-auth-secret-file", str(home.secret)),
        *health,
    ]


def _superexec(home: ServerHome) -> list[str]:
    port = home.facts().server.inner_port
    return [
        *("flower-superexec", "--runtime-api-address", f"127.0.0.1:{port}"),
        *("--root-certificates", str(home.authority), "--superexec-auth-secret-file", str(home.secret)),
    ]


def _watch(parts: Sequence[ServicePart], sites: EnrolledSites, stop: threading.Event) -> None:
    """Look after everything until told to stop: no trouble with one thing ends the care for the others."""
    synced = 0.0
    while not stop.wait(_WATCH_S):
        for part in parts:
            _tried(part.keep_alive, f"{part.name} could not be started again yet")
        if time.monotonic() - synced > _SYNC_S:
            synced = time.monotonic()
            _tried(sites.sync, "sites could not be taken over yet")


def _tried(do: Callable[[], None], words: str) -> None:
    """Do it, or say why not: it is tried again. Whoever was shut out would be let in for good if this thread ended."""
    try:
        do()
    except FedgraftError as error:
        _log.warning("%s: %s", words, error)
    except ENDS:
        raise
    except BaseException:
        _log.exception("%s", words)


def _until_listening(part: ServicePart, port: int) -> None:
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends and part.alive:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RunError("Flower's SuperLink did not start.", fix=f"See {part.name}.log in the server's logs.")


def _check_port(host: str, port: int, key: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = f"Change {key} in the consortium file and provision again, or end what uses it."
            raise InputError(f"{host} port {port} cannot be listened on: {error.strerror}.", fix=fix) from None
