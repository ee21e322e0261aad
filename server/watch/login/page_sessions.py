"""Who is logged in: by a random word in a cookie, of which the digest alone is kept here, until its time is over."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST = 1000


@dataclass(frozen=True)
class _LoggedIn:
    name: str
    holds: Callable[[], bool]
    ends: float


class PageSessions:
    """The sessions of one process; another one, also of the same server, knows none of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._found: dict[bytes, _LoggedIn] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, holds: Callable[[], bool]) -> str:
        """The word of a new session, which is one as long as its login `holds`."""
        word = secrets.token_urlsafe(32)
        with self._lock:
            now = time.monotonic()
            self._found = {key: one for key, one in self._found.items() if one.ends > now}
            if len(self._found) >= _MOST:
                del self._found[min(self._found, key=lambda key: self._found[key].ends)]
            self._found[_digest(word)] = _LoggedIn(name, holds, now + self.seconds)
        return word

    def name(self, word: str) -> str | None:
        """Whose session it is; None if it is nobody's, is over, or its login holds no more."""
        with self._lock:
            found = self._found.get(_digest(word))
        if found is None:
            return None
        if time.monotonic() < found.ends and found.holds():
            return found.name
        self.end(word)  # it is asked for once, however often it comes
        return None

    def end(self, word: str) -> None:
        """The session is over."""
        with self._lock:
            self._found.pop(_digest(word), None)


def _digest(word: str) -> bytes:
    # Looked up by its digest: how long that takes tells nothing of the words that there are.
    return hashlib.sha256(word.encode(errors="replace")).digest()
