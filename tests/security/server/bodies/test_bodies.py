"""Large pieces in files: nothing half-written, nothing left behind, and nobody outside the server names one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.supercore.object_store.object_store import NoObjectInStoreError

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.bodies.bodies import FORGOTTEN_S, SMALL_BYTES, Bodies
from fedgraft.server.bodies.object_store import BodiesObjectStore
from fedgraft.server.bodies.pieces import PULL_PIECE, PUSH_PIECE
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.gated import Gated, signed
from helpers.raw_site import piece

NAME, CONTENT = piece("ArrayChunk", [], bytes(SMALL_BYTES))
OTHER, OTHER_CONTENT = piece("ArrayChunk", [], b"1" * SMALL_BYTES)
OTHER_MESSAGE, _ = piece("Message", [NAME], b"other words")
MESSAGE, MESSAGE_CONTENT = piece("Message", [NAME], b"words")


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "bodies")


def files(bodies: Bodies) -> list[Path]:
    return sorted(bodies._folder.glob("*"))


@pytest.fixture
def store(bodies: Bodies) -> BodiesObjectStore:
    made = BodiesObjectStore(bodies, ":memory:")
    made.initialize()
    made.preregister(1, ObjectTree(object_id=MESSAGE, children=[ObjectTree(object_id=NAME)]))
    return made


def test_a_body_is_what_was_kept_for_its_owner_s_eyes_and_gone_when_it_is_discarded(bodies):
    reference = bodies.keep(NAME, CONTENT)
    assert (bodies.content(reference), bodies.content(CONTENT)) == (CONTENT, CONTENT)
    assert [path.stat().st_mode & 0o777 for path in (bodies._folder, *files(bodies))] == [0o700, 0o600]
    bodies.discard(reference)
    assert (files(bodies), bodies.content(reference), bodies.holds(NAME, reference)) == ([], None, False)


def test_a_body_that_lost_its_end_with_the_power_is_none(bodies):
    reference = bodies.keep(NAME, CONTENT)
    files(bodies)[0].write_bytes(CONTENT[:-1])
    assert (bodies.content(reference), bodies.holds(NAME, reference)) == (None, False)


def test_a_disk_without_room_keeps_no_half_of_a_body(bodies, monkeypatch):
    class Full:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, content: bytes) -> None:
            self.path.write_bytes(content[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedgraft.server.bodies.bodies.open_private", lambda path, _: Full(path))
    with pytest.raises(OSError, match="No space"):
        bodies.keep(NAME, CONTENT)
    assert files(bodies) == []


@pytest.mark.parametrize("where", ["../secret.bin", "/etc/passwd", f"{NAME}.0.1", f"{NAME}.{'0' * 32}.1/../../x"])
def test_a_reference_names_a_body_and_no_other_file(bodies, where):
    (bodies._folder.parent / "secret.bin").write_bytes(b"secret")
    reference = b"\0body " + where.encode()
    assert not bodies.holds(NAME, reference)
    assert bodies.content(reference) == reference, "it stands for itself"
    bodies.discard(reference)
    assert (bodies._folder.parent / "secret.bin").exists()


def test_the_store_gives_a_reference_back_and_forgets_the_body_with_its_message(store, bodies):
    reference = bodies.keep(NAME, CONTENT)
    store.put(NAME, reference)
    store.put(MESSAGE, MESSAGE_CONTENT)
    assert store.get(NAME) == reference
    store.delete(NAME)
    assert len(files(bodies)) == 1, "a message hangs on it"
    store.delete(MESSAGE)
    assert (files(bodies), store.get(NAME)) == ([], None)


def test_the_end_of_a_run_leaves_no_body(store, bodies):
    store.put(NAME, bodies.keep(NAME, CONTENT))
    store.delete_objects_in_run(1)
    assert (files(bodies), len(store)) == ([], 0)


def test_a_body_stays_when_forgetting_it_came_to_nothing(store, bodies):
    store.put(NAME, bodies.keep(NAME, CONTENT))
    with store.session() as session:
        store.delete(MESSAGE)
        session.rollback()
    assert bodies.content(store.get(NAME)) == CONTENT


def test_the_same_piece_twice_is_one_body(store, bodies):
    first, second = bodies.keep(NAME, CONTENT), bodies.keep(NAME, CONTENT)
    store.put(NAME, first)
    store.put(NAME, second)
    assert bodies.content(store.get(NAME)) == CONTENT
    assert len(files(bodies)) == 1


def test_the_store_takes_no_reference_to_what_is_not_there_or_is_another_piece(store, bodies):
    other, gone = bodies.keep(OTHER, OTHER_CONTENT), bodies.keep(NAME, CONTENT)
    bodies.discard(gone)
    for reference in (other, gone, b"\0body nonsense"):
        with pytest.raises(ValueError, match="no such body"):
            store.put(NAME, reference)
    with pytest.raises(NoObjectInStoreError):
        store.put(OTHER, other)
    assert store.get(NAME) == b""


def test_what_a_killed_process_left_is_swept_and_nothing_that_is_new_or_needed(store, bodies):
    needed, left, new = bodies.keep(NAME, CONTENT), bodies.keep(OTHER, OTHER_CONTENT), bodies.keep(NAME, CONTENT)
    store.put(NAME, needed)
    for path in files(bodies):
        if path.name not in new.decode():
            os.utime(path, (0, path.stat().st_mtime - FORGOTTEN_S - 60))
    store._swept -= 2 * FORGOTTEN_S
    store.put(MESSAGE, MESSAGE_CONTENT)
    assert [bodies.content(one) is not None for one in (needed, left, new)] == [True, False, True]


def test_what_is_not_of_the_server_s_own_making_is_left_alone_and_stops_no_piece(store, bodies):
    """A folder on a disk of its own has a `lost+found`; one that leads elsewhere may hold anything."""
    store.put(NAME, bodies.keep(NAME, CONTENT))
    (bodies._folder / "lost+found").mkdir()
    for name in ("notes.v1.txt", f"{NAME}.{'0' * 32}.x"):
        (bodies._folder / name).write_bytes(b"somebody's")
    for path in files(bodies):
        os.utime(path, (0, path.stat().st_mtime - FORGOTTEN_S - 60))
    store._swept -= 2 * FORGOTTEN_S
    store.put(MESSAGE, MESSAGE_CONTENT)
    assert len(files(bodies)) == 4


def test_a_body_that_is_gone_is_wanted_again_with_the_next_message_that_has_it(store, bodies):
    """What the power took with it must not be missing in every later round."""
    store.put(NAME, bodies.keep(NAME, CONTENT))
    files(bodies)[0].write_bytes(CONTENT[:-1])
    assert store.get(NAME) is None
    other = ObjectTree(object_id=OTHER_MESSAGE, children=[ObjectTree(object_id=NAME)])
    assert NAME in store.preregister(1, other)
    store.put(NAME, bodies.keep(NAME, CONTENT))
    assert bodies.content(store.get(NAME)) == CONTENT


@pytest.fixture(scope="module")
def key() -> NodeKey:
    return new_node_key()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    authority = Authority(tmp_path_factory.mktemp("kits") / "kits")
    authority.provision(Consortium.model_validate(content))
    return authority.home


@pytest.fixture
def gated(key: NodeKey, bodies: Bodies, home: ServerHome) -> Iterator[Gated]:
    made = Gated(home, RequestAuth(lambda: {public_pem(key).decode(): "north"}), bodies=bodies)
    yield made
    made.close()


def sent(
    gated: Gated, key: NodeKey, content: bytes, *, taken: bool = True, name: str = NAME
) -> tuple[int, list[bytes]]:
    """The gate's answer to a piece that a site sends, and what Flower saw as its contents."""
    gated.recorder.answer = PushObjectResponse(stored=taken).SerializeToString()
    request = PushObjectRequest(object_id=name, object_content=content, run_id=1, session_id="s")
    answer = gated.client.post(PUSH_PIECE, content=request.SerializeToString(), headers=signed(key))
    return answer.status_code, [PushObjectRequest.FromString(seen[3]).object_content for seen in gated.recorder.seen]


def test_at_the_gate_large_pieces_pass_flower_by_and_come_back_whole(gated, key, bodies):
    status, (seen,) = sent(gated, key, CONTENT)
    assert (status, len(seen) < 200, bodies.content(seen)) == (200, True, CONTENT)
    gated.recorder.answer = PullObjectResponse(
        object_found=True, object_available=True, object_content=seen
    ).SerializeToString()
    answer = gated.client.post(PULL_PIECE, content=b"", headers=signed(key))
    assert PullObjectResponse.FromString(answer.content).object_content == CONTENT
    bodies.discard(seen)
    answer = gated.client.post(PULL_PIECE, content=b"", headers=signed(key))
    assert answer.content == b"", "there is none any more, and no reference leaves the server"


def test_a_piece_that_flower_does_not_take_leaves_nothing(gated, key, bodies):
    status, seen = sent(gated, key, CONTENT, taken=False)
    assert (status, len(seen), files(bodies)) == (200, 1, [])


def test_a_site_that_names_a_body_of_another_is_refused_at_the_gate(gated, key, bodies):
    for forged in (bodies.keep(OTHER, OTHER_CONTENT), b"\0body nonsense"):
        assert sent(gated, key, forged, name=OTHER) == (403, [])


@pytest.mark.parametrize("content", [OTHER_CONTENT, b"Array" + CONTENT, CONTENT[: -SMALL_BYTES // 2]])
def test_what_is_no_large_piece_of_its_name_is_left_to_flower_to_refuse(gated, key, bodies, content):
    assert sent(gated, key, content) == (200, [content])
    assert files(bodies) == []


def test_a_gate_without_room_asks_the_site_to_come_again(gated, key, bodies):
    bodies._folder.write_bytes(b"where the folder should be")
    assert sent(gated, key, CONTENT) == (503, [])
