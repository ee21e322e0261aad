"""A proxy that the environment names, and that writes down who comes to it."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Eavesdropper:
    """Listens, and answers nobody."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def heard(self) -> bool:
        """Whether somebody came."""
        return bool(select.select([self._line], [], [], 0)[0])


@contextmanager
def eavesdropper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Eavesdropper]:
    """It is the proxy for everything, as on many machines of hospitals."""
    with socket.create_server(("127.0.0.1", 0)) as line:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            for one in (name, name.lower()):
                monkeypatch.setenv(one, f"http://127.0.0.1:{line.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield Eavesdropper(line)
