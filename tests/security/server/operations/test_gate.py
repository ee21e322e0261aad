"""The gate line by line: what reaches the server behind it, for which a recorder stands, and what never does."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.proto.node_pb2 import Node

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.fleet.bell import Bells
from fedgraft.server.operations.gate import (
    FLEET,
    LARGEST_BYTES,
    Gate,
    gate_server,
)
from fedgraft.server.operations.request_auth import Bucket, RequestAuth
from fedgraft.server.operations.senders import MOST_PIECES, PUSH, speaks_for_itself
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.gated import Gated, signed

PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def key() -> NodeKey:
    return new_node_key()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    kits = tmp_path_factory.mktemp("kits") / "kits"
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    return Authority(kits).provision(Consortium.model_validate(content)) and Authority(kits).home


@pytest.fixture
def admitted(key: NodeKey) -> dict[str, str]:
    return {public_pem(key).decode(): "north"}


@pytest.fixture
def gated(home: ServerHome, admitted: dict[str, str]) -> Iterator[Gated]:
    guard = RequestAuth(lambda: admitted, strangers=Bucket(burst=200, per_s=100))
    made = Gated(home, guard)
    yield made
    made.close()


def test_a_signed_call_of_the_fleet_api_passes_with_what_flower_needs_and_nothing_else(gated, key):
    more = {"authorization": "secret", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "flwr-version": "1"}
    answer = gated.client.post(PULL, content=b"body", headers=signed(key) | more)
    assert (answer.status_code, answer.content) == (200, b"answered")
    ((method, path, headers, body),) = gated.recorder.seen
    assert (method, path, body) == ("POST", PULL, b"body")
    assert headers["flwr-version"] == "1"
    assert not {"authorization", "cookie", "x-forwarded-for"} & headers.keys()
    assert answer.headers["flwr-it"] == "yes"
    assert not {"set-cookie", "server"} & answer.headers.keys()


def test_all_that_sites_need_is_open_and_who_takes_part_is_not_decided_there(gated, key):
    for path in sorted(FLEET):
        assert gated.client.post(path, headers=signed(key)).status_code == 200, path
    assert not any("register" in path for path in FLEET)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/%70ull-messages",
        "/V1/fleet/pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/docs",
        "/",
    ],
)
def test_everything_else_does_not_exist_even_for_a_site(gated, key, path):
    assert raw(gated, f"POST {path} HTTP/1.1", signed(key)) == 404
    assert gated.recorder.seen == []


def raw(gated: Gated, line: str, headers: dict[str, str], body: bytes = b"") -> int:
    """A request byte by byte, as no library would write it; the status of the answer, 0 for none."""
    head = {"Host": "localhost", "Content-Length": str(len(body))} | headers
    text = line + "\r\n" + "".join(f"{key}: {value}\r\n" for key, value in head.items()) + "\r\n"
    with (
        socket.create_connection(("localhost", gated.port), timeout=120) as plain,
        gated.trusted.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        try:
            connection.sendall(text.encode() + body)
            answer = connection.recv(4096)
        except OSError:  # the gate hung up
            return 0
        return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(gated, key, method):
    assert raw(gated, f"{method} {PULL} HTTP/1.1", signed(key)) == 400
    assert gated.recorder.seen == []


def test_a_header_that_is_there_twice_is_refused(gated, key):
    twice = signed(key) | {"flwr-extra": "1\r\nflwr-extra: 2"}
    assert raw(gated, f"POST {PULL} HTTP/1.1", twice) == 400
    assert gated.recorder.seen == []


def test_bodies_have_a_size_declared_or_not(gated, key):
    piece = "/v1/fleet/push-object"
    assert gated.client.post(piece, content=bytes(LARGEST_BYTES), headers=signed(key)).status_code == 200
    assert raw(gated, f"POST {piece} HTTP/1.1", signed(key) | {"Content-Length": str(LARGEST_BYTES + 1)}) == 413
    assert raw(gated, f"POST {piece} HTTP/1.1", signed(key) | {"Content-Length": "-1"}) == 400
    pieces = (bytes(1 << 20) for _ in range(9))
    assert gated.client.post(piece, content=pieces, headers=signed(key)).status_code == 413
    assert len(gated.recorder.seen) == 1


@pytest.mark.parametrize("path", sorted(FLEET - {"/v1/fleet/push-object", "/v1/fleet/push-pieces"}))
def test_only_what_brings_pieces_may_be_large(gated, key, path):
    """A request of 8 MiB can hold four million parts, and took half a minute and a gigabyte to read."""
    assert gated.client.post(path, content=bytes(1 << 19), headers=signed(key)).status_code == 413
    assert gated.recorder.seen == []


def test_no_more_is_made_of_a_reply_s_pieces_than_there_may_be():
    reply = Metadata(message_id="m", src_node_id=7, dst_node_id=SUPERLINK_NODE_ID, reply_to_message_id="asked")
    for count, fits in ((MOST_PIECES - 1, True), (MOST_PIECES, False)):
        tree = ObjectTree(object_id="m", children=[ObjectTree(object_id="c" * 64)] * count)
        pushed = PushMessagesRequest(
            node=Node(node_id=7), messages_list=[ProtoMessage(metadata=reply)], message_object_trees=[tree]
        )
        body = pushed.SerializeToString()
        assert len(body) < 1 << 18
        assert speaks_for_itself(PUSH, body) is fits


def test_a_head_without_end_is_refused(gated, key):
    assert raw(gated, f"POST {PULL} HTTP/1.1", signed(key) | {"x": "y" * (1 << 17)}) in (0, 400, 431)
    assert gated.recorder.seen == []


def test_who_did_not_sign_is_a_stranger(gated, key):
    other = new_node_key()
    mixed = signed(other) | {"flwr-public-key": signed(key)["flwr-public-key"]}
    late, early = datetime.now(UTC) - timedelta(seconds=310), datetime.now(UTC) + timedelta(seconds=9)
    used = signed(key)
    assert gated.client.post(PULL, headers=used).status_code == 200
    shifted = signed(key, datetime.now(UTC) - timedelta(seconds=1)) | {"flwr-timestamp": datetime.now(UTC).isoformat()}
    cases = {
        "unsigned": {},
        "another key": signed(other),
        "a key that is not its own": mixed,
        "late": signed(key, late),
        "early": signed(key, early),
        "again": used,
        "another moment": shifted,
        "no time zone": signed(key) | {"flwr-timestamp": "2026-01-01T00:00:00"},
        "no signature": signed(key) | {"flwr-signature": ""},
        "garbage": signed(key) | {"flwr-public-key": "%%%"},
    }
    answers = {name: gated.client.post(PULL, headers=headers).status_code for name, headers in cases.items()}
    assert answers == dict.fromkeys(cases, 401)
    assert len(gated.recorder.seen) == 1


def test_a_site_that_is_not_admitted_any_more_is_out_at_once(gated, key, admitted):
    assert gated.client.post(PULL, headers=signed(key)).status_code == 200
    admitted.clear()
    assert gated.client.post(PULL, headers=signed(key)).status_code == 401


def test_after_a_refusal_the_connection_ends(gated, key):
    """What was not read of a refused request must not be read as the next one."""
    smuggled = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    answer = gated.client.post("/v1/control/start-run", content=smuggled)
    assert answer.headers["connection"] == "close"
    assert gated.client.post(PULL, headers=signed(key)).headers.get("connection") != "close"


def test_two_ways_to_say_how_long_a_body_is_are_none(gated, key):
    both = signed(key) | {"Content-Length": "5", "Transfer-Encoding": "chunked"}
    status = raw(gated, f"POST {PULL} HTTP/1.1", both, b"0\r\n\r\nPOST /v1/control/list-runs HTTP/1.1\r\n\r\n")
    assert status in (0, 200, 400)
    assert all(path == PULL for _, path, _, _ in gated.recorder.seen)


def test_strangers_are_slowed_down_and_sites_are_not(home, key, admitted):
    gated = Gated(home, RequestAuth(lambda: admitted, strangers=Bucket(burst=3, per_s=0.01)))
    try:
        answers = [gated.client.post("/v1/control/list-runs").status_code for _ in range(5)]
        assert answers == [404, 404, 404, 429, 429]
        assert gated.client.post(PULL).status_code == 429
        assert gated.client.get("/health").status_code == 429
        assert gated.client.post(PULL, headers=signed(key)).status_code == 200
    finally:
        gated.close()


def test_a_site_that_asks_too_often_is_slowed_down_alone(home, key, admitted):
    other = new_node_key()
    admitted[public_pem(other).decode()] = "south"
    gated = Gated(home, RequestAuth(lambda: admitted, known=Bucket(burst=2, per_s=0.01)))
    try:
        assert [gated.client.post(PULL, headers=signed(key)).status_code for _ in range(3)] == [200, 200, 429]
        assert gated.client.post(PULL, headers=signed(other)).status_code == 200
    finally:
        gated.close()


def test_a_sender_may_ask_again_after_a_while():
    now = [0.0]
    bucket = Bucket(burst=2, per_s=1, clock=lambda: now[0])
    assert [bucket.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 0.9
    assert not bucket.take("a")
    now[0] = 2.0
    assert bucket.take("a")
    now[0] = 1000.0
    assert [bucket.take("a") for _ in range(3)] == [True, True, False], "not more than at once"


def test_health_is_all_a_stranger_may_ask(gated):
    assert gated.client.get("/health").status_code == 200
    assert gated.client.head("/health").status_code == 200
    assert gated.client.get("/health").content == b"", "nothing of what is behind"
    assert gated.client.post("/health").status_code == 404
    assert gated.client.get("/health?x=1").status_code == 404


def test_a_server_that_restarts_is_waited_for(gated, key):
    gated.stop_inner()
    answer = gated.client.post(PULL, headers=signed(key))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert gated.client.get("/health").status_code == 503


def test_whoever_has_taken_the_servers_place_on_loopback_gets_nothing(home, key, admitted, tmp_path: Path):
    """Another program on Flower's port, with a certificate of another authority."""
    content = {"name": "other", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    gated = Gated(home, RequestAuth(lambda: admitted), authority=tmp_path / "kits" / "server" / "ca.crt")
    try:
        assert gated.client.post(PULL, headers=signed(key)).status_code == 503
        assert gated.recorder.seen == []
    finally:
        gated.close()


def test_a_proxy_of_the_environment_sees_nothing(home, key, admitted, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    gated = Gated(home, RequestAuth(lambda: admitted))
    try:
        assert gated.client.post(PULL, headers=signed(key)).status_code == 200
    finally:
        gated.close()


def test_tls_begins_at_1_2_whatever_the_system_allows(home):
    server = gate_server(Gate(RequestAuth(dict), "https://127.0.0.1:1", home.authority), ("127.0.0.1", 1), home.gate)
    assert server.config.ssl.minimum_version is ssl.TLSVersion.TLSv1_2


def test_old_tls_is_refused(gated):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = version
        with socket.create_connection(("localhost", gated.port), timeout=120) as plain, pytest.raises(OSError):
            old.wrap_socket(plain, server_hostname="localhost")


def pushed(node: int = 7, **said: Any) -> bytes:
    """A reply as a site pushes it, with other words on its envelope."""
    told = {"src_node_id": 7, "dst_node_id": SUPERLINK_NODE_ID, "reply_to_message_id": "asked", "message_id": "own"}
    message = ProtoMessage(metadata=Metadata(**(told | said)))
    request = PushMessagesRequest(node=Node(node_id=node), messages_list=[message])
    request.message_object_trees.append(ObjectTree(object_id="own"))
    return request.SerializeToString()


def two() -> bytes:
    request = PushMessagesRequest.FromString(pushed())
    request.MergeFrom(PushMessagesRequest.FromString(pushed(src_node_id=8)))
    return request.SerializeToString()


def of_many_pieces() -> bytes:
    request = PushMessagesRequest.FromString(pushed())
    request.message_object_trees[0].children.extend(ObjectTree(object_id=str(n)) for n in range(MOST_PIECES))
    return request.SerializeToString()


def test_a_site_s_own_reply_passes(gated, key):
    assert gated.client.post(PUSH, content=pushed(), headers=signed(key)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        pushed(src_node_id=8),
        pushed(node=8),
        pushed(src_node_id=SUPERLINK_NODE_ID, reply_to_message_id="", dst_node_id=8),
        pushed(reply_to_message_id=""),
        pushed(dst_node_id=8),
        pushed(message_id="another's"),
        two(),
        of_many_pieces(),
        b"\xff" * 20,
    ],
)
def test_what_a_site_says_in_another_s_name_does_not_pass(gated, key, body):
    assert gated.client.post(PUSH, content=body, headers=signed(key)).status_code == 403
    assert gated.recorder.seen == []


def test_a_site_that_waits_is_answered_at_the_gate_until_something_has_come(home, key, admitted, tmp_path: Path):
    bells = Bells(tmp_path)
    gated = Gated(home, RequestAuth(lambda: admitted), bells=bells)
    try:
        gated.recorder.answer = b""
        answers = [gated.client.post(PULL, content=b"node", headers=signed(key)) for _ in range(2)]
        assert [(one.status_code, one.content) for one in answers] == [(200, b"")] * 2
        assert len(gated.recorder.seen) == 1
        bells.down.ring()
        gated.recorder.answer = b"a message"
        assert gated.client.post(PULL, content=b"node", headers=signed(key)).content == b"a message"
        admitted.clear()
        assert gated.client.post(PULL, content=b"node", headers=signed(key)).status_code == 401
    finally:
        gated.close()
