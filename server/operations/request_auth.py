"""Who may pass the gate: a known key, a fresh signature that was never seen before, and not too often."""

from __future__ import annotations

import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

_OLDEST_S, _NEWEST_S = 300.0, 5.0
"""Flower's own window for the age of a signature: a site's clock may be so much behind, or ahead."""

_REMEMBERED = 1 << 18
KEY, _STAMP, _SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"


class AuthVerdict(Enum):
    """What becomes of a request, as an HTTP status."""

    PASS = 200
    UNKNOWN = 401
    TOO_OFTEN = 429


class Bucket:
    """So many requests at once, and so many a second in the long run, for each of many senders."""

    def __init__(self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._senders: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, sender: str) -> bool:
        """Whether this sender may do it once more, now."""
        now = self._clock()
        left, since = self._senders.pop(sender, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._per_s)
        self._senders[sender] = (left - 1.0 if left >= 1.0 else left, now)
        if len(self._senders) > _REMEMBERED:
            self._senders.popitem(last=False)
        return left >= 1.0


class RequestAuth:
    """Judges requests by their headers, before anything of their bodies is read.

    `admitted` gives the public keys (PEM) that may pass, with their owners' names. The signature is Flower's: over the
    timestamp alone. Flower checks it too, but accepts it again and again; here a timestamp counts once per key.
    """

    def __init__(
        self,
        admitted: Callable[[], Mapping[str, str]],
        known: Bucket | None = None,
        strangers: Bucket | None = None,
    ) -> None:
        self._admitted = admitted
        self._known = known or Bucket(burst=400, per_s=60)
        self._strangers = strangers or Bucket(burst=30, per_s=1)
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()

    def judge(self, headers: Mapping[bytes, bytes], address: str) -> AuthVerdict:
        """What becomes of a request with these headers that came from `address`."""
        name = self._signer(headers)
        if not name:
            # Strangers are counted by address, so that they use up nobody's share but their own.
            return AuthVerdict.UNKNOWN if self._strangers.take(address) else AuthVerdict.TOO_OFTEN
        return AuthVerdict.PASS if self._known.take(name) else AuthVerdict.TOO_OFTEN

    def name(self, headers: Mapping[bytes, bytes]) -> str:
        """Whose key a request that passed was signed with."""
        return self._admitted().get(b64decode(headers[KEY]).decode("ascii"), "")

    def one_more(self, name: str) -> bool:
        """Whether a known site may send or have one piece more: each counts as much as a request."""
        return self._known.take(name)

    def stranger(self, address: str) -> bool:
        """Whether an unsigned request from `address` may have an answer."""
        return self._strangers.take(address)

    def _signer(self, headers: Mapping[bytes, bytes]) -> str:
        try:
            pem = b64decode(headers[KEY], validate=True).decode("ascii")
            signature = b64decode(headers[_SIGNATURE], validate=True)
            stamp = headers[_STAMP].decode("ascii")
            age_s = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
        except (KeyError, ValueError, TypeError):
            return ""
        name = self._admitted().get(pem, "")
        if not name or not -_NEWEST_S < age_s < _OLDEST_S + _NEWEST_S or (pem, stamp) in self._seen:
            return ""
        try:
            self._key(pem).verify(signature, stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return ""
        self._remember((pem, stamp))
        return name

    def _key(self, pem: str) -> ec.EllipticCurvePublicKey:
        if pem not in self._keys:
            key = load_pem_public_key(pem.encode("ascii"))
            assert isinstance(key, ec.EllipticCurvePublicKey)
            self._keys[pem] = key
        return self._keys[pem]

    def _remember(self, used: tuple[str, str]) -> None:
        now = time.monotonic()
        self._seen[used] = now
        for old, when in list(self._seen.items())[:2]:
            if now - when > _OLDEST_S + 2 * _NEWEST_S:
                del self._seen[old]
