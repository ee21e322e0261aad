"""Pages to read, without a word from elsewhere, for programs and browsers on this machine unless told otherwise.

Whoever reaches the port can read them. A page of the outer world that a browser is tricked into asking this address
(DNS rebinding) names itself in the Host header, and is refused.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedgraft.common.base.errors import InputError

Answer = Callable[[], tuple[str, bytes]]
"""Gives a page's content type and content, as they are when it is asked for."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger("fedgraft.pages")


class LocalPages(ThreadingHTTPServer):
    """Serves pages by their paths on `address`; InputError if that cannot be listened on.

    `url` is what a browser opens; `option` is what the person typed the port with.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, pages: Mapping[str, Answer], address: str, port: int, option: str) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            fix = f"Choose another port with {option}."
            raise InputError(f"{address} port {port} cannot be listened on: {error.strerror}.", fix=fix) from None
        self.names = _names(address)
        shown = f"[{address}]" if ":" in address else address
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - http.server gives both
        """A browser that hangs up is no event."""
        _log.debug("a request was not finished", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the pages that there are."""

    server: LocalPages
    server_version, sys_version = "fedgraft", ""
    timeout = 20

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if not self._asked_by_name():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"", with_body=with_body)
        elif self.path in self.server.pages:
            kind, body = self.server.pages[self.path]()
            self._send(HTTPStatus.OK, kind, body, with_body=with_body)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"", with_body=with_body)

    def _asked_by_name(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        name, _, port = hosts[0].rpartition(":")
        return port == str(self.server.server_address[1]) and name.strip("[]").lower() in self.server.names

    def _send(self, status: HTTPStatus, kind: str, body: bytes, *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in _HEADERS.items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """No page that repeats what was asked."""
        self.close_connection = True
        self._send(HTTPStatus(code), "text/plain", b"", with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)


def _names(address: str) -> frozenset[str]:
    """What the page may be called in a Host header."""
    if address in _LOOPBACK:
        return frozenset(_LOOPBACK)
    return frozenset({*_LOOPBACK, address.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})
