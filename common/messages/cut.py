"""A message cut into its pieces as Flower cuts it: same pieces, same names, but large ones are not copied on the way.

Flower copies the values of each piece twice to name it, and twice more to send it. Here a piece of an array is its head
and a view of the values, and its name is worked out once, however many messages it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message
from flwr.app.message import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as PIECE_BYTES
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

Parts = tuple[bytes | memoryview, ...]
"""What a piece holds, one part behind the other."""


class _Values(ArrayChunk):
    """Some values of an array, which nobody writes to any more."""

    name: str = ""

    @property
    def object_id(self) -> str:
        """Its digest, which was worked out when it was made."""
        return self.name

    def parts(self) -> Parts:
        """What Flower would make of it with `deflate`."""
        return b"ArrayChunk  %d\0" % len(self.data), self.data

    def deflate(self) -> bytes:
        """All of it as one."""
        return b"".join(self.parts())


@dataclass(frozen=True)
class Cut:
    """Messages in pieces: by message its tree, and by name what each piece holds, those that others name first."""

    trees: list[ObjectTree]
    objects: dict[str, InflatableObject]

    def parts(self, name: str) -> Parts:
        """What the piece of this name holds. KeyError if there is none."""
        one = self.objects[name]
        return one.parts() if isinstance(one, _Values) else (one.deflate(),)


def cut(messages: Iterable[Message]) -> Cut:
    """Messages in pieces. Each is told its name, which is that of its tree; nobody may change what they hold since."""
    trees, objects = list[ObjectTree](), dict[str, InflatableObject]()
    with no_object_id_recompute():
        for message in messages:
            for array in _arrays(message):
                _slice(array)
            tree = get_object_tree(message)
            # A message does not travel with its own number.
            message.metadata.__dict__["_message_id"] = tree.object_id
            objects |= get_all_nested_objects(message)
            trees.append(tree)
    return Cut(trees, objects)


def size_of_parts(parts: Parts) -> int:
    """Bytes of a piece."""
    return sum(map(len, parts))


def _arrays(message: Message) -> Iterator[Array]:
    for record in message.content.values() if message.has_content() else ():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def _slice(array: Array) -> None:
    """Have an array come in pieces of this module, by which Flower would have its own."""
    if "_chunks" in array.__dict__:
        return
    values, pieces = memoryview(array.data), list[tuple[str, InflatableObject]]()
    for start in range(0, len(values), PIECE_BYTES):
        piece = _Values(values[start : start + PIECE_BYTES])
        digest = hashlib.sha256()
        for part in piece.parts():
            digest.update(part)
        piece.name = digest.hexdigest()
        pieces.append((piece.name, piece))
    array.__dict__["_chunks"] = pieces
