"""Many sites in one process that speak the real protocol and do no work: what they cost is not the server's.

    python -m benchmarks.light_sites AT_ONCE HOME...

Each has joined and is enrolled as any other, holds a connection of its own, and answers an instruction with what it
was sent, times a factor of its own, so that no two answers share a piece. `AT_ONCE` of them read and send at a time.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime.link import Link, OverToo, Work
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import TRUNK, Greeting, Instruction, Update
from fedgraft.common.study.study import parse_study

_POLL_S = 1.0
CASES = 10


class LightSites:
    """What the sites share: of what they hold only one copy, since all were sent the same."""

    def __init__(self, homes: list[SiteHome], at_once: int) -> None:
        self._homes = homes
        self._working = threading.Semaphore(at_once)
        self._lock = threading.Lock()
        self._held: dict[str, np.ndarray] = {}
        self._tasks: tuple[str, ...] = ()

    def run(self) -> None:
        """All of them connect, and answer for as long as this process lives."""
        threads = [threading.Thread(target=self._live, args=pair) for pair in enumerate(self._homes, start=1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _live(self, number: int, home: SiteHome) -> None:
        link = Link(home, threading.Event())
        node = link.open()
        while True:
            try:
                work = link.receive()
                if work is None:
                    time.sleep(_POLL_S)
                    continue
                with self._working:
                    self._serve(link, work, node, number, home.path.name)
            except (OverToo, ObjectPullError):  # the server sends again what it did not hear of
                continue

    def _serve(self, link: Link, work: Work, node: int, number: int, name: str) -> None:
        message = link.read(work)
        content = self._answer(message, number, name)
        with self._lock:  # Flower has one identity for a process
            TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = work.run, 0, node
            reply = Message(content, reply_to=message)
        link.send(reply)
        print(name, work.kind, flush=True)

    def _answer(self, message: Message, number: int, name: str) -> RecordDict:
        match message.metadata.message_type:
            case wire.HELLO:
                hello = wire.unpack_hello(message.content)
                self._tasks = tuple(parse_study(json.loads(hello.study), name).tasks_by_name)
                return wire.pack_greeting(Greeting(name, {"train": CASES}, {}))
            case wire.VISIT:
                return wire.pack_reply(self._work(wire.unpack_instruction(message.content), 1 + 1e-4 * number))
            case _:
                return RecordDict()

    def _work(self, instruction: Instruction, factor: float) -> Update:
        with self._lock:
            self._held |= {key: np.array(array) for key, array in instruction.tensors.items()}
            now = dict(self._held)
        weights = dict.fromkeys((*self._tasks, TRUNK), float(CASES))
        tensors = _times(now, factor) if instruction.work else {}
        return Update(instruction.exchange, tensors, weights, {"loss": 1.0}, {})


def _times(arrays: Mapping[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    return {key: (a * factor).astype(a.dtype) if a.dtype.kind == "f" else a for key, a in arrays.items()}


if __name__ == "__main__":
    LightSites([SiteHome(Path(path)) for path in sys.argv[2:]], int(sys.argv[1])).run()
