"""Many pieces in one request at the gate: what a site may send so, what stays of what it may not, and what it has."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest, PushObjectResponse

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.common.messages.frames import (
    ENVELOPE,
    LARGEST_PIECE,
    MOST_AT_ONCE,
    Condition,
    framed,
    head,
    joined,
    unframed,
)
from fedgraft.server.bodies.bodies import SMALL_BYTES, Bodies, looks_like_reference
from fedgraft.server.bodies.pieces import PULL_PIECES, PUSH_PIECES
from fedgraft.server.bodies.relay import LARGEST_AT_ONCE
from fedgraft.server.operations.request_auth import Bucket, RequestAuth
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.gated import Gated, signed
from helpers.raw_site import piece

LARGE = [piece("ArrayChunk", [], bytes([number]) * (3 * SMALL_BYTES)) for number in range(3)]
SMALL = piece("RecordDict", [], b"words")
ASKED = PushObjectRequest(run_id=1, session_id="s").SerializeToString()


def body(pieces: list[tuple[str, bytes]], asked: bytes = ASKED) -> bytes:
    return framed([(ENVELOPE, asked), *pieces])


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
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "bodies")


@pytest.fixture
def bucket() -> Bucket:
    """A site's share of requests and pieces, which does not grow again."""
    return Bucket(burst=200, per_s=0)


@pytest.fixture
def gated(key: NodeKey, bodies: Bodies, home: ServerHome, bucket: Bucket) -> Iterator[Gated]:
    made = Gated(home, RequestAuth(lambda: {public_pem(key).decode(): "north"}, known=bucket), bodies=bodies)
    made.recorder.answer = PushObjectResponse(stored=True).SerializeToString()
    yield made
    made.close()


def files(bodies: Bodies) -> list[Path]:
    return sorted(bodies._folder.glob("*"))


def sent(gated: Gated, key: NodeKey, content: bytes) -> int:
    return gated.client.post(PUSH_PIECES, content=content, headers=signed(key)).status_code


def test_large_pieces_pass_flower_by_and_it_sees_all_of_them_in_one_request(gated, key, bodies):
    assert sent(gated, key, body([*LARGE, SMALL])) == 200
    ((_, path, _, seen),) = gated.recorder.seen
    request = PushObjectRequest.FromString(seen)
    assert (path, request.run_id, request.session_id) == (PUSH_PIECES, 1, "s")
    found = [(frame.name, content) for frame, content in unframed(request.object_content)]
    assert found[-1] == SMALL
    assert [(name, bodies.content(held)) for name, held in found[:-1]] == LARGE
    assert all(looks_like_reference(held) for _, held in found[:-1])


def test_a_piece_that_is_none_of_its_name_is_left_to_flower_to_refuse(gated, key, bodies):
    lie = (LARGE[0][0], LARGE[1][1])
    assert sent(gated, key, body([lie])) == 200
    ((*_, seen),) = gated.recorder.seen
    assert unframed(PushObjectRequest.FromString(seen).object_content)[0][1] == lie[1]
    assert files(bodies) == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (body([]), 400),
        (framed(LARGE), 400),
        (body(LARGE)[:-1], 400),
        (body(LARGE) + b"x", 400),
        (body(LARGE) + head(SMALL[0], Condition.LATER), 400),
        (body([*LARGE, *[SMALL] * (MOST_AT_ONCE - 2)]), 400),
        (body(LARGE, b"\xff\xff"), 400),
        (body(LARGE, PushObjectRequest(object_id=SMALL[0]).SerializeToString()), 400),
        (body(LARGE, PushObjectRequest(object_content=b"\0body x").SerializeToString()), 400),
        (body(LARGE) + head(SMALL[0], Condition.HERE, LARGEST_PIECE + 1), 400),
        (body([*LARGE, ("0" * 64, bytes(LARGEST_PIECE // 2)), ("1" * 64, bytes(LARGEST_PIECE // 2 + 1))]), 413),
        (body([*LARGE, (SMALL[0], b"\0body nonsense")]), 403),
    ],
)
def test_what_is_no_request_of_pieces_reaches_nobody_and_leaves_nothing(gated, key, bodies, content, status):
    assert sent(gated, key, content) == status
    assert gated.recorder.seen == []
    assert files(bodies) == []


def test_a_site_that_names_a_body_of_another_is_refused(gated, key, bodies):
    theirs = bodies.keep(*LARGE[0])
    assert sent(gated, key, body([LARGE[1], (LARGE[0][0], theirs)])) == 403
    assert (gated.recorder.seen, len(files(bodies))) == ([], 1)


def test_a_request_has_a_size_declared_or_not(gated, key, bodies):
    declared = f"POST {PUSH_PIECES} HTTP/1.1\r\nHost: localhost\r\ncontent-length: {LARGEST_AT_ONCE + 1}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(key).items())
    with socket.create_connection(("localhost", gated.port)) as plain:
        line = gated.trusted.wrap_socket(plain, server_hostname="localhost")
        line.sendall(f"{declared}{lines}\r\n".encode())
        assert line.recv(100).split()[1] == b"413"

    def endless() -> Iterator[bytes]:
        yield framed([(ENVELOPE, ASKED)])
        for number in range(20):
            content = b"ArrayChunk  %d\0" % (5 << 20) + bytes([number]) * (5 << 20)
            yield framed([(hashlib.sha256(content).hexdigest(), content)])

    answer = gated.client.post(PUSH_PIECES, content=endless(), headers=signed(key), timeout=60)
    assert (answer.status_code, gated.recorder.seen, files(bodies)) == (413, [], [])


def test_a_piece_counts_as_much_as_a_request_whether_it_is_sent_or_asked_for(gated, key, bodies, bucket):
    assert sent(gated, key, body([SMALL] * 60)) == 200
    gated.recorder.answer = PullObjectResponse(object_found=True).SerializeToString()
    assert asked(gated, key, [f"{number:064x}" for number in range(MOST_AT_ONCE)])[0] == 200
    gated.recorder.seen.clear()
    assert 200 - 61 - 65 == 74
    assert sent(gated, key, body([*LARGE, *[SMALL] * 61])) == 200
    assert sent(gated, key, body([*LARGE, *[SMALL] * 20])) == 429
    assert len(gated.recorder.seen) == 1
    assert len(files(bodies)) == len(LARGE), "of the request that was refused nothing is left"
    assert not bucket.take("north")


def test_a_site_sends_one_such_request_at_a_time_and_one_that_breaks_off_leaves_nothing(gated, key, bodies):
    """What waits on the disk for Flower's word is then one request's, whatever the site does."""
    whole = body(LARGE)
    lines = "".join(f"{name}: {value}\r\n" for name, value in signed(key).items())
    with socket.create_connection(("localhost", gated.port)) as plain:
        line = gated.trusted.wrap_socket(plain, server_hostname="localhost")
        begin = f"POST {PUSH_PIECES} HTTP/1.1\r\nHost: localhost\r\ncontent-length: {len(whole)}\r\n{lines}\r\n"
        line.sendall(begin.encode() + whole[:-SMALL_BYTES])
        until(lambda: len(files(bodies)) == 2)
        assert sent(gated, key, body([SMALL])) == 429
        line.close()
    until(lambda: files(bodies) == [])
    assert sent(gated, key, body([SMALL])) == 200


@pytest.mark.parametrize(("status", "left"), [(404, 0), (503, 3), (200, 3)])
def test_what_flower_refuses_as_a_whole_leaves_nothing(gated, key, bodies, status, left):
    """Of a 503 nobody knows what became of it; of pieces in a request that it answers Flower's side forgets its own."""
    gated.recorder.status = status
    assert sent(gated, key, body(LARGE)) == status
    assert len(files(bodies)) == left


def test_a_gate_without_room_asks_the_site_to_come_again(gated, key, bodies):
    bodies._folder.write_bytes(b"where the folder should be")
    assert (sent(gated, key, body(LARGE)), gated.recorder.seen) == (503, [])


def asked(gated: Gated, key: NodeKey, names: list[str]) -> tuple[int, bytes]:
    request = PullObjectRequest(run_id=1, object_id=joined(names)).SerializeToString()
    answer = gated.client.post(PULL_PIECES, content=request, headers=signed(key))
    return answer.status_code, answer.content


def test_a_site_has_the_pieces_themselves_and_no_reference(gated, key, bodies):
    held = [(name, bodies.keep(name, content)) for name, content in LARGE]
    later = head("0" * 64, Condition.LATER)
    gated.recorder.answer = PullObjectResponse(object_content=framed([*held, SMALL]) + later).SerializeToString()
    status, found = asked(gated, key, [name for name, _ in [*LARGE, SMALL]])
    assert (status, found) == (200, framed([*LARGE, SMALL]) + later)


def test_a_body_that_is_gone_breaks_the_answer_off(gated, key, bodies):
    held = [(name, bodies.keep(name, content)) for name, content in LARGE]
    bodies.discard(held[1][1])
    gated.recorder.answer = PullObjectResponse(object_content=framed(held)).SerializeToString()
    request = PullObjectRequest(run_id=1, object_id=joined([name for name, _ in LARGE])).SerializeToString()
    came: list[bytes] = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        gated.client.stream("POST", PULL_PIECES, content=request, headers=signed(key)) as answer,
    ):
        came.extend(answer.iter_raw())
    assert b"\0body" not in b"".join(came)


@pytest.mark.parametrize(
    "names", [[], ["ab"], [f"{number:064x}" for number in range(MOST_AT_ONCE + 1)], ["0" * 63 + "\n"]]
)
def test_a_site_cannot_ask_for_what_is_no_piece_or_for_too_many(gated, key, names):
    assert asked(gated, key, names) == (400, b"")
    assert gated.recorder.seen == []


def until(holds: object) -> None:
    ends = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < ends, "waited in vain"
        threading.Event().wait(0.02)
