"""Who may hold a connection to the gate: so many from one address, so many that have not signed anything, and no more.

A connection costs the gate memory and, while TLS is agreed on, time, before anybody has said who they are. So strangers
have a limited room, an address a limited part of it, and a handshake a limited time; a connection leaves that room with
the first request that a site has signed. Where the room is full, those who came first make way, the addresses that
hold the most before all others; addresses from which sites were heard are spared. Networks of IPv6 (/64) count as one
address, since whoever has one has all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any

from fedgraft.server.operations.request_auth import Bucket

Client = tuple[str, int]
"""Address and port."""

_YOUNG_S = 2.0
"""So long a caller may take to say who it is before it makes way for the next one from its own address."""

_AT_ONCE = 64
"""Connections that are turned away one after the other, before anything else of the process has its turn."""

_KNOWN_S, _MOST_KNOWN = 24 * 3600.0, 4096


@dataclass(frozen=True)
class DoorLimits:
    """How many connections there may be: of strangers `per_address` and in `all`, and `per_key` of a site.

    Half of the strangers, of an address and of all, may be in their handshake, for `handshake_s` seconds at most.
    """

    per_address: int = 64
    all: int = 512
    per_key: int = 32
    handshake_s: float = 10.0


@dataclass(eq=False)
class Caller:
    """One connection: where it is from, since when, whether TLS is agreed on, and whose requests came over it."""

    line: socket.socket
    place: str
    since: float
    agreed: bool = False
    name: str = ""


class Doors:
    """Counts the callers of one listening socket, and turns away those for whom there is no room."""

    def __init__(self, limits: DoorLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or DoorLimits()
        self._clock = clock
        self._callers: dict[Client, Caller] = {}
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._strangers, self._neighbours = Bucket(200, 20, clock), Bucket(1000, 100, clock)

    def admit(self, line: socket.socket, client: Client) -> bool:
        """Whether this connection may stay; others may have to go for it."""
        place = place_of(client[0])
        known = self._known(place)
        if not (self._neighbours if known else self._strangers).take(place):
            return False
        now = self._clock()
        unsigned = [caller for caller in self._callers.values() if not caller.name]
        for some, share in ((unsigned, 1), ([one for one in unsigned if not one.agreed], 2)):
            own = [caller for caller in some if caller.place == place]
            if len(own) >= self.limits.per_address // share and not self._drop(own, now):
                return False
            if len(some) >= self.limits.all // share and not self._drop(self._first_to_go(some), now, force=known):
                return False
        self._callers[client] = Caller(line, place, now)
        return True

    def agreed(self, client: Client) -> None:
        """TLS is agreed on with this client."""
        if (caller := self._callers.get(client)) is not None:
            caller.agreed = True

    def signed(self, client: Client, name: str) -> None:
        """A request that came over this connection was signed by the site of this name."""
        caller = self._callers.get(client)
        if caller is None or caller.name:
            return
        self._heard[caller.place] = self._clock()
        self._heard.move_to_end(caller.place)
        if len(self._heard) > _MOST_KNOWN:
            self._heard.popitem(last=False)
        own = [one for one in self._callers.values() if one.name == name]
        if len(own) >= self.limits.per_key:
            self._drop(own, self._clock(), force=True)
        caller.name = name

    def gone(self, client: Client, line: socket.socket) -> None:
        """The connection is closed."""
        if client in self._callers and self._callers[client].line is line:
            del self._callers[client]

    def late(self, client: Client, line: socket.socket) -> None:
        """End a handshake that has taken its time."""
        caller = self._callers.get(client)
        if caller is not None and caller.line is line and not caller.agreed:
            self._end(client)

    def _known(self, place: str) -> bool:
        return self._clock() - self._heard.get(place, -_KNOWN_S) < _KNOWN_S

    def _first_to_go(self, callers: Iterable[Caller]) -> list[Caller]:
        """Those of the address that holds the most, of all that are not known, or of all if there are no others."""
        by_place: dict[str, list[Caller]] = {}
        for caller in callers:
            by_place.setdefault(caller.place, []).append(caller)
        unknown = [place for place in by_place if not self._known(place)] or list(by_place)
        return by_place[max(unknown, key=lambda place: len(by_place[place]))]

    def _drop(self, callers: list[Caller], now: float, *, force: bool = False) -> bool:
        """End the oldest of these connections, unless it is young; whether there was one to end."""
        oldest = min(callers, key=lambda caller: caller.since)
        if now - oldest.since < _YOUNG_S and not force:
            return False
        self._end(next(client for client, caller in self._callers.items() if caller is oldest))
        return True

    def _end(self, client: Client) -> None:
        # The event loop closes it when it reads that it has ended.
        with contextlib.suppress(OSError):
            self._callers.pop(client).line.shutdown(socket.SHUT_RDWR)


def place_of(host: str) -> str:
    """What counts as one address: an IPv4 address, in whatever form, or a network of IPv6."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or int(address) >> 64)
    return str(address)


class DoorSocket(socket.socket):
    """A listening socket that gives out only connections that its doors admit. Made for asyncio's own event loop."""

    doors: Doors

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may stay; as any socket's if there is none."""
        for _ in range(_AT_ONCE):
            plain, address = super().accept()
            line = _Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
            client = (address[0], address[1])
            if self.doors.admit(line, client):
                line.doors, line.client = self.doors, client
                asyncio.get_running_loop().call_later(self.doors.limits.handshake_s, self.doors.late, client, line)
                return line, address
            # Ended at once, without the wait of a closed connection.
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()
        raise BlockingIOError  # others of this process have their turn, and then it is asked again


class _Connection(socket.socket):
    """A connection that says when it is closed."""

    doors: Doors | None = None
    client: Client = ("", 0)

    def close(self) -> None:
        if self.doors is not None:
            self.doors.gone(self.client, self)
        super().close()


def listening(doors: Doors, listen: tuple[str, int], backlog: int) -> DoorSocket:
    """A socket that listens behind these doors. OSError if that cannot be."""
    door = DoorSocket(socket.AF_INET6 if ":" in listen[0] else socket.AF_INET)
    door.doors = doors
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(listen)
    door.listen(backlog)
    return door
