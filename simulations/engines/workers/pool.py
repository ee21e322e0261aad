"""A Flower Grid whose sites work in a pool of processes, each replaced when it dies or takes too long."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from flwr.app import Error, Message

from fedgraft.common.base.errors import RunError
from fedgraft.server.fleet.fleet import NODE_EXPIRED
from fedgraft.simulations.engines.child_path import no_working_folder
from fedgraft.simulations.engines.grids import LocalGrid
from fedgraft.simulations.engines.node import deadline_of
from fedgraft.simulations.engines.workers.process_server import process_server
from fedgraft.simulations.engines.workers.shared_messages import ExchangeFolder, SharedMessages

_TRIES = 2
"""So often a visit is tried whose worker dies: what kills it once may be anything, what does so twice is the visit."""

_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """A process of the pool: its line, what it works on since when, and what waits for it."""

    process: ForkServerProcess
    line: Connection
    waiting: deque[Message]
    current: Message | None = None
    since: float = 0.0
    died: int = 0
    """How many workers have died in a row on the message at hand."""


class PoolGrid(LocalGrid):
    """Sites in worker processes that live as long as the run; a site stays with its worker.

    `sizes` (any unit) spread the sites over the workers. A worker that overruns a deadline is replaced. So is one that
    dies, whose visit is then repeated, to the same bits: no hospital is ill because this machine kills a process.
    RunError if the next one dies on it too, or if none can be started. `plugins` are what workers load before.
    """

    def __init__(
        self,
        configs: Sequence[Path],
        workers: int,
        sizes: Sequence[int] | None = None,
        plugins: tuple[str, ...] = (),
    ) -> None:
        super().__init__(configs)
        self._plugins = plugins
        self._folder = ExchangeFolder()
        self._messages = SharedMessages(self._folder.path, "to")
        self._names = count()
        self._start = process_server()
        self._workers = [self._hire(deque()) for _ in range(min(workers, len(configs)))]
        self._home = spread(list(self._configs), sizes or [1] * len(configs), len(self._workers))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their nodes; the tensors of an exchange that is over make room."""
        if not any(worker.current or worker.waiting for worker in self._workers):
            self._messages.clear()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give every idle worker its next message, wait until one has answered, and give all replies there are."""
        del message_ids  # whoever pulls has pushed all that waits here
        for number in range(len(self._workers)):
            self._feed(number)
        busy = {worker.line: number for number, worker in enumerate(self._workers) if worker.current}
        if not busy:
            return []
        ready = wait(list(busy), timeout=self._patience())
        received = [self._receive(busy[line]) for line in ready if isinstance(line, Connection)]
        replies = [reply for reply in received if reply is not None]
        for number in range(len(self._workers)):
            self._feed(number)
        return replies + [reply for number in range(len(self._workers)) if (reply := self._overdue(number))]

    def close(self) -> None:
        """End the workers and remove what is on its way."""
        for worker in self._workers:
            worker.line.close()
        for worker in self._workers:
            worker.process.join(timeout=2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._folder.close()

    def _queue(self, message: Message) -> None:
        self._workers[self._home[message.metadata.dst_node_id]].waiting.append(message)

    def _hire(self, waiting: deque[Message]) -> _Worker:
        from fedgraft.simulations.engines.workers.worker import work

        here, there = self._start.Pipe()
        arguments = (there, str(self._folder.path), f"from{next(self._names)}", torch.get_num_threads(), self._plugins)
        process = self._start.Process(target=work, args=arguments, daemon=True)
        try:
            with no_working_folder():
                process.start()
        except (OSError, EOFError) as error:
            raise RunError(
                f"A worker process could not be started ({type(error).__name__}): what starts it was ended, or the "
                "system has no room for another.",
                fix=_CONTINUE,
            ) from None
        there.close()
        return _Worker(process, here, waiting)

    def _feed(self, number: int) -> None:
        worker = self._workers[number]
        if worker.current is not None or not worker.waiting:
            return
        worker.current, worker.since = worker.waiting.popleft(), time.monotonic()
        node = worker.current.metadata.dst_node_id
        frame = self._messages.freeze(worker.current)
        try:
            worker.line.send_bytes(str(self._configs[node]).encode())
            worker.line.send_bytes(frame)
        except OSError:
            return  # it has died; its end of the line says so to the next wait

    def _receive(self, number: int) -> Message | None:
        worker = self._workers[number]
        assert worker.current is not None
        try:
            reply = self._messages.thaw(worker.line.recv_bytes(), once=True)
        except (EOFError, OSError):
            self._repeat(number)
            return None
        worker.current, worker.died = None, 0
        return reply

    def _repeat(self, number: int) -> None:
        """Give the message at hand of a worker that has died to another one."""
        worker = self._workers[number]
        assert worker.current is not None
        worker.process.join()
        site = self._configs[worker.current.metadata.dst_node_id].parent.name
        said = f"The worker process that simulated {site} {_ended(worker.process.exitcode)}"
        if worker.died + 1 >= _TRIES:
            raise RunError(f"{said}, and so did the one before it. {_LESS}", fix=_CONTINUE)
        _log.warning("%s. Another one repeats the visit.", said)
        worker.waiting.appendleft(worker.current)
        worker.line.close()
        self._workers[number] = self._hire(worker.waiting)
        self._workers[number].died = worker.died + 1

    def _overdue(self, number: int) -> Message | None:
        worker = self._workers[number]
        if worker.current is None or (limit := deadline_of(worker.current)) is None:
            return None
        if time.monotonic() - worker.since < limit:
            return None
        return self._replace(number)

    def _patience(self) -> float | None:
        """Seconds until the next deadline; None if there is none."""
        ends = [w.since + limit for w in self._workers if w.current and (limit := deadline_of(w.current)) is not None]
        return max(0.0, min(ends) - time.monotonic()) + 0.01 if ends else None

    def _replace(self, number: int) -> Message:
        worker = self._workers[number]
        assert worker.current is not None
        worker.process.kill()
        worker.process.join()
        worker.line.close()
        self._workers[number] = self._hire(worker.waiting)
        return Message(Error(NODE_EXPIRED), reply_to=worker.current)


_LESS = "If memory ran out: fewer --workers, a smaller batch_size or a smaller backbone take less."
_CONTINUE = "Continue with `fedgraft simulate --resume`."


def _ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    cause = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed ({name}{cause})"


def spread(nodes: Sequence[int], sizes: Sequence[int], workers: int) -> Mapping[int, int]:
    """The worker of each node: the largest nodes first, each to the worker with the least so far."""
    loads, home = [0] * workers, {}
    for size, node in sorted(zip(sizes, nodes, strict=True), key=lambda pair: (-pair[0], pair[1])):
        worker = loads.index(min(loads))
        loads[worker] += size
        home[node] = worker
    return home
