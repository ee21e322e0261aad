"""Whose mask key is whose: a roster of X25519 keys, each signed by its site and checked against pinned identities.

The coordinator is no authority here. A site takes another's mask key only if the identity key that it pinned at
onboarding has signed it, so that nobody on the way can put a key of their own in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import Field

from fedgraft.common.base.errors import RosterError
from fedgraft.common.base.files import canonical_json
from fedgraft.common.base.value import Value

Identity = Ed25519PrivateKey | EllipticCurvePrivateKey
"""A site's own long-lived key: that of its Flower SuperNode (an elliptic curve), or Ed25519."""

_ASK = "Ask that site for its roster entry and identity key again, by another way than through the coordinator."


class MaskKeyEntry(Value):
    """A site's mask key (32 bytes, hex) with the site's signature (hex) over both its name and the key."""

    site: str
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^([0-9a-f]{2})+$")


class SignedRoster(Value):
    """The content of a roster file. Nothing in it is secret; nothing in it is believed without a pinned identity."""

    entries: tuple[MaskKeyEntry, ...]


@dataclass(frozen=True)
class Roster:
    """Mask keys by site, each known to be that site's."""

    keys: Mapping[str, bytes]

    def key(self, site: str) -> bytes:
        """The mask key of a site. RosterError if it is not on the roster."""
        if site not in self.keys:
            raise RosterError(f"There is no site called {site!r} on the roster.", fix=_ASK)
        return self.keys[site]


def sign_entry(site: str, key: X25519PublicKey, identity: Identity) -> MaskKeyEntry:
    """A site's entry of the roster, signed with its identity key."""
    raw = key.public_bytes_raw()
    statement = _statement(site, raw.hex())
    if isinstance(identity, Ed25519PrivateKey):
        signature = identity.sign(statement)
    else:
        signature = identity.sign(statement, ECDSA(hashes.SHA256()))
    return MaskKeyEntry(site=site, key=raw.hex(), signature=signature.hex())


def verified(entries: Iterable[MaskKeyEntry], identities: Mapping[str, str]) -> Roster:
    """The roster in `entries`, after each was checked against `identities`, the pinned public keys in PEM by site.

    RosterError for a site without pinned identity, a signature that is not that site's, or two entries with one name,
    one mask key or one identity.
    """
    keys: dict[str, bytes] = {}
    seen: dict[bytes, str] = {}
    for entry in entries:
        if entry.site in keys:
            raise RosterError(f"The roster has two entries for {entry.site!r}.", fix=_ASK)
        if entry.site not in identities:
            raise RosterError(f"The roster names {entry.site!r}, whose identity was never pinned here.", fix=_ASK)
        identity = _public(entry.site, identities[entry.site])
        _check(entry, identity)
        raw = bytes.fromhex(entry.key)
        for one in (raw, identity.public_bytes(serialization.Encoding.DER, _SPKI)):
            if seen.setdefault(one, entry.site) != entry.site:
                raise RosterError(f"{seen[one]!r} and {entry.site!r} have one key: they must be two sites.", fix=_ASK)
        keys[entry.site] = raw
    return Roster(keys)


class Pairs:
    """One site's half of the secrets that it shares with each other site of the roster."""

    def __init__(self, site: str, private: X25519PrivateKey, roster: Roster) -> None:
        """RosterError if `private` is not the key that the roster has for `site`."""
        self.site = site
        self.roster = roster
        self._private = private
        self._secrets: dict[str, bytes] = {}
        if roster.keys.get(site) != private.public_key().public_bytes_raw():
            raise RosterError(
                f"The roster has another mask key for {site!r} than this site holds.",
                fix="Send the consortium a new roster entry, or restore the key.",
            )

    def secret(self, other: str) -> bytes:
        """The 32 bytes that only this site and `other` can work out. RosterError if the roster has no such site."""
        if other not in self._secrets:
            key = X25519PublicKey.from_public_bytes(self.roster.key(other))
            try:
                self._secrets[other] = self._private.exchange(key)
            except ValueError:  # a point of low order, whose secret everybody knows
                raise RosterError(f"The mask key of {other!r} is none.", fix=_ASK) from None
        return self._secrets[other]


_SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def _statement(site: str, key: str) -> bytes:
    return canonical_json(["fedgraft mask key 1", site, key])


def _public(site: str, pem: str) -> Ed25519PublicKey | EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
        raise RosterError(f"The pinned identity of {site!r} is no public key of an elliptic curve in PEM.", fix=_ASK)
    return key


def _check(entry: MaskKeyEntry, identity: Ed25519PublicKey | EllipticCurvePublicKey) -> None:
    statement, signature = _statement(entry.site, entry.key), bytes.fromhex(entry.signature)
    try:
        if isinstance(identity, Ed25519PublicKey):
            identity.verify(signature, statement)
        else:
            identity.verify(signature, statement, ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise RosterError(f"The mask key of {entry.site!r} was not signed by that site.", fix=_ASK) from None
