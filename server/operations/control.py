"""The running server as the coordinator's commands see it: nodes and runs, through Flower's Control API on loopback."""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.run_pb2 import Run
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedgraft.common.base.errors import RunError
from fedgraft.common.identity.keys import load_certificate
from fedgraft.server.operations.bundle import manifest
from fedgraft.server.provisioning.home import ServerHome, expired

HEARTBEATS = 2
"""How many heartbeats a site may miss before Flower calls it offline."""

_PAGE = 1000
"""So many runs are asked for at a time; Flower tells of the newest 20 unless it is told otherwise."""


class UnansweredError(RunError):
    """The server did not answer: whether it has done what it was asked for is not known."""


@dataclass(frozen=True)
class Node:
    """A site as Flower knows it. `heard` is when it was last heard of, in seconds since 1970, 0 if never."""

    id: int
    name: str
    key: str
    online: bool
    heard: float


class RunControl:
    """A connection to a running server. UnansweredError if there is none, RunError if it refuses."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        port = home.facts().server.inner_port
        load_certificate(home.authority)
        trusted = ssl.create_default_context(cafile=str(home.authority))
        self._client = ControlHttpClient(
            f"https://127.0.0.1:{port}", interceptors=[RuntimeVersionHttpInterceptor("fedgraft")], verify=trusted
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        if isinstance(error, httpx.TransportError):
            if over := expired(self._home):
                raise RunError(f"The server of {self._home.path} cannot be spoken with: {over[0]}") from None
            raise UnansweredError(
                f"The server of {self._home.path} does not answer.", fix="Start it with `fedgraft server start`."
            ) from None
        if isinstance(error, httpx.HTTPStatusError):
            raise RunError(f"The server refused: {error.response.text[:200]}") from None

    def nodes(self, *, gone: bool = False) -> list[Node]:
        """All sites that Flower knows, connected or not; with `gone` also those that were shut out."""
        answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                id=node.node_id,
                name=node.name,
                key=node.public_key.decode("ascii"),
                online=node.status == "online",
                heard=node.online_until - HEARTBEATS * node.heartbeat_interval if node.last_activated_at else 0.0,
            )
            for node in answer.nodes_info
            if gone or node.status != "unregistered"
        ]

    def register(self, name: str, key: str) -> None:
        """Let a site in by its public key (PEM)."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=key.encode("ascii"), name=name))

    def unregister(self, node: Node) -> None:
        """Shut a site out: its key no longer counts."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.id))

    def start(self, run: Path, waits: Mapping[str, float], *, asks: bool = False, mark: str = "") -> int:
        """Start the run in a folder, which waits so long for sites that are away; or one that only asks them.

        Flower's number for it. By its mark it can be found if nobody hears that number: see `started`.
        """
        content = bundle()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        config = user_config_to_proto({"run": str(run), "engine": "deployed", "ask": asks, "mark": mark, **waits})
        answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config))
        if not answer.HasField("run_id"):
            raise RunError("The server did not start the run.", fix=f"See {self._home.logs}.")
        return int(answer.run_id)

    def started(self, mark: str) -> int | None:
        """The number of the run that was started with this mark; None if there is none."""
        found = (number for number, run in self._runs() if run.override_config["mark"].string == mark)
        return next(found, None)

    def states(self) -> Mapping[int, str]:
        """Each run's state in Flower's words: pending, starting, running, finished:completed, finished:failed, ..."""
        return {number: _state(run) for number, run in self._runs()}

    def _runs(self) -> Iterator[tuple[int, Run]]:
        """All runs that the server knows, by number, the newest first."""
        seen, page = 0, _PAGE
        while page == _PAGE:
            found = self._client.ListRuns(ListRunsRequest(limit=_PAGE, skip=seen)).run_dict
            yield from sorted(found.items(), key=lambda item: item[1].pending_at, reverse=True)
            seen, page = seen + len(found), len(found)

    def state(self, number: int) -> tuple[str, str]:
        """One run's state, and details about it."""
        run = self._client.ListRuns(ListRunsRequest(run_id=number)).run_dict[number]
        return _state(run), str(run.status.details)

    def stop(self, number: int) -> None:
        """Stop a run by its number; `server run --resume` can continue it."""
        self._client.StopRun(StopRunRequest(run_id=number))


def bundle() -> bytes:
    """The bundle that Flower ships: a manifest without Python, since both sides run what they have installed."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as temporary:
        app = Path(temporary) / "fedgraft"
        app.mkdir()
        (app / "pyproject.toml").write_text(manifest(), encoding="utf-8")
        # A bundle may not be empty.
        (app / "manifest.yaml").write_text("code: installed\n", encoding="utf-8")
        return bytes(build_fab_from_disk(app))


def _state(run: Run) -> str:
    status = run.status
    return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)
