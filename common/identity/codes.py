"""Enrolment codes: what a coordinator tells a site once, another way than the kit. A code opens nothing.

With it the site sees that its kit is unchanged, and the coordinator sees that the keys that come back are the site's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_code() -> str:
    """118 random bits in six groups, without letters that look alike."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(6))


def code_mac(code: str, salt: bytes, message: bytes) -> str:
    """What only somebody with the code can work out for `message`, as hex digits; `salt` says what it is for."""
    key = Scrypt(salt=salt, length=32, n=2**14, r=8, p=1).derive(code.encode("utf-8", "surrogateescape"))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def same_mac(one: str, other: str) -> bool:
    """Whether two of them are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(one.encode(), other.encode())
