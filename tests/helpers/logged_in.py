"""The live page with a login, and whoever comes to it: over a real socket, byte by byte where that matters."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.web import Page

NAME, PASSWORD = "lead", "twelve letters, and more"


@contextmanager
def serving(home: Path, run: Path) -> Iterator[Page]:
    """A process of its own in all but name: another page knows no session of this one."""
    with Page(Board(ServerHome(home), run), "127.0.0.1", 0) as page:
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield page
        finally:
            page.shutdown()
            thread.join()


@dataclass
class Visitor:
    """Somebody at a page, from an address of loopback. `host` is what they call the page."""

    page: Page
    address: str = "127.0.0.1"
    host: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        return int(self.page.server_address[1])

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; names of headers with _ for -."""
        wanted = {"Host": self.host or f"127.0.0.1:{self.port}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        source = (self.address, 0)
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120, source_address=source)
        else:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=120, source_address=source, context=self.tls
            )
        try:
            connection.request(method, path, body, wanted)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def say(self, text: str) -> bytes:
        """These very bytes, and all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(text.encode("latin-1"))
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def log_in(
        self, name: str = NAME, password: str = PASSWORD, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """The form, as a browser sends it from the page itself."""
        scheme = "http" if self.tls is None and not self.host else "https"
        own = {"Origin": f"{scheme}://{self.host or f'127.0.0.1:{self.port}'}"}
        kind = {"Content_Type": "application/x-www-form-urlencoded"}
        body = urlencode({"name": name, "password": password}).encode()
        return self.ask("POST", "/login", body, **(own | kind | headers))

    def cookie(self, **headers: str) -> str:
        """What a browser sends with each request once its person has logged in."""
        answer, _ = self.log_in(**headers)
        assert answer.status == 303
        return (answer.getheader("Set-Cookie") or "").partition(";")[0]
