"""A message out of its pieces, which somebody wrote who may be lying.

Flower believes what pieces say: it asks for as many as there are, holds them whatever their size, copies one as often
as another names it, and does not compare one with its name. Here sizes are added up as pieces come, and before anything
is made of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from itertools import islice

from flwr.app import Array
from flwr.proto.message_pb2 import ObjectTree
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
