"""Ports of a consortium on one machine are its own until its server listens."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedgraft.common.base.errors import RunError
from fedgraft.simulations.poc import consortium


def test_ports_are_free_different_and_given_to_no_connection_meanwhile() -> None:
    """A client that connects anywhere is given a port by the system; the server then could not start there."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = [port for _ in range(50) for port in consortium.free_ports(2)]
    assert all(1024 <= port < max(first, 2048) for port in found)
    one, other = consortium.free_ports(2)
    with ExitStack() as held:
        for port in (one, other):
            held.enter_context(socket.socket()).bind(("127.0.0.1", port))


def test_a_port_where_somebody_listens_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all but a few are taken; and where none is left, it is said."""
    given = tmp_path / "range"
    given.write_text("1024 65535")
    monkeypatch.setattr(consortium, "_GIVEN_TO_CONNECTIONS", given)
    with ExitStack() as held:
        for port in range(1024, 2040):
            try:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue  # somebody else's
        assert set(consortium.free_ports(2)) <= set(range(2040, 2048))
        with pytest.raises(RunError, match="Hardly a port"):
            consortium.free_ports(9)
