"""Ports that nobody listens on, and that nobody else is given."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_KEPT: list[socket.socket] = []
"""One for each port that was chosen here: its name is taken until this process ends."""


def free_port() -> int:
    """A port of loopback that is still free when it is used, though others ask for ports at the same time.

    The system gives no connection such a port, since it is below those that it chooses from; and other processes of
    tests see that it was chosen.
    """
    first, chance = int(_GIVEN.read_text().split()[0]), random.SystemRandom()
    while True:
        port = chance.randrange(max(1024, first - 12_000), first)
        name = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), socket.socket() as probe:
            name.bind(f"\0fedgraft-test-port-{port}")
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            _KEPT.append(name)
            return port
        name.close()
