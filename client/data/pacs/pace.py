"""How fast an archive is asked: it is for patients first."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_S, _TIMES = 1.0, 6


class Pace:
    """Waits between requests and between pieces of answers, so that neither comes faster than this."""

    def __init__(self, requests_per_s: float, megabytes_per_s: float | None = None) -> None:
        self._between_s = 1.0 / requests_per_s
        self._byte_s = 0.0 if megabytes_per_s is None else 1e-6 / megabytes_per_s
        self._next_request = self._next_piece = 0.0

    def request(self) -> None:
        """Wait until the next request may go out."""
        _sleep_until(self._next_request)
        self._next_request = time.monotonic() + self._between_s

    def received(self, count: int) -> None:
        """Wait as long as these bytes should have taken."""
        self._next_piece = max(self._next_piece, time.monotonic()) + count * self._byte_s
        _sleep_until(self._next_piece)


def waits(first_s: float = _FIRST_S) -> list[float]:
    """The seconds before a request is repeated, once for each time that it is: each twice the one before."""
    return [first_s * 2**index for index in range(_TIMES)]


def retry_after_s(header: str | None) -> float:
    """The seconds that a `Retry-After` header asks for, as a number or a date; 0 if it says nothing sensible."""
    if not header:
        return 0.0
    if header.isascii() and header.strip().isdigit():
        return float(header)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        time.sleep(left)
