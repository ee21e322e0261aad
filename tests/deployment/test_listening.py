"""Where a real server listens, as the operating system sees it, and what it says of that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from helpers.federation import Federation

pytestmark = pytest.mark.deployment


def listeners(port: int) -> set[str]:
    """The addresses on which anybody listens on this port, as the kernel writes them."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


LOOPBACK, ANYWHERE = "0100007F", "00000000"


@pytest.mark.parametrize(
    ("asked", "where", "said"),
    [
        ({"host": "127.0.0.1"}, LOOPBACK, "only this machine reaches it"),
        ({"listen": "0.0.0.0"}, ANYWHERE, "other machines"),
    ],
)
def test_a_server_listens_where_it_was_told_on_loopback_if_nowhere_and_says_so(three, tmp_path, asked, where, said):
    federation = Federation(tmp_path, three, ["east"], **({"listen": "127.0.0.1"} | asked))
    if "listen" not in asked:  # as a person writes it who says nothing of where
        del federation.server["listen"]
        federation.provision(["east"])
    try:
        federation.start_server()
        assert listeners(federation.port) == {where}
        assert listeners(federation.inner) == {LOOPBACK}, "Flower itself is for this machine alone"
        line = next(line for line in federation.output("server").splitlines() if "the gate listens" in line)
        assert f"port {federation.port}" in line
        assert said in line
        with socket.create_connection(("127.0.0.1", federation.port), timeout=5):
            pass
    finally:
        federation.end()
