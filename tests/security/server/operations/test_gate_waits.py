"""Sites that wait at the gate, over TLS, and are gone or shut out when something comes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.fleet.bell import Bells
from fedgraft.server.operations.request_auth import RequestAuth
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
    authority = Authority(tmp_path_factory.mktemp("kits") / "kits")
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    authority.provision(Consortium.model_validate(content))
    return authority.home


@pytest.fixture
def admitted(key: NodeKey) -> dict[str, str]:
    return {public_pem(key).decode(): "north"}


@pytest.fixture
def waiting(home: ServerHome, key: NodeKey, admitted: dict[str, str], tmp_path: Path) -> Iterator[tuple[Gated, Bells]]:
    """A gate at which a site has asked in vain, and waits when it asks again."""
    bells = Bells(tmp_path)
    gated = Gated(home, RequestAuth(lambda: admitted), bells=bells)
    gated.recorder.answer = b""
    assert gated.client.post(PULL, content=b"node", headers=signed(key)).content == b""
    gated.recorder.answer = b"a message"
    yield gated, bells
    gated.close()


def until(gated: Gated, signed_on: int) -> None:
    """Wait until a site's requests have come over so many connections that are still there, however long that takes."""
    ends = time.monotonic() + 60
    while sum(caller.name == "north" for caller in list(gated.doors._callers.values())) != signed_on:
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def test_what_comes_when_a_site_that_waited_has_gone_is_kept_for_when_it_is_back(waiting, key):
    """Flower takes a message for delivered when it is asked for; a site that was killed meanwhile never had it."""
    gated, bells = waiting
    head = "".join(f"{name}: {value}\r\n" for name, value in signed(key).items())
    with socket.create_connection(("localhost", gated.port)) as plain:
        line = gated.trusted.wrap_socket(plain, server_hostname="localhost")
        line.sendall(f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\n{head}content-length: 4\r\n\r\nnode".encode())
        until(gated, 2)
        time.sleep(0.4)
        line.close()
    until(gated, 1)
    time.sleep(0.3)
    bells.down.ring()
    time.sleep(0.6)
    assert len(gated.recorder.seen) == 1, "nobody was there to have it"
    assert gated.client.post(PULL, content=b"node", headers=signed(key)).content == b"a message"


def test_a_site_that_is_shut_out_while_it_waits_gets_nothing(waiting, key, admitted):
    gated, bells = waiting
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(gated.client.post, PULL, content=b"node", headers=signed(key))
        time.sleep(0.4)
        admitted.clear()
        bells.down.ring()
        assert answer.result().status_code == 401
    assert len(gated.recorder.seen) == 1
