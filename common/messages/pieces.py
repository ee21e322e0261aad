"""A message out of its pieces, which somebody wrote who may be lying.

Flower believes what pieces say: it asks for as many as there are, holds them whatever their size, copies one as often
as another names it, and does not compare one with its name. Here sizes are added up as pieces come, and before anything
is made of them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping

from flwr.app import Array
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects

MOST_PIECES = 1 << 14
_LARGEST_WORDS = 8 << 20
"""Bytes of all that is no piece of an array."""


class TooLargeMessage(Exception):
    """A message of more pieces, or of larger ones, than there is room for."""


def names_in(tree: ObjectTree) -> list[str]:
    """The names of all pieces, each once. TooLargeMessage if there are too many."""
    names, waiting, count = dict.fromkeys([tree.object_id]), [tree], 1
    while waiting:
        count += len(children := waiting.pop().children)
        if count > MOST_PIECES:  # before anything is made of them
            raise TooLargeMessage
        names |= dict.fromkeys(child.object_id for child in children)
        waiting.extend(children)
    return list(names)


def is_of(name: str, content: bytes) -> bool:
    """Whether this is the content of the piece of this name, which is its digest."""
    return hashlib.sha256(content).hexdigest() == name


def gathered(tree: ObjectTree, pull: Callable[[str], bytes], largest: int) -> dict[str, bytes]:
    """The pieces by name, as `pull` gives them one by one. TooLargeMessage if they are more than so many bytes."""
    lock, left = threading.Lock(), largest

    def counting(name: str) -> bytes:
        nonlocal left
        content = pull(name)
        with lock:
            left -= len(content)
            if left < 0:
                raise TooLargeMessage
        return content

    return pull_objects(names_in(tree), counting)


def put_together(name: str, contents: dict[str, bytes], largest: int) -> InflatableObject:
    """What the pieces make, which are used up. TooLargeMessage if it is more than so many bytes.

    Any error if they make nothing.
    """
    _measure(contents, largest)
    return inflate_object_from_contents(name, contents)


def _measure(contents: Mapping[str, bytes], largest: int) -> None:
    """Add up what putting the pieces together will take; an array may name a piece many times."""
    words = arrays = 0
    for content in contents.values():
        kind, parts, _ = get_object_head_values_from_object_content(content)
        if kind == "ArrayChunk":
            continue
        words += len(content)
        if words > _LARGEST_WORDS:
            raise TooLargeMessage
        if kind == "Array":
            places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            arrays += sum(len(contents[parts[place]]) for place in places)
            if arrays > largest:
                raise TooLargeMessage
