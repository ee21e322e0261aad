"""DICOMweb of an archive: QIDO-RS to search, WADO-RS to retrieve (PS3.18). All that it answers is bounded."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx
from pydicom.datadict import tag_for_keyword

from fedgraft.client.data.pacs.multipart import BadBodyError, boundary_of, parts
from fedgraft.client.data.pacs.pace import Pace, retry_after_s, waits
from fedgraft.common.base.errors import RunError

Entry = Mapping[str, Any]
"""A found object in DICOM's JSON model."""
Answer = TypeVar("Answer")

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_JSON, _IMAGES = "application/dicom+json", 'multipart/related; type="application/dicom"; transfer-syntax=*'
_JSON_BYTES, _SEARCH_BYTES, _MOST_FOUND = 64 << 20, 256 << 20, 200_000
_UNCAPPED = 50
"""Servers that show no more than some number at once do not always say so; none has so few."""
_LONGEST_WAIT_S = 900.0
_PATIENCE_S, _SLOWEST_BYTES_PER_S = 300.0, 1000
"""After so long an answer must have come so fast: one byte a minute would keep a connection for ever."""
_AWAY_TIMES = 3
"""After so many things in a row that could not be had, however often they were asked for, an archive counts as away."""
_AGAIN = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS})


class NotGivenError(RunError):
    """The archive does not give what was asked for; `why` names no patient."""

    def __init__(self, why: str, *, away: bool = False) -> None:
        super().__init__(f"The PACS {why}.")
        self.why = why
        self.away = away
        """Whether that holds for whatever is asked for: the archive is away, or has too much to do."""


class _AgainError(Exception):
    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.after_s = why, after_s


class Dicomweb:
    """An archive. What it answers with 429, 5xx, or half, is asked again, later and later; RunError where that is idle.

    `first_wait_s` is the time before the first repetition.
    """

    def __init__(self, client: httpx.Client, pace: Pace, first_wait_s: float = 1.0) -> None:
        self._client, self._pace, self._waits = client, pace, waits(first_wait_s)
        self._host, self._heard = client.base_url.host, False
        self._in_vain = 0

    def search(self, path: str, keys: Mapping[str, str] | None = None) -> list[Entry]:
        """All that fits the keys, by DICOM's keywords. NotGivenError if it cannot be had whole."""
        found: dict[str, Entry] = {}
        size = 0
        while len(found) <= _MOST_FOUND:
            asked = dict(keys or {}) | ({"offset": str(len(found))} if found else {})
            page, more = self._ask(path, asked, _JSON, self._page)
            fresh = {key: entry for entry in page if (key := json.dumps(entry, sort_keys=True)) not in found}
            found |= fresh
            if (size := size + sum(map(len, fresh))) > _SEARCH_BYTES:
                raise NotGivenError(f"finds more than {_SEARCH_BYTES >> 20} MiB; search for fewer at once")
            if more and not fresh:
                raise NotGivenError("shows only a part of what it finds; search for fewer at once")
            if not fresh or (not more and len(page) < _UNCAPPED):
                return list(found.values())
        raise NotGivenError(f"finds more than {_MOST_FOUND} objects; search for fewer at once")

    def retrieve(self, path: str, take: Callable[[Iterator[bytes]], Answer]) -> Answer:
        """What `take` makes of the bytes of the one object at this path; it is called again if they end too soon."""

        def use(response: httpx.Response) -> Answer:
            boundary = boundary_of(response.headers.get("content-type", ""))
            if boundary is None:
                raise self._other(response)
            body = parts(self._pieces(response), boundary)
            try:
                part = next(body, None)
                if part is None:
                    raise NotGivenError("answers without an object")
                taken = take(part)
                if next(body, None) is not None:
                    raise NotGivenError("answers with more objects than one")
            except BadBodyError:
                raise _AgainError("breaks off in the middle of an object") from None
            return taken

        return self._ask(path, {}, _IMAGES, use)

    def _ask(self, path: str, keys: Mapping[str, str], accept: str, use: Callable[[httpx.Response], Answer]) -> Answer:
        left = iter(self._waits)
        while True:
            try:
                answer = self._once(path, keys, accept, use)
            except _AgainError as again:
                if (wait_s := next(left, None)) is None:
                    self._in_vain += 1
                    raise NotGivenError(again.why, away=self._in_vain >= _AWAY_TIMES) from None
                time.sleep(max(wait_s, again.after_s))
            else:
                self._in_vain = 0
                return answer

    def _once(self, path: str, keys: Mapping[str, str], accept: str, use: Callable[[httpx.Response], Answer]) -> Answer:
        self._pace.request()
        try:
            with self._client.stream("GET", path, params=keys, headers={"Accept": accept}) as response:
                self._heard = True
                self._judge(response)
                return use(response)
        except httpx.TransportError as error:
            raise self._no_answer(error) from None
        except httpx.InvalidURL:
            raise NotGivenError("cannot be asked by what is so long, or holds such letters") from None
        except httpx.HTTPError:
            raise NotGivenError("answers with what cannot be read") from None

    def _judge(self, response: httpx.Response) -> None:
        """Let a success through."""
        status = response.status_code
        if status in _AGAIN or status >= 500:
            after_s = retry_after_s(response.headers.get("retry-after"))
            if after_s > _LONGEST_WAIT_S:
                fix = "Repeat the command then: it goes on where it was."
                raise RunError(f"The PACS asks to be left alone for {after_s / 60:.0f} minutes.", fix=fix)
            raise _AgainError(f"answers with status {status}, again and again", after_s)
        if 300 <= status < 400:
            raise self._sent_on(response)
        if status == httpx.codes.UNAUTHORIZED:
            raise RunError(
                f"The PACS at {self._host} does not know who asks (status 401).",
                fix="Is the password right, or has the token ended? Repeat the command then: it goes on where it was.",
            )
        if status >= 400 and response.request.url.path.endswith("/studies"):
            raise RunError(
                f"The PACS at {self._host} does not let this site search for studies (status {status}).",
                fix="Is the path in --from right, and may this account search?",
            )
        if status == httpx.codes.NOT_FOUND:
            raise NotGivenError("says that there is no such object (status 404)")
        if status >= 400:
            raise NotGivenError(f"refuses it with status {status}")
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise NotGivenError("answers with what is packed, though it was asked not to")

    def _sent_on(self, response: httpx.Response) -> RunError:
        try:
            where = self._client.base_url.join(response.headers.get("location", "")).host
        except httpx.InvalidURL:
            where = ""
        return RunError(
            f"The PACS sends requests on{f' to {where}' if where else ''} (status {response.status_code}); fedgraft "
            "does not follow with its credentials.",
            fix="Give the right address by --from; if it leads to a page for people to log in, ask for a token.",
        )

    def _other(self, response: httpx.Response) -> RunError:
        """An answer of another type than was asked for."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            return RunError(
                f"What answers at {self._host} is a web page, and no DICOMweb service.",
                fix="Is the path in --from right? If it is a page for people to log in, ask for a token.",
            )
        return NotGivenError("answers with something else than DICOM")

    def _no_answer(self, error: httpx.TransportError) -> Exception:
        if "SSL" in str(error):
            return RunError(
                f"There is no trusted connection to the PACS at {self._host}: {_tls_fault(str(error))}.",
                fix="Give its authority by --ca; if it asks for a client's certificate, --certificate and --key.",
            )
        if not self._heard and isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
            return RunError(f"Nothing answers at {self._host}.", fix="Check --from, and whether the PACS is on.")
        return _AgainError("does not answer, or breaks off")

    def _page(self, response: httpx.Response) -> tuple[list[Entry], bool]:
        """The found objects of one answer, and whether it says that there are more."""
        if response.status_code == httpx.codes.NO_CONTENT:
            return [], False
        if "json" not in response.headers.get("content-type", "").lower():
            raise self._other(response)
        body = bytearray()
        for piece in self._pieces(response):
            body += piece
            if len(body) > _JSON_BYTES:
                raise NotGivenError(f"answers with more than {_JSON_BYTES >> 20} MiB; search for fewer at once")
        try:
            page = json.loads(body or b"[]")
        except (ValueError, RecursionError):
            raise _AgainError("answers with what is no JSON") from None
        if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
            raise NotGivenError("answers with what is no list of objects")
        return page, "299" in response.headers.get("warning", "")

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        began, size = time.monotonic(), 0
        for piece in response.iter_bytes():
            size += len(piece)
            passed_s = time.monotonic() - began
            if passed_s > _PATIENCE_S and size < passed_s * _SLOWEST_BYTES_PER_S:
                raise _AgainError("sends next to nothing")
            self._pace.received(len(piece))
            yield piece


def values(entry: Entry, keyword: str) -> list[str]:
    """The values of an element of a found object, as texts; none if it has none. A person's name in each script."""
    element = entry.get(f"{tag_for_keyword(keyword) or 0:08X}")
    found = element.get("Value") if isinstance(element, dict) else None
    told = [list(one.values()) if isinstance(one, dict) else [one] for one in found] if isinstance(found, list) else []
    return [str(one).strip("\0 ") for ones in told for one in ones]


def uid(entry: Entry, keyword: str) -> str:
    """A UID of a found object, which becomes a part of paths. NotGivenError if it is none: nobody writes elsewhere."""
    found = values(entry, keyword)
    if len(found) != 1 or not is_uid(found[0]):
        raise NotGivenError(f"names an object whose {keyword} is no UID")
    return found[0]


def is_uid(text: str) -> bool:
    """Whether this is a UID: digits and points, at most 64 of them."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _tls_fault(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return "TLS fails"
    return "its certificate has expired" if "has expired" in text else "nobody whom this machine trusts vouches for it"
