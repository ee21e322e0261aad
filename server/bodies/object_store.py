"""Flower's own store of pieces, which takes references to bodies for what they stand for, and forgets both together."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from functools import partial

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store.object_store import NoObjectInStoreError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import event

from fedgraft.server.bodies.bodies import FORGOTTEN_S, Bodies, looks_like_reference

_TAKE = """UPDATE objects SET content = :reference, is_available = 1
WHERE object_id = :name AND is_available = 0 RETURNING object_id"""

_LOST = "UPDATE objects SET content = x'', is_available = 0 WHERE object_id = :name AND content = :reference"

_REFERENCE = "SELECT content FROM objects WHERE object_id = :name AND ref_count = 0 AND length(content) < 256"
_REFERENCES = "SELECT content FROM objects WHERE length(content) BETWEEN 1 AND 255"

_TAKEN = """SELECT 1 FROM message_ins WHERE message_id IN (SELECT value FROM json_each(:names))
UNION SELECT 1 FROM objects WHERE object_id = :root AND NOT EXISTS (
    SELECT 1 FROM message_res WHERE message_id = :root AND reply_to_message_id = :answered
)"""
_MESSAGE = "SELECT 1 FROM message_ins WHERE message_id = :name"
_REPLIES = "SELECT message_id FROM message_res WHERE reply_to_message_id = :name"

_OWN = """WITH RECURSIVE above(piece, name) AS (
    SELECT value, value FROM json_each(:names)
    UNION SELECT piece, parent_id FROM object_children JOIN above ON child_id = name
) SELECT DISTINCT piece FROM message_ins JOIN above ON message_id = name WHERE dst_node_id = :node"""

_CONTENTS = "SELECT object_id, content FROM objects WHERE object_id IN (SELECT value FROM json_each(:names))"
_INCOMPLETE = "SELECT 1 FROM object_push_sessions WHERE session_id = :session"


class BodiesObjectStore(SqlObjectStore):
    """Large pieces in the files of `bodies`, everything else in Flower's database."""

    def __init__(self, bodies: Bodies, database_path: str) -> None:
        super().__init__(database_path)
        self._bodies = bodies
        self._swept = 0.0

    def put(self, object_id: str, object_content: bytes) -> None:
        """As Flower's; a reference is held against the name, and its file must be there: who wrote it has read it."""
        self._sweep()
        if not looks_like_reference(object_content):
            super().put(object_id, object_content)
            return
        if not self._bodies.holds(object_id, object_content):
            raise ValueError(f"{object_id}: no such body")
        if self.query(_TAKE, {"name": object_id, "reference": object_content}):
            return
        if object_id not in self:
            raise NoObjectInStoreError(f"{object_id}: was not announced")
        self._bodies.discard(object_content)  # somebody else has sent the same piece

    def get(self, object_id: str) -> bytes | None:
        """As Flower's; a piece whose body is gone is not there, and wanted again of whoever sends it next."""
        held = super().get(object_id)
        if not held or self._is_whole(object_id, held):
            return held
        self.query(_LOST, {"name": object_id, "reference": held})
        return None

    def delete(self, object_id: str) -> None:
        """As Flower's; the body goes when that is certain, so that no row is left without it."""
        with self.session() as session:
            held = self.query(_REFERENCE, {"name": object_id})
            super().delete(object_id)
            if held and looks_like_reference(held[0]["content"]) and object_id not in self:
                gone = partial(self._bodies.discard, held[0]["content"])
                event.listen(session, "after_commit", lambda _: gone(), once=True)

    def those_for(self, node_id: int, names: Sequence[str]) -> set[str]:
        """Those of these pieces that belong to a message that was sent to this node."""
        rows = self.query(_OWN, {"names": json.dumps(names), "node": uint64_to_int64(node_id)})
        return {row["piece"] for row in rows}

    def held(self, names: Collection[str]) -> dict[str, bytes]:
        """What those of these pieces hold that were announced; nothing for one that is yet to come, or was lost."""
        rows = self.query(_CONTENTS, {"names": json.dumps(list(names))})
        found = {row["object_id"]: bytes(row["content"]) for row in rows}
        return {name: held if self._is_whole(name, held) else b"" for name, held in found.items()}

    def _is_whole(self, name: str, held: bytes) -> bool:
        return not looks_like_reference(held) or self._bodies.holds(name, held)

    def is_complete(self, session_id: str) -> bool:
        """Whether all that was announced under this number of a session is there."""
        return not self.query(_INCOMPLETE, {"session": session_id})

    def discard(self, content: bytes) -> None:
        """Forget the body that this refers to, if it refers to one."""
        self._bodies.discard(content)

    def has_same(self, name: str, content: bytes) -> bool:
        """Whether this content is there under its name already; a second body of it is then forgotten."""
        held = self.get(name)
        if not held or content == held:
            return bool(held)
        if not looks_like_reference(content) or not self._bodies.holds(name, content):
            return False
        self._bodies.discard(content)
        return True

    def is_taken(self, tree: ObjectTree, answered: str) -> bool:
        """Whether a name in this reply is that of a message that was sent, or its own that of anything else."""
        names = json.dumps([piece.object_id for piece in iterate_object_tree(tree)])
        return bool(self.query(_TAKEN, {"names": names, "root": tree.object_id, "answered": answered}))

    def is_message(self, name: str) -> bool:
        """Whether this is a message that was sent, and no run has a reply to it."""
        return bool(self.query(_MESSAGE, {"name": name}))

    def replies(self, name: str) -> list[str]:
        """The replies to a message that no run has taken yet."""
        return [row["message_id"] for row in self.query(_REPLIES, {"name": name})]

    def _sweep(self) -> None:
        """Remove now and then what killed processes have left."""
        now = time.monotonic()
        if not self._swept or now - self._swept > FORGOTTEN_S:
            self._swept = now
            self._bodies.sweep(lambda: [row["content"] for row in self.query(_REFERENCES)])
