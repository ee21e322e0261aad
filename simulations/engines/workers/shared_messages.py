"""Flower messages between processes of one machine: small things inline, large tensors through shared files.

A tensor record that many messages share is written once; readers map the file instead of copying it. Nothing is
pickled. The files lie in memory where the system has a memory file system.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TypedDict

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedgraft.common.base.locking import lock, try_lock

_INLINE_BYTES = 1 << 16
_ROOM_BYTES = 2 << 30
_MEMORY = Path("/dev/shm")
_PREFIX, _LOCK = "fedgraft-exchange-", "lock"

Entry = tuple[str, str, list[int], str, int]
"""Key, type, shape, kind and bytes of an array."""


class Head(TypedDict):
    """Where the arrays of a record are: in a file, or inline from `at` on."""

    file: str | None
    at: int
    arrays: list[Entry]


class ExchangeFolder:
    """A private folder for tensors on their way: in memory if there is room, else among the temporary files.

    Folders that killed runs have left there are removed: nobody holds the lock in them any more.
    """

    def __init__(self) -> None:
        in_memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
        base = _MEMORY if in_memory else Path(tempfile.gettempdir())
        for left in base.glob(f"{_PREFIX}*"):
            _remove_abandoned(left)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._lock = (self.path / _LOCK).open("wb")
            lock(self._lock)
            if (self.path / _LOCK).exists():
                return
            self._lock.close()  # whoever looked before it was locked took it for abandoned

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_abandoned(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("rb") as file:
            if try_lock(file):  # else somebody works in it
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # it is somebody else's, or it is being made


class SharedMessages:
    """Turns messages into frames of bytes and back, for one side of a connection."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._numbers = count()
        self._written: dict[int, tuple[ArrayRecord, str]] = {}
        self._read: dict[str, ArrayRecord] = {}

    def freeze(self, message: Message) -> bytes:
        """The message as one frame; its large records go to files, each record object once."""
        if not message.has_content():
            return _join({}, b"", message_to_proto(message).SerializeToString())
        heads: dict[str, Head] = {}
        inline = bytearray()
        for name, record in message.content.array_records.items():
            total = sum(len(array.data) for array in record.values())
            heads[name] = {
                "file": self._write(record) if total > _INLINE_BYTES else None,
                "at": len(inline),
                "arrays": [(key, a.dtype, list(a.shape), a.stype, len(a.data)) for key, a in record.items()],
            }
            if heads[name]["file"] is None:
                for array in record.values():
                    inline += array.data
        words = RecordDict(dict(message.content.config_records))
        bare = Message(content=words, metadata=message.metadata)  # type: ignore[call-overload]
        return _join(heads, bytes(inline), message_to_proto(bare).SerializeToString())

    def thaw(self, frame: bytes, *, once: bool) -> Message:
        """The message in a frame. `once`: no other frame names its files, so they go as soon as they are mapped."""
        heads, inline, proto = _split(frame)
        message = message_from_proto(ProtoMessage.FromString(proto))
        for name, head in heads.items():
            if head["file"] is None:
                message.content[name] = record_of(head["arrays"], memoryview(inline)[head["at"] :])
            else:
                message.content[name] = self._map(head, once)
        return message

    def clear(self) -> None:
        """Remove the files written so far; whoever has mapped them keeps them."""
        for _, file in self._written.values():
            (self._folder / file).unlink(missing_ok=True)
        self._written.clear()

    def _write(self, record: ArrayRecord) -> str:
        if id(record) not in self._written:
            file = f"{self._name}-{next(self._numbers)}"
            with (self._folder / file).open("xb", buffering=0) as stream:
                for array in record.values():
                    view = memoryview(array.data)
                    while view:
                        view = view[stream.write(view) :]
            self._written[id(record)] = (record, file)
        return self._written[id(record)][1]

    def _map(self, head: Head, once: bool) -> ArrayRecord:
        file = head["file"]
        assert file is not None
        if file in self._read:
            return self._read[file]
        path = self._folder / file
        with path.open("rb") as stream:
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            view = memoryview(mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
        record = record_of(head["arrays"], view)
        if once:
            path.unlink()
        else:
            # One exchange names one or two files; older ones must not be kept from going.
            self._read = dict([*self._read.items(), (file, record)][-2:])
        return record

    def forget_written(self) -> None:
        """Do not remember what was written: the reader removes it."""
        self._written.clear()


def record_of(arrays: list[Entry], view: memoryview) -> ArrayRecord:
    """A tensor record whose arrays are views of bytes, where they lie one after the other."""
    record, at = ArrayRecord(), 0
    for key, dtype, shape, stype, size in arrays:
        array = Array(dtype, tuple(shape), stype, b"")
        array.data = view[at : at + size]  # type: ignore[assignment] # a view, as in fedgraft.common.protocol.wire
        record[key] = array
        at += size
    return record


def _join(heads: object, inline: bytes, proto: bytes) -> bytes:
    words = json.dumps(heads).encode()
    return b"".join([len(words).to_bytes(4, "big"), len(inline).to_bytes(4, "big"), words, inline, proto])


def _split(frame: bytes) -> tuple[dict[str, Head], bytes, bytes]:
    words, inline = int.from_bytes(frame[:4], "big"), int.from_bytes(frame[4:8], "big")
    return (
        json.loads(frame[8 : 8 + words]),
        frame[8 + words : 8 + words + inline],
        frame[8 + words + inline :],
    )
