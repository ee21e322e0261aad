"""Flower Grids on one machine, without Flower's processes: what they share, and all sites in this process."""

from __future__ import annotations

import queue
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.runtime.app import forget
from fedgraft.common.base.environment import give_back
from fedgraft.server.fleet.fleet import NODE_EXPIRED
from fedgraft.simulations.engines.node import answer, context_for, deadline_of

_COORDINATOR = 1
"""Flower's node id for a ServerApp."""


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
        give_back()
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
