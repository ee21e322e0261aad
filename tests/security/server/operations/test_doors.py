"""Hundreds of connections that do nothing, over real TLS on loopback, while sites and newcomers want to be heard."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.operations.doors import DoorLimits, Doors, place_of
from fedgraft.server.operations.gate import Gate
from fedgraft.server.operations.request_auth import RequestAuth
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.gated import Gated, signed

PULL = "/v1/fleet/pull-messages"
MANY = 600


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    authority = Authority(tmp_path_factory.mktemp("kits") / "kits")
    authority.provision(Consortium.model_validate({"name": "trial", "server": {"host": "localhost"}, "sites": ["a"]}))
    return authority.home


@pytest.fixture(scope="module")
def key() -> NodeKey:
    return new_node_key()


@pytest.fixture
def gated(home: ServerHome, key: NodeKey) -> Iterator[Gated]:
    admitted = {public_pem(key).decode(): "north"}
    made = Gated(home, RequestAuth(lambda: admitted))
    yield made
    made.close()


@dataclass
class Crowd:
    """Clients that hold connections: `dumb` say nothing at all, `slow` agree on TLS and then stop in a head."""

    gated: Gated
    lines: list[socket.socket] = field(default_factory=list)

    def _line(self, source: str) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.gated.port), timeout=60, source_address=(source, 0))
        self.lines.append(line)
        return line

    def dumb(self, count: int, source: str) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                self._line(source).send(b"\x16\x03\x01")

    def slow(self, count: int, source: str) -> None:
        for _ in range(count):
            with contextlib.suppress(OSError):
                line = self.gated.trusted.wrap_socket(self._line(source), server_hostname="localhost")
                self.lines.append(line)
                line.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX-Slow: ")

    def alive(self) -> int:
        """How many are held at this moment."""
        return sum(open_(line) for line in self.lines if line.fileno() >= 0)

    def shrinks_to(self, most: int) -> bool:
        """Whether no more than so many are held once the others were turned away, however long that takes."""
        ends = time.monotonic() + 120
        while self.alive() > most and time.monotonic() < ends:
            time.sleep(0.1)
        return self.alive() <= most

    def leave(self) -> None:
        for line in self.lines:
            line.close()


def open_(line: socket.socket) -> bool:
    """Whether the other end still holds the connection."""
    line.settimeout(0.0)
    try:
        return line.recv(1) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


@pytest.fixture
def crowd(gated: Gated) -> Iterator[Crowd]:
    made = Crowd(gated)
    yield made
    made.leave()


def ask(gated: Gated, source: str, headers: dict[str, str]) -> int:
    """A request over a new connection from `source`: its status, 0 for none."""
    transport = httpx.HTTPTransport(verify=gated.trusted, local_address=source)
    with httpx.Client(base_url=f"https://127.0.0.1:{gated.port}", transport=transport, timeout=120) as client:
        try:
            status = client.post(PULL, headers={**headers, "host": "localhost"}).status_code
        except httpx.TransportError:
            status = 0
    return status


@pytest.fixture(autouse=True)
def _by_number(gated: Gated) -> None:
    # The certificate is for localhost; the clients here choose the address that they come from, and go to a number.
    gated.trusted.check_hostname = False


@pytest.mark.parametrize("way", ["dumb", "slow"])
def test_one_address_with_600_slow_connections_keeps_nobody_out(gated, key, crowd, way):
    assert ask(gated, "127.0.0.2", signed(key)) == 200  # a site that was heard before
    getattr(crowd, way)(MANY, "127.0.0.66")
    assert crowd.shrinks_to(64)
    for source in ("127.0.0.2", "127.0.0.3"):  # that site, and one that was never heard
        assert ask(gated, source, signed(key)) == 200, source
    assert ask(gated, "127.0.0.4", {}) == 401, "strangers are answered too"
    assert way == "dumb" or crowd.alive(), "while the crowd was there, and not after it had gone"


@pytest.mark.slow
def test_a_site_at_the_same_address_as_the_crowd_is_heard(gated, key, crowd):
    """Behind a router, or on the machine of a proxy, a site may share an address with whoever."""
    crowd.slow(MANY, "127.0.0.66")
    time.sleep(2.1)  # those who came first are not young any more
    assert ask(gated, "127.0.0.66", signed(key)) == 200


@pytest.mark.slow
def test_many_addresses_together_keep_no_site_out(gated, key, crowd):
    assert ask(gated, "127.0.0.2", signed(key)) == 200
    for last in range(10, 30):
        crowd.slow(40, f"127.0.1.{last}")
    assert crowd.shrinks_to(512)
    assert ask(gated, "127.0.0.2", signed(key)) == 200, "room is kept for those who were heard"
    time.sleep(2.1)
    assert ask(gated, "127.0.0.3", signed(key)) == 200, "the addresses that hold the most make way"


@pytest.mark.slow
def test_a_handshake_has_its_time_and_then_ends(home, key):
    admitted = {public_pem(key).decode(): "north"}
    gated = Gated(home, RequestAuth(lambda: admitted), limits=DoorLimits(handshake_s=1.0))
    crowd, began = Crowd(gated), time.monotonic()
    try:
        crowd.dumb(20, "127.0.0.66")
        assert crowd.alive() == 20 or time.monotonic() - began > 1
        assert crowd.shrinks_to(0)
        assert time.monotonic() - began > 1
    finally:
        crowd.leave()
        gated.close()


def test_a_connection_that_a_site_signed_on_is_not_one_of_the_crowd(gated, key, crowd):
    """A site's own connections live on while strangers come and go at its address."""
    transport = httpx.HTTPTransport(verify=gated.trusted, local_address="127.0.0.66")
    with httpx.Client(base_url=f"https://127.0.0.1:{gated.port}", transport=transport, timeout=120) as client:
        headers = {"host": "localhost"}
        assert client.post(PULL, headers=signed(key) | headers).status_code == 200
        (before,) = [one.line.getpeername() for one in gated.doors._callers.values() if one.name == "north"]
        crowd.slow(MANY, "127.0.0.66")
        assert client.post(PULL, headers=signed(key) | headers).status_code == 200
        assert [one.line.getpeername() for one in gated.doors._callers.values() if one.name == "north"] == [before]


def test_nothing_is_counted_that_is_gone(gated, key, crowd):
    crowd.slow(30, "127.0.0.66")
    crowd.dumb(20, "127.0.0.67")
    crowd.leave()
    ends = time.monotonic() + 120
    while gated.doors._callers and time.monotonic() < ends:
        time.sleep(0.05)
    assert gated.doors._callers == {}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doors(clock: Clock) -> Doors:
    return Doors(DoorLimits(per_address=8, all=24, per_key=4), clock)


def came(doors: Doors, host: str, port: int, *, agreed: bool = True) -> bool:
    here, _ = socket.socketpair()
    admitted = doors.admit(here, (host, port))
    if admitted and agreed:
        doors.agreed((host, port))
    return admitted


def held(doors: Doors, host: str) -> list[int]:
    return [port for client, port in doors._callers if client == host]


def test_an_address_holds_its_share_and_its_oldest_make_way_once_they_had_their_time(doors, clock):
    assert [came(doors, "10.0.0.1", port) for port in range(10)] == [True] * 8 + [False] * 2
    clock.now += 3
    assert came(doors, "10.0.0.1", 10)
    assert held(doors, "10.0.0.1") == [*range(1, 8), 10]


def test_half_of_the_share_may_be_in_its_handshake(doors):
    assert [came(doors, "10.0.0.1", port, agreed=False) for port in range(5)] == [True] * 4 + [False]
    assert came(doors, "10.0.0.2", 9, agreed=False)


def test_a_place_that_was_heard_gets_room_at_once_and_loses_none_to_strangers(doors, clock):
    came(doors, "10.0.0.9", 1)
    doors.signed(("10.0.0.9", 1), "north")
    came(doors, "10.0.0.9", 2)
    for host in range(1, 4):
        for port in range(8):
            came(doors, f"10.0.0.{host}", port)
    assert not came(doors, "10.0.0.7", 1), "full of the young"
    assert came(doors, "10.0.0.9", 3)
    clock.now += 3
    assert all(came(doors, f"10.0.1.{host}", 1) for host in range(20))
    assert held(doors, "10.0.0.9") == [1, 2, 3]


def test_a_key_has_its_share_too(doors):
    for port in range(6):
        assert came(doors, "10.0.0.1", port)
        doors.signed(("10.0.0.1", port), "north")
    assert held(doors, "10.0.0.1") == [2, 3, 4, 5]


def test_who_comes_and_goes_without_end_is_slowed_down(doors, clock):
    def burst() -> int:
        taken = 0
        for port in range(1000):
            if came(doors, "10.0.0.1", port):
                taken += 1
                doors.gone(("10.0.0.1", port), doors._callers["10.0.0.1", port].line)
        return taken

    assert burst() == 200
    clock.now += 1
    assert burst() == 20


def test_a_network_of_ipv6_is_one_address_and_ipv4_is_ipv4_in_whatever_form():
    assert place_of("2001:db8:1:2::1") == place_of("2001:db8:1:2:ffff::9") != place_of("2001:db8:1:3::1")
    assert place_of("::ffff:10.0.0.1") == place_of("10.0.0.1")
    assert place_of("fe80::1%eth0") == place_of("fe80::2")


def test_the_gate_has_doors_of_the_size_that_it_is_given(home):
    gate = Gate(RequestAuth(dict), "https://127.0.0.1:1", home.authority, DoorLimits(per_address=9))
    assert gate.doors.limits.per_address == 9
