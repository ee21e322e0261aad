"""Pages to read, without a word from elsewhere, for programs and browsers on this machine unless told otherwise.

Whoever reaches the port can read them, unless a guard stands before them; where other machines reach it, one must. A
page of the outer world that a browser is tricked into asking this address (DNS rebinding) names itself in the Host
header, and is refused.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from ssl import SSLContext
from typing import Any, Protocol, cast

from fedgraft.common.base.errors import InputError

Answer = Callable[[], tuple[str, bytes]]
"""Gives a page's content type and content, as they are when it is asked for."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with it browsers hide from the page itself where a form came from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECTIONS = 64
"""So many at once: a page that strangers reach takes no more of a machine than that."""
_LONGEST_BODY = 4096
_LONGEST_REQUEST = 1 << 16
"""Bytes of head and body: browsers send some thousand, and http.server would take six million."""
_log = logging.getLogger("fedgraft.pages")


@dataclass(frozen=True)
class PageRequest:
    """What somebody asks, as it was sent; `peer` is the address at the other end of the connection."""

    method: str
    path: str
    headers: Message
    peer: str
    body: bytes = b""


@dataclass(frozen=True)
class PageReply:
    """What is answered. `headers` come beside those that every answer has."""

    status: HTTPStatus
    kind: str = "text/plain"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class PageGuard(Protocol):
    """Who may read. `names` are what Host headers may say besides this machine's own names, in lower case."""

    names: frozenset[str]
    tls: SSLContext | None
    sealed: bool
    """Whether what is typed is encrypted on its way over the network: by TLS here, or by a proxy in front."""

    def answer(self, request: PageRequest, page: Callable[[], PageReply]) -> PageReply:
        """The answer to any request; `page` gives what is at its path, for those who may have it."""


class LocalPages(ThreadingHTTPServer):
    """Serves pages by their paths on `address`; InputError if that cannot be listened on.

    So it is if other machines reach the address and there is no `guard`, or what is typed for it could be read on its
    way. `url` is what a browser on this machine opens; `option` is what the person typed the port with.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _CONNECTIONS
    patience_s = 20.0
    """So long a connection may be silent."""

    def __init__(
        self, pages: Mapping[str, Answer], address: str, port: int, option: str, guard: PageGuard | None = None
    ) -> None:
        self.pages, self.guard = pages, guard
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__((address, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
            # By what the kernel has bound, and not by how it was spelt.
            _demand_guarded(str(self.server_address[0]), guard)
            self.server_activate()
        except OSError as error:
            self.server_close()
            fix = f"Choose another port with {option}."
            raise InputError(f"{address} port {port} cannot be listened on: {error.strerror}.", fix=fix) from None
        except InputError:
            self.server_close()
            raise
        self.names = _names(address) | (guard.names if guard else frozenset())
        shown = f"[{address}]" if ":" in address else address
        self.url = f"http{'s' if guard and guard.tls else ''}://{shown}:{self.server_address[1]}/"

    def page(self, path: str) -> PageReply:
        """What is at a path."""
        if path not in self.pages:
            return PageReply(HTTPStatus.NOT_FOUND)
        return PageReply(HTTPStatus.OK, *self.pages[path]())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless too many are at it."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be begun
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As http.server does, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """TLS begins here, in the request's own thread, so that who says nothing holds up nobody."""
        if self.guard is None or self.guard.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(self.patience_s)
        with self.guard.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - http.server gives both
        """A browser that hangs up is no event; a file that cannot be used is one."""
        if isinstance(error := sys.exception(), InputError):
            _log.warning("a request was not answered: %s", error)
        _log.debug("a request was not finished", exc_info=True)


class _Bounded:
    """What comes over a connection, up to so many bytes: ConnectionError for whoever sends more."""

    def __init__(self, line: BufferedIOBase, left: int) -> None:
        self._line, self._left = line, left
        self.close = line.close

    def readline(self, size: int) -> bytes:
        """As a file does."""
        return self._counted(self._line.readline(min(size, self._left + 1)))

    def read(self, size: int) -> bytes:
        """As a file does."""
        return self._counted(self._line.read(min(size, self._left + 1)))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ConnectionError("a request is too long")
        return data


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the pages that there are; what else, the guard says."""

    server: LocalPages
    server_version, sys_version = "fedgraft", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = cast("BufferedIOBase", _Bounded(self.rfile, _LONGEST_REQUEST))
        self.connection.settimeout(self.server.patience_s)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        if self.server.guard is None:
            self.send_error(HTTPStatus.NOT_IMPLEMENTED)
            return
        told = self.headers.get_all("Content-Length") or []
        if len(told) != 1 or not (told[0].isascii() and told[0].isdigit()) or "Transfer-Encoding" in self.headers:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif len(told[0]) > len(str(_LONGEST_BODY)) or int(told[0]) > _LONGEST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._answer(self.rfile.read(int(told[0])))

    def _answer(self, body: bytes = b"") -> None:
        if not self._asked_by_name():
            self._send(PageReply(HTTPStatus.MISDIRECTED_REQUEST))
        elif self.server.guard is None:
            self._send(self.server.page(self.path))
        else:
            request = PageRequest(self.command, self.path, self.headers, str(self.client_address[0]), body)
            self._send(self.server.guard.answer(request, lambda: self.server.page(self.path)))

    def _asked_by_name(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        host = hosts[0].lower()
        if self.server.guard is not None and host in self.server.guard.names:
            return True
        name, _, port = host.rpartition(":")
        return port == str(self.server.server_address[1]) and name.strip("[]") in self.server.names

    def _send(self, reply: PageReply) -> None:
        self.send_response(reply.status)
        for key, value in (*_HEADERS.items(), *reply.headers):
            self.send_header(key, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """No page that repeats what was asked."""
        self.close_connection = True
        self._send(PageReply(HTTPStatus(code)))

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)


def _demand_guarded(bound: str, guard: PageGuard | None) -> None:
    if ipaddress.ip_address(bound.partition("%")[0]).is_loopback:
        return
    at_home = "Or listen on 127.0.0.1, and come by `ssh -L`"
    if guard is None:
        fix = f"Add one: fedgraft server login add NAME --home HOME. {at_home}."
        raise InputError(f"Other machines reach {bound}, and the page has no login.", fix=fix)
    if not guard.sealed:
        fix = f"Say `tls` or `behind_tls_proxy` in page.yaml of the server's folder. {at_home}."
        raise InputError(f"Other machines reach {bound}, and passwords would cross the network in the open.", fix=fix)


def _names(address: str) -> frozenset[str]:
    """What the page may be called in a Host header."""
    if address in _LOOPBACK:
        return frozenset(_LOOPBACK)
    return frozenset({*_LOOPBACK, address.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})
