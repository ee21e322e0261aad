"""What stands before the live page: a person with a password, or a program with a token, and nobody else."""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable
from functools import partial
from html import escape
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there
from fedgraft.common.base.local_pages import PageReply, PageRequest
from fedgraft.server.operations.request_auth import AuthVerdict, Bucket
from fedgraft.server.watch.login.id_token import SignOnError
from fedgraft.server.watch.login.login_book import Login, LoginBook
from fedgraft.server.watch.login.page_sessions import PageSessions
from fedgraft.server.watch.login.page_settings import SETTINGS, PageSettings, read_page_settings, tls_context
from fedgraft.server.watch.login.sign_on import CALLBACK, SECONDS, SignOn

PERSON = "Fedgraft-Person"
"""The header that tells the page who reads it."""
_FORM = Path(__file__).parent / "login.html"
_IN = b'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=/"><a href="/">To the page</a>'
_HTML, _SIGN_ON = "text/html; charset=utf-8", "/login/sign-on"
_OPEN = "/page.css"
"""All that who has not logged in may have besides the form: how it looks, which everybody has who has fedgraft."""
_FIGURES = "/metrics"
_WRONG = "Name or password is wrong."
_NOT_SIGNED_ON = "That did not work. Once more, or ask who runs this page."
_TOO_OFTEN = "Too many attempts. Wait a minute."
_log = logging.getLogger("fedgraft.pages")


def login_guard(folder: Path) -> LoginGuard | None:
    """What stands before the page of the server in `folder`; None if it has no login, and is for this machine alone.

    InputError if it has none, and a `page.yaml` or a program's token is there, so that somebody thinks that it has.
    """
    settings, book = read_page_settings(folder), LoginBook(folder)
    if book.persons() or settings.sign_on is not None:
        return LoginGuard(folder, settings)
    if is_there(folder / SETTINGS) or book.programs():
        fix = f"Add one: fedgraft server login add NAME --home {folder}"
        raise InputError(
            f"{folder}: {SETTINGS} or a token says that the page has a login, and no person has one.", fix=fix
        )
    return None


class LoginGuard:
    """Lets persons in who have logged in, and programs with a token to the figures. See `PageGuard`."""

    def __init__(self, folder: Path, settings: PageSettings) -> None:
        self.names = frozenset(settings.names)
        self.tls = None if settings.tls is None else tls_context(folder, settings.tls)
        self._proxies = frozenset(map(str, settings.behind_tls_proxy))
        self.sealed = self.tls is not None or bool(self._proxies)
        self._cookie = "__Host-fedgraft" if self.sealed else "fedgraft"
        self._begun = f"{self._cookie}-sign-on"
        self._book = LoginBook(folder)
        self._sessions = PageSessions(settings.session_hours * 3600)
        self._attempts = _Attempts(self._book)
        self._sign_on = None if settings.sign_on is None else SignOn(folder, settings.sign_on)

    def answer(self, request: PageRequest, page: Callable[[], PageReply]) -> PageReply:
        """The page, the form, or no: decided before it is looked whether there is anything at that path."""
        if not self._came_sealed(request):
            return PageReply(HTTPStatus.MISDIRECTED_REQUEST)
        if request.method == "POST":
            return self._posted(request)
        if request.path == "/login":
            return self._form(HTTPStatus.OK, "")
        if self._sign_on is not None and request.path.partition("?")[0] in (_SIGN_ON, CALLBACK):
            return self._at_the_sign_on(self._sign_on, request)
        return self._read(request, page)

    def _read(self, request: PageRequest, page: Callable[[], PageReply]) -> PageReply:
        if request.path == _OPEN or (request.path == _FIGURES and self._is_program(request)):
            return page()
        name = self._name(request)
        if name is not None:
            reply = page()
            return PageReply(reply.status, reply.kind, reply.body, (*reply.headers, (PERSON, quote(name))))
        if request.path == "/":
            return _elsewhere("/login")
        return PageReply(HTTPStatus.UNAUTHORIZED, headers=(("WWW-Authenticate", 'Bearer realm="fedgraft"'),))

    def _posted(self, request: PageRequest) -> PageReply:
        if request.path not in ("/login", "/logout"):
            return PageReply(HTTPStatus.NOT_IMPLEMENTED)
        if not self._from_the_page_itself(request):
            return PageReply(HTTPStatus.FORBIDDEN)
        if request.path == "/login":
            return self._log_in(request)
        for word in self._words(request, self._cookie):
            self._sessions.end(word)
        return _elsewhere("/login", self._set_cookie("", 0))

    def _log_in(self, request: PageRequest) -> PageReply:
        if request.headers.get_content_type() != "application/x-www-form-urlencoded":
            return PageReply(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        try:
            sent = parse_qs(request.body.decode("ascii"), keep_blank_values=True, max_num_fields=4)
        except ValueError:
            return PageReply(HTTPStatus.BAD_REQUEST)
        peer = self._peer(request)
        found = self._attempts.made(peer, sent.get("name", [""])[0], sent.get("password", [""])[0])
        if isinstance(found, Login):
            _log.info("%s has logged in from %s", found.name, peer)
            return _elsewhere("/", self._session(found.name, partial(self._holds, found)))
        if found is AuthVerdict.TOO_OFTEN:
            return self._form(HTTPStatus.TOO_MANY_REQUESTS, _TOO_OFTEN)
        # The name is not written down: people type their password there.
        _log.warning("a login from %s was refused", peer)
        return self._form(HTTPStatus.UNAUTHORIZED, _WRONG)

    def _at_the_sign_on(self, sign_on: SignOn, request: PageRequest) -> PageReply:
        """Send a browser there, or let in who comes back from there."""
        if request.path == _SIGN_ON and request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return _elsewhere("/login")  # a person begins, and no other page for them
        peer = self._peer(request)
        if not self._attempts.signs_on(peer):
            return self._form(HTTPStatus.TOO_MANY_REQUESTS, _TOO_OFTEN)
        try:
            if request.path == _SIGN_ON:
                there, word = sign_on.begin(self._own(request))
                # Lax, since the browser comes back from another page.
                return _elsewhere(there, self._set_cookie(word, round(SECONDS), self._begun, "Lax"))
            name = sign_on.end(request.path.partition("?")[2], next(iter(self._words(request, self._begun)), ""))
        except SignOnError as error:
            _log.warning("a sign-on from %s was refused: %s", peer, error)
            return self._form(HTTPStatus.UNAUTHORIZED, _NOT_SIGNED_ON)
        _log.info("%s has signed on from %s", name, peer)
        over = self._set_cookie("", 0, self._begun, "Lax")
        # A page, and no redirect: a browser that was sent here by another page would leave out the new cookie.
        return PageReply(HTTPStatus.OK, _HTML, _IN, (self._session(name, partial(sign_on.holds, name)), over))

    def _session(self, name: str, holds: Callable[[], bool]) -> tuple[str, str]:
        return self._set_cookie(self._sessions.begin(name, holds), round(self._sessions.seconds))

    def _holds(self, login: Login) -> bool:
        return self._book.named(login.name) == login

    def _own(self, request: PageRequest) -> str:
        """What the browser calls the page; that it may is known by now."""
        return f"http{'s' if self.sealed else ''}://{request.headers['Host']}"

    def _form(self, status: HTTPStatus, says: str) -> PageReply:
        text = _FORM.read_text(encoding="utf-8").replace("{says}", says)
        if self._sign_on is not None:
            link = f'<p><a href="{_SIGN_ON}">Log in at {escape(self._sign_on.host)}</a></p>'
            text = text.replace("<!-- sign-on -->", link)
        return PageReply(status, _HTML, text.encode())

    def _came_sealed(self, request: PageRequest) -> bool:
        """Whether it came the way that it should: where there is a proxy, from it, and to it over TLS."""
        if not self._proxies:
            return True
        return _plain(request.peer) in self._proxies and request.headers.get_all("X-Forwarded-Proto") == ["https"]

    def _from_the_page_itself(self, request: PageRequest) -> bool:
        """Whether a form of this page was sent, and not one of another page that the person looks at."""
        return [one.lower() for one in request.headers.get_all("Origin") or []] == [self._own(request).lower()]

    def _peer(self, request: PageRequest) -> str:
        """Who asks, for counting; behind a proxy who the proxy says, as the last that was added."""
        told = ",".join(request.headers.get_all("X-Forwarded-For") or []).rpartition(",")[2].strip()
        return _network(told if self._proxies else request.peer) or _plain(request.peer)

    def _name(self, request: PageRequest) -> str | None:
        return next((name for word in self._words(request, self._cookie) if (name := self._sessions.name(word))), None)

    def _words(self, request: PageRequest, cookie: str) -> list[str]:
        pairs = [pair.strip() for line in request.headers.get_all("Cookie") or [] for pair in line.split(";")]
        return [pair.partition("=")[2] for pair in pairs if pair.partition("=")[0] == cookie]

    def _is_program(self, request: PageRequest) -> bool:
        kind, _, token = (request.headers.get("Authorization") or "").partition(" ")
        return kind.lower() == "bearer" and self._book.program(token) is not None

    def _set_cookie(self, word: str, seconds: int, name: str = "", to: str = "Strict") -> tuple[str, str]:
        sealed = "; Secure" if self.sealed else ""
        facts = f"Path=/; Max-Age={seconds}; HttpOnly; SameSite={to}{sealed}"
        return "Set-Cookie", f"{name or self._cookie}={word}; {facts}"


class _Attempts:
    """Logins that are tried: one after the other, and not often."""

    def __init__(self, book: LoginBook) -> None:
        self._book = book
        self._of_one = Bucket(burst=5, per_s=1 / 30)
        self._of_all = Bucket(burst=30, per_s=1 / 3)
        self._sign_ons = Bucket(burst=20, per_s=1 / 3)
        self._lock = threading.Lock()

    def made(self, peer: str, name: str, password: str) -> Login | AuthVerdict:
        """What becomes of an attempt from there. Whether there is such a name is in neither the answer nor its time."""
        with self._lock:  # a guess takes memory: never that of two
            if not (self._of_one.take(peer) and self._of_all.take("")):
                return AuthVerdict.TOO_OFTEN
            return self._book.login(name, password) or AuthVerdict.UNKNOWN

    def signs_on(self, peer: str) -> bool:
        """Whether the sign-on may be asked once more for somebody there: nothing can be guessed, but it costs work."""
        with self._lock:
            return self._sign_ons.take(peer)


def _elsewhere(path: str, *headers: tuple[str, str]) -> PageReply:
    return PageReply(HTTPStatus.SEE_OTHER, headers=(("Location", path), *headers))


def _plain(address: str) -> str:
    """An address in the one form that it has; an IPv4 address that came by IPv6 is itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(found, "ipv4_mapped", None) or found)


def _network(address: str) -> str:
    """Whom attempts are counted for: of IPv6 everybody has 2**64 addresses."""
    plain = _plain(address)
    return str(ipaddress.ip_network(f"{plain}/64", strict=False)) if ":" in plain else plain
