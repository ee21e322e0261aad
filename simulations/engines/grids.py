"""Flower Grids on one machine, without Flower's processes: all sites in this process, or in a pool of workers."""

from __future__ import annotations

import ctypes
import logging
import queue
import signal
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.runtime.app import forget
from fedgraft.common.base.errors import RunError
from fedgraft.server.fleet.fleet import NODE_EXPIRED
from fedgraft.simulations.engines.child_path import no_working_folder
from fedgraft.simulations.engines.node import answer, context_for, deadline_of
from fedgraft.simulations.engines.process_server import process_server
from fedgraft.simulations.engines.shared_messages import ExchangeFolder, SharedMessages

_COORDINATOR = 1
"""Flower's node id for a ServerApp."""

_TRIES = 2
"""So often a visit is tried whose worker dies: what kills it once may be anything, what does so twice is the visit."""

_log = logging.getLogger(__name__)


class LocalGrid(Grid):
    """What our grids share: nodes are numbered in the order of their configurations, from 1."""

    def __init__(self, configs: Sequence[Path]) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, _COORDINATOR
        self._run = Run.create_empty(1)
        self._configs = dict(enumerate(configs, start=2))
        self._numbers = count(1)

    def set_run(self, run: Run) -> None:
        """Take over the description of the run that messages belong to (Flower's interface)."""
        self._run = run

    @property
    def run(self) -> Run:
        """The description of the run that messages belong to (Flower's interface)."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to the node with this number, not yet sent (Flower's interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of all nodes, from 1."""
        return list(self._configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their nodes; their numbers, as Flower's interface wants them."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            ids.append(message.metadata.message_id)
            self._queue(message)
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for all replies."""
        del timeout  # late nodes are answered for by the messages' own time to live
        waiting, replies = set(self.push_messages(messages)), []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    @abstractmethod
    def _queue(self, message: Message) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """End the processes and free the memory that the grid started or took; here there is nothing."""


class InProcessGrid(LocalGrid):
    """All sites in this process, one after the other. With `deadlines`, in a thread that can be left behind."""

    def __init__(self, configs: Sequence[Path], *, deadlines: bool = False) -> None:
        super().__init__(configs)
        self._waiting: deque[Message] = deque()
        self._contexts = {node: context_for(node, path) for node, path in self._configs.items()}
        self._lane = _Lane() if deadlines else None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their nodes. The memory that the exchange before has left goes back to the system."""
        _trim()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the next node work, and give its reply."""
        del message_ids  # whoever pulls has pushed all that waits here
        if not self._waiting:
            return []
        message = self._waiting.popleft()
        context = self._contexts[message.metadata.dst_node_id]
        if self._lane is None:
            return [answer(message, context)]
        reply = self._lane.answer(message, context)
        if reply is None:
            self._lane = _Lane()
            reply = Message(Error(NODE_EXPIRED), reply_to=message)
        return [reply]

    def close(self) -> None:
        """Free the sites' models and data, which are kept between exchanges."""
        self._lane = None
        forget()

    def _queue(self, message: Message) -> None:
        self._waiting.append(message)


def _trim() -> None:
    """The C library keeps what is freed, in pieces too small for the next model: over many sites that adds up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


class _Lane:
    """A thread that answers messages; if one takes too long, the thread is given up with all that it holds."""

    def __init__(self) -> None:
        self._in: queue.SimpleQueue[tuple[Message, Context]] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, message: Message, context: Context) -> Message | None:
        self._in.put((message, context))
        try:
            return self._out.get(timeout=deadline_of(message))
        except queue.Empty:
            return None

    def _run(self) -> None:
        while True:
            self._out.put(answer(*self._in.get()))


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
    RunError if the next one dies on it too, or if none can be started.
    """

    def __init__(self, configs: Sequence[Path], workers: int, sizes: Sequence[int] | None = None) -> None:
        super().__init__(configs)
        self._folder = ExchangeFolder()
        self._messages = SharedMessages(self._folder.path, "to")
        self._names = count()
        self._start = process_server()
        self._workers = [self._hire(deque()) for _ in range(min(workers, len(configs)))]
        self._home = _spread(list(self._configs), sizes or [1] * len(configs), len(self._workers))

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
        from fedgraft.simulations.engines.worker import work

        here, there = self._start.Pipe()
        arguments = (there, str(self._folder.path), f"from{next(self._names)}", torch.get_num_threads())
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


def _spread(nodes: Sequence[int], sizes: Sequence[int], workers: int) -> Mapping[int, int]:
    """The worker of each node: the largest nodes first, each to the worker with the least so far."""
    loads, home = [0] * workers, {}
    for size, node in sorted(zip(sizes, nodes, strict=True), key=lambda pair: (-pair[0], pair[1])):
        worker = loads.index(min(loads))
        loads[worker] += size
        home[node] = worker
    return home
