"""Unreliable hospitals on purpose: sites that stay silent, crash, or send NaN or misshapen updates in given rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from pydantic import Field

from fedgraft.common.base.value import Value
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import MaskedUpdate, Update
from fedgraft.server.fleet.fleet import NODE_EXPIRED

_RAISED = 2


class Fault(Value):
    """What goes wrong at a site in the exchanges `rounds`, counted from 1 over the whole plan."""

    kind: Literal["silent", "crash", "nan", "misshapen"]
    """What the site does: it does not answer, ends, or sends an update that is no number or has another shape."""
    rounds: tuple[Annotated[int, Field(ge=1)], ...]


class FaultyGrid(Grid):
    """A grid in front of another that plays the faults of some nodes; all else passes through."""

    def __init__(self, inner: Grid, faults: Mapping[int, Fault]) -> None:
        self._inner = inner
        self._faults = faults
        self._dead: list[Message] = []
        self._spoilt: dict[str, str] = {}

    def set_run(self, run: Run) -> None:
        """Passed on to the inner grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """The inner grid's description of the run."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Passed on to the inner grid."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of all nodes, those that fail as well."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on what reaches its node, and remember what will not come back, or not as it was sent."""
        ids: list[str] = []
        for number, message in enumerate(messages):
            kind = self._kind(message)
            if kind in ("silent", "crash"):
                message.metadata.__dict__["_message_id"] = f"lost-{message.metadata.group_id}-{number}"
                error = Error(NODE_EXPIRED if kind == "silent" else _RAISED)
                self._dead.append(Message(error, reply_to=message))
                ids.append(message.metadata.message_id)
                continue
            ids += self._inner.push_messages([message])
            if kind is not None:
                self._spoilt[ids[-1]] = kind
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The inner grid's replies, spoilt where a fault says so."""
        dead, self._dead = self._dead, []
        replies = list(self._inner.pull_messages(message_ids))
        for reply in replies:
            kind = self._spoilt.pop(reply.metadata.reply_to_message_id, None)
            if kind is not None and reply.has_content():
                _spoil(reply, kind)
        return dead + replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for all replies."""
        del timeout  # the inner grids answer for late nodes themselves
        waiting, replies = set(self.push_messages(messages)), []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _kind(self, message: Message) -> str | None:
        fault = self._faults.get(message.metadata.dst_node_id)
        exchange = message.metadata.group_id
        return fault.kind if fault and exchange and int(exchange) in fault.rounds else None


def _spoil(reply: Message, kind: str) -> None:
    answer = wire.unpack_reply(reply.content)
    if isinstance(answer, MaskedUpdate):
        parts = {part: _bad(words, kind) for part, words in answer.parts.items()}
        reply.content = wire.pack_reply(replace(answer, parts=parts))
    elif isinstance(answer, Update) and answer.tensors:
        key = next(iter(answer.tensors))
        tensors = {**answer.tensors, key: _bad(answer.tensors[key], kind)}
        reply.content = wire.pack_reply(replace(answer, tensors=tensors))


def _bad(array: np.ndarray, kind: str) -> np.ndarray:
    """Values that are no numbers, or, where there are only whole ones, others; or another shape."""
    if kind != "nan":
        return np.zeros((*array.shape, 2), dtype=array.dtype)
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array + array.dtype.type(1)
