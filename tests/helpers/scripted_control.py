"""Flower's Control API over TLS from a script, in a SuperLink's place: for what a real one does once in many runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import uvicorn
from flwr.proto.control_pb2 import (
    ListNodesResponse,
    ListRunsRequest,
    ListRunsResponse,
    StartRunRequest,
    StartRunResponse,
    StopRunRequest,
    StopRunResponse,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus

from fedgraft.server.provisioning.home import ServerHome

SITES = ("north", "south")
STOPPED = RunStatus(status="finished", sub_status="stopped")


class ScriptedControl:
    """Flower's Control API from a script: the end of each run that is started, (sub status, details), in order.

    A call in `unanswered` is carried out, and the connection ends before its answer; one in `refused` is not.
    """

    def __init__(self, home: ServerHome) -> None:
        self.ends: list[tuple[str, str]] = []
        self.online, self.started, self.stopped = 2, 0, 0
        self.status = "finished"
        self.unanswered: set[str] = set()
        self.refused: set[str] = set()
        self.refused_once: set[str] = set()
        """Those that are refused the next time that they come after an unanswered one."""
        self.runs: dict[int, Run] = {}
        self.over: set[int] = set()
        """Those that were stopped by a call."""
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
        asked, more = b"", True
        while more:
            message = await receive()
            asked, more = asked + message.get("body", b""), message.get("more_body")
        call = scope["path"].rpartition("/")[2]
        if call == "list-runs":
            self.followed.add(scope["client"])
        refuses = call in self.refused or (not self.unanswered and call in self.refused_once)
        self.refused_once -= {call} if refuses else set()
        status = 412 if refuses else 200
        body = b"" if refuses else self._answer(call, asked).SerializeToString()
        headers = [(b"content-type", b"application/x-protobuf"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if call in self.unanswered:
            self.unanswered.remove(call)
            return  # half an answer, after which the connection is closed
        await send({"type": "http.response.body", "body": body})

    def _answer(self, call: str, asked: bytes) -> Any:
        if call == "list-nodes":
            nodes = [
                NodeInfo(node_id=n + 1, name=name, status="online" if n < self.online else "offline")
                for n, name in enumerate(SITES)
            ]
            return ListNodesResponse(nodes_info=self.nodes or nodes)
        if call == "start-run":
            self.started += 1
            config = StartRunRequest.FromString(asked).override_config
            self.runs[self.started] = Run(
                run_id=self.started, override_config=config, pending_at=f"2026-01-01T{self.started:06}"
            )
            return StartRunResponse(run_id=self.started)
        if call == "stop-run":
            self.stopped += 1
            self.over.add(StopRunRequest.FromString(asked).run_id)
            return StopRunResponse(success=True)
        return self._list(ListRunsRequest.FromString(asked))

    def _list(self, wanted: ListRunsRequest) -> ListRunsResponse:
        """As Flower does: one run, or a page of all, the newest first; a page is of 20 unless it is said."""
        for number, run in self.runs.items():
            how, details = self.ends[min(number, len(self.ends)) - 1]
            status = RunStatus(status=self.status, sub_status=how if self.status == "finished" else "", details=details)
            run.status.CopyFrom(STOPPED if number in self.over else status)
        if wanted.HasField("run_id"):
            return ListRunsResponse(run_dict={wanted.run_id: self.runs[wanted.run_id]})
        limit = wanted.limit if wanted.HasField("limit") else 20
        page = sorted(self.runs, reverse=True)[wanted.skip :][:limit]
        return ListRunsResponse(run_dict={number: self.runs[number] for number in page})

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
