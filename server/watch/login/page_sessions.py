"""Who is logged in: by a random word in a cookie, of which the digest alone is kept here, until its time is over."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass

from fedgraft.server.watch.login.login_book import Login, LoginBook

_MOST = 1000


@dataclass(frozen=True)
class _LoggedIn:
    login: Login
    ends: float


class PageSessions:
    """The sessions of one process; another one, also of the same server, knows none of them."""

    def __init__(self, book: LoginBook, seconds: float) -> None:
        self.seconds = seconds
        self._book = book
        self._found: dict[bytes, _LoggedIn] = {}
        self._lock = threading.Lock()

    def begin(self, login: Login) -> str:
        """A new session's word."""
        word = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._found = {key: one for key, one in self._found.items() if one.ends > now}
            if len(self._found) >= _MOST:
                del self._found[min(self._found, key=lambda key: self._found[key].ends)]
            self._found[_digest(word)] = _LoggedIn(login, now + self.seconds)
        return word

    def name(self, word: str) -> str | None:
        """Whose session it is; None if it is nobody's, is over, or its login was removed or has another password."""
        with self._lock:
            found = self._found.get(_digest(word))
        if found is None or time.monotonic() >= found.ends:
            return None
        return found.login.name if self._book.named(found.login.name) == found.login else None

    def end(self, word: str) -> None:
        """The session is over."""
        with self._lock:
            self._found.pop(_digest(word), None)


def _digest(word: str) -> bytes:
    # Looked up by its digest: how long that takes tells nothing of the words that there are.
    return hashlib.sha256(word.encode(errors="replace")).digest()
