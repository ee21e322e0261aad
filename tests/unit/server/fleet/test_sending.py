"""What a run sends: large pieces are put down once, under their own names, and go as references, many at a time."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.messages.cut import cut
from fedgraft.common.messages.frames import MOST_AT_ONCE
from fedgraft.common.messages.pieces import is_of
from fedgraft.server.bodies.bodies import Bodies, looks_like_reference
from fedgraft.server.fleet.intake import _batches, put_down

MB = 1 << 20


def test_large_pieces_are_files_of_their_names_and_all_others_go_as_they_are(tmp_path: Path) -> None:
    bodies, size = Bodies(tmp_path / "bodies"), 6 * MB
    model = ArrayRecord(
        {"w": Array("uint8", (size,), "raw", os.urandom(size)), "b": Array("uint8", (2,), "raw", b"ab")}
    )
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 3, 1, 1
    pieces = cut([Message(RecordDict({"m": model, "c": ConfigRecord({"a": 1})}), dst_node_id=1, message_type="train")])
    sent = dict(put_down(bodies, name, pieces.parts(name)) for name in pieces.objects)
    references = {name: held for name, held in sent.items() if looks_like_reference(held)}
    assert len(references) == len(list((tmp_path / "bodies").iterdir())) == 2
    for name, held in sent.items():
        content = bodies.content(held)
        assert content == b"".join(pieces.parts(name))
        assert is_of(name, content or b"")
    assert all(bodies.holds(name, held) for name, held in references.items())


def test_no_request_holds_too_many_pieces_or_much_beyond_what_goes_at_once() -> None:
    small = [(f"{number:064x}", b"x") for number in range(2 * MOST_AT_ONCE + 1)]
    assert [len(batch) for batch in _batches(iter(small))] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    large = [(f"{number:064x}", bytes(3 * MB)) for number in range(5)]
    assert [len(batch) for batch in _batches(iter(large))] == [2, 2, 1]
    assert list(_batches([])) == []
