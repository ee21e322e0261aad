"""A message out of its pieces, which somebody wrote who may be lying.

Flower believes what pieces say: it asks for as many as there are, holds them whatever their size, copies one as often
as another names it, and does not compare one with its name. Here sizes are added up as pieces come, and before anything
is made of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

from flwr.app import Array
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents

from fedgraft.common.messages.frames import MOST_AT_ONCE

MOST_PIECES = 1 << 14
_LARGEST_WORDS = 8 << 20
"""Bytes of all that is no piece of an array."""

_LONGEST_S = 7200.0

Take = Callable[[str, bytes | None], None]
"""Is told of a piece and what it holds, None if that is yet to come; it is not waited for any more then."""

Pull = Callable[[Collection[str], Take], None]
"""Has the pieces of these names, as long as they are among them, and tells of each as soon as it is there."""


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


def gathered(tree: ObjectTree, pull: Pull, largest: int, wait: Callable[[], None]) -> dict[str, bytes]:
    """The pieces by name, as `pull` has them, many at a time. TooLargeMessage if they are more than so many bytes.

    `wait` is called when none of the pieces asked for was there. ObjectPullError if one is given that was not asked
    for, or does not come for hours.
    """
    lacking, contents = dict.fromkeys(names_in(tree)), dict[str, bytes]()
    asked: dict[str, None] = {}
    left, ends = largest, time.monotonic() + _LONGEST_S

    def take(name: str, content: bytes | None) -> None:
        nonlocal left
        if name not in asked:
            raise ObjectPullError(name, "nobody has asked for it")
        del asked[name], lacking[name]
        if content is None:
            lacking[name] = None  # behind those that nobody has asked for yet
            return
        left -= len(content)
        if left < 0:
            raise TooLargeMessage
        contents[name] = content

    while lacking:
        before = len(contents)
        asked.update(dict.fromkeys(islice(lacking, MOST_AT_ONCE)))
        pull(asked.keys(), take)
        asked.clear()
        if len(contents) == before:
            if time.monotonic() > ends:
                raise ObjectPullError(tree.object_id, "it does not come")
            wait()
    return contents


def put_together(name: str, contents: dict[str, bytes], largest: int) -> InflatableObject:
    """What the pieces make, which are used up. TooLargeMessage if it is more than so many bytes.

    Any error if they make nothing.
    """
    arrays = _measured(contents, largest)
    # Flower copies the values of an array three times where once will do; all else is put together as it has it.
    objects: dict[str, InflatableObject] = {
        array: _array(contents[array], [contents[part] for part in parts]) for array, parts in arrays.items()
    }
    for part in {part for parts in arrays.values() for part in parts}:
        del contents[part]
    return inflate_object_from_contents(name, contents, objects=objects)


def _measured(contents: Mapping[str, bytes], largest: int) -> dict[str, list[str]]:
    """By the names of arrays those of the pieces that they are made of, in their order.

    What that will take is added up first: an array may name a piece many times.
    """
    words = size = 0
    arrays: dict[str, list[str]] = {}
    for name, content in contents.items():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "ArrayChunk":
            continue
        words += len(content)
        if words > _LARGEST_WORDS:
            raise TooLargeMessage
        if kind == "Array":
            places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            arrays[name] = [children[place] for place in places]
            if set(arrays[name]) != set(children):
                raise ValueError(f"{name}: an array of other pieces than it names")
            size += sum(len(contents[part]) for part in arrays[name])
            if size > largest:
                raise TooLargeMessage
    return arrays


def _array(content: bytes, parts: Sequence[bytes]) -> Array:
    """An array out of its own piece and those of its values. ValueError if one of them is none of values."""
    said = json.loads(get_object_body(content, Array))
    data = b"".join(map(_values, parts))
    return Array(said["dtype"], tuple(said["shape"]), said["stype"], data)


def _values(content: bytes) -> memoryview:
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind != "ArrayChunk" or children:
        raise ValueError("no values of an array")
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + 1 :]
