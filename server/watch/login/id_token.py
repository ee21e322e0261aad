"""What a sign-on service says of who has logged in: an ID token, as OpenID Connect Core 1.0 has it in part 3.1.3.7."""

from __future__ import annotations

import hmac
import json
import time
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

_SKEW_S = 60.0
"""So much clocks may differ."""
_OLDEST_S = 600.0
_SHORTEST_BITS = 2048


class SignOnError(Exception):
    """Why nobody was let in: for the log. It holds nothing that a service or a browser has said."""


@dataclass(frozen=True)
class WantedToken:
    """Of whom a token must be, for whom, and for which login: `nonce` was made for that one alone."""

    issuer: str
    client_id: str
    nonce: str


def checked_claims(token: str, keys: Any, wanted: WantedToken) -> dict[str, Any]:
    """The claims of a token that is signed with one of the service's `keys` (a JWK set). SignOnError for any other."""
    try:
        head, body, signature = token.split(".")
        header, claims, signed = json.loads(_bytes(head)), json.loads(_bytes(body)), _bytes(signature)
    except (ValueError, RecursionError):
        raise SignOnError("what came is no token") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise SignOnError("what came is no token")
    # The one way that every service has. What a token says of itself chooses no other: `none`, or an HMAC by a key
    # that everybody knows.
    if header.get("alg") != "RS256" or "crit" in header:
        raise SignOnError("the token is not signed with RS256")
    try:
        _key(keys, header.get("kid")).verify(signed, f"{head}.{body}".encode(), PKCS1v15(), SHA256())
    except InvalidSignature:
        raise SignOnError("the token's signature is not the service's") from None
    if fault := _fault(claims, wanted):
        raise SignOnError(fault)
    return claims


def _fault(claims: dict[str, Any], wanted: WantedToken) -> str:
    now, audience = time.time(), claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    ends, made, nonce = _time(claims, "exp"), _time(claims, "iat"), claims.get("nonce")
    if claims.get("iss") != wanted.issuer:
        return "the token is of another service"
    # Of several, each of which could hand it on, only who asked for it.
    if wanted.client_id not in audiences or claims.get("azp", wanted.client_id if len(audiences) == 1 else None) != (
        wanted.client_id
    ):
        return "the token is for another program"
    if ends is None or not ends > now - _SKEW_S:  # not a number is no time
        return "the token's time is over"
    if made is None or not now - _OLDEST_S <= made <= now + _SKEW_S:
        return "the token was not made just now"
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(errors="replace"), wanted.nonce.encode()):
        return "the token is of another login"
    return ""


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _key(keys: Any, name: Any) -> RSAPublicKey:
    """The one key of that name, or the only one if the token names none."""
    listed = keys.get("keys") if isinstance(keys, dict) else None
    found = [
        key
        for key in (listed if isinstance(listed, list) else [])
        if isinstance(key, dict)
        and (key.get("kty"), key.get("use", "sig"), key.get("alg", "RS256")) == ("RSA", "sig", "RS256")
        and name in (None, key.get("kid"))
    ]
    if len(found) != 1:
        raise SignOnError("the service has no such key")
    try:
        e, n = (int.from_bytes(_bytes(found[0][part])) for part in ("e", "n"))
        public = RSAPublicNumbers(e, n).public_key()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SignOnError("the service's key is none") from None
    if public.key_size < _SHORTEST_BITS:
        raise SignOnError("the service's key is short")
    return public


def _bytes(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
