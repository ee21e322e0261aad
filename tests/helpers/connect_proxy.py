"""A hospital's web proxy on loopback: it joins who asks with CONNECT, knows names of its own, and notes all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping


class ConnectProxy:
    """Listens on `port`. `names` are the ports on loopback of what it knows by host:port; it lets nothing else pass."""

    def __init__(self, names: Mapping[str, int], status: str = "200 OK") -> None:
        self._names, self._status = names, status
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (piece := near.recv(4096)):
                head += piece
            words = head.split()
            target = words[1].decode() if words[:1] == [b"CONNECT"] else "no CONNECT"
            self.asked.append(target)
            if target not in self._names or not self._status.startswith("200"):
                near.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._names[target])) as far:
                near.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
