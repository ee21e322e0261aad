"""A crowd at the server's door: whoever it is, sites find room, and without a person's word nobody else reaches it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

from fedgraft.server.operations.doors import Doors, listening
from fedgraft.server.provisioning.consortium import ServerEntry

_CROWD, _TICK_S = 600, 0.05
_SITE, _LATER, _ONE = "192.0.2.1", "192.0.2.2", "198.51.100.7"


def crowd_at_the_door(folder: Path) -> Iterator[str]:
    """Slow callers from one address and from many, and what a server does that was told no address to listen on."""
    del folder
    yield from _slow("one address", [_ONE] * _CROWD)
    yield from _slow("many addresses", [f"203.0.{at // 4}.{at % 4}" for at in range(_CROWD)])
    doors, entry = Doors(), ServerEntry(host="server.example")
    with listening(doors, (entry.listen, 0), 1) as door:
        if not ipaddress.ip_address(door.getsockname()[0]).is_loopback:
            yield f"a server that was told nothing listens on {door.getsockname()[0]}"
    if "only this machine" not in entry.says_where:
        yield "a server does not say who can reach it"


def _slow(words: str, crowd: list[str]) -> Iterator[str]:
    """These callers come, say nothing and stay; then a site that was heard before comes, and one that was not."""
    now = [0.0]
    doors = Doors(clock=lambda: now[0])
    with _Line() as line:
        doors.admit(line, (_SITE, 1))
        doors.signed((_SITE, 1), "north")
        doors.gone((_SITE, 1), line)
        let_in = 0
        for at, address in enumerate(crowd):
            now[0] += _TICK_S
            let_in += doors.admit(line, (address, 1000 + at))
        room = doors.limits.per_address if len(set(crowd)) == 1 else doors.limits.all
        if not 0 < let_in - line.ended <= room:
            yield f"{let_in - line.ended} slow callers from {words} are kept, where there is room for {room}"
        if not doors.admit(line, (_SITE, 2)):
            yield f"{len(crowd)} slow callers from {words} keep a site out that was heard before"
        if len(set(crowd)) == 1 and not doors.admit(line, (_LATER, 1)):
            yield f"{len(crowd)} slow callers from {words} keep out whoever comes from another"


class _Line(socket.socket):
    """One line that stands for all, and counts how often it was ended."""

    ended = 0

    def shutdown(self, how: int, /) -> None:
        """End the connection, of which there is none."""
        del how
        self.ended += 1
