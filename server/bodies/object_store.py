"""Flower's own store of pieces, which takes references to bodies for what they stand for, and forgets both together."""

from __future__ import annotations

import time
from functools import partial

from flwr.supercore.object_store.object_store import NoObjectInStoreError
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import event

from fedgraft.server.bodies.bodies import FORGOTTEN_S, Bodies, looks_like_reference

_TAKE = """UPDATE objects SET content = :reference, is_available = 1
WHERE object_id = :name AND is_available = 0 RETURNING object_id"""

_REFERENCE = "SELECT content FROM objects WHERE object_id = :name AND ref_count = 0 AND length(content) < 256"
_REFERENCES = "SELECT content FROM objects WHERE length(content) BETWEEN 1 AND 255"

_OWN = """WITH RECURSIVE above(name) AS (
    SELECT :name UNION SELECT parent_id FROM object_children JOIN above ON child_id = name
) SELECT 1 FROM message_ins JOIN above ON message_id = name WHERE dst_node_id = :node LIMIT 1"""


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

    def delete(self, object_id: str) -> None:
        """As Flower's; the body goes when that is certain, so that no row is left without it."""
        with self.session() as session:
            held = self.query(_REFERENCE, {"name": object_id})
            super().delete(object_id)
            if held and looks_like_reference(held[0]["content"]) and object_id not in self:
                gone = partial(self._bodies.discard, held[0]["content"])
                event.listen(session, "after_commit", lambda _: gone(), once=True)

    def is_for(self, object_id: str, node_id: int) -> bool:
        """Whether a piece belongs to a message that was sent to this node."""
        return bool(self.query(_OWN, {"name": object_id, "node": uint64_to_int64(node_id)}))

    def _sweep(self) -> None:
        """Remove now and then what killed processes have left."""
        now = time.monotonic()
        if not self._swept or now - self._swept > FORGOTTEN_S:
            self._swept = now
            self._bodies.sweep(lambda: [row["content"] for row in self.query(_REFERENCES)])
