"""Flower messages as what Ray carries between machines: a few bytes, and one array of bytes for each tensor record.

Ray keeps such an array once on every machine, and whoever reads it there maps it instead of copying it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from numpy.typing import NDArray

from fedgraft.simulations.engines.workers.shared_messages import Entry, record_of

Bytes = NDArray[np.uint8]


def freeze(message: Message, store: Callable[[ArrayRecord], Any]) -> tuple[bytes, list[Any]]:
    """The message without its tensors, and what `store` gave for each of its tensor records, in order."""
    if not message.has_content():
        return _join({}, message), []
    heads: dict[str, list[Entry]] = {}
    stored = []
    for name, record in message.content.array_records.items():
        heads[name] = [(key, a.dtype, list(a.shape), a.stype, len(a.data)) for key, a in record.items()]
        stored.append(store(record))
    words = RecordDict(dict(message.content.config_records))
    bare = Message(content=words, metadata=message.metadata)  # type: ignore[call-overload]
    return _join(heads, bare), stored


def thaw(frame: bytes, arrays: Sequence[Bytes]) -> Message:
    """The message of a frame and its arrays, which its tensors are views of."""
    size = int.from_bytes(frame[:4], "big")
    heads: Mapping[str, list[Entry]] = json.loads(frame[4 : 4 + size])
    message = message_from_proto(ProtoMessage.FromString(frame[4 + size :]))
    for (name, entries), array in zip(heads.items(), arrays, strict=True):
        message.content[name] = record_of(entries, array.data)
    return message


def flat(record: ArrayRecord) -> Bytes:
    """The bytes of all arrays of a record, one after the other: a copy, since the record may be of views."""
    whole = np.empty(sum(len(array.data) for array in record.values()), np.uint8)
    at = 0
    for array in record.values():
        whole[at : at + len(array.data)] = np.frombuffer(array.data, np.uint8)
        at += len(array.data)
    return whole


def _join(heads: object, message: Message) -> bytes:
    words = json.dumps(heads).encode()
    return b"".join([len(words).to_bytes(4, "big"), words, message_to_proto(message).SerializeToString()])
