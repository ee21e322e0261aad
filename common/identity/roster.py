"""Who is in the consortium, with public keys, signed by its authority: the file roster.json of every kit.

The authority vouches for who is in. For mask keys that is not enough, since the coordinator holds the authority: each
is signed by its site as well, and `mask_roster` gives these
entries to `secure_aggregation.mask_keys`, which believes no other.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json, write_json
from fedgraft.common.identity.keys import (
    NodeKey,
    load_masking_public,
    sign,
    signed,
)
from fedgraft.common.secure_aggregation.mask_keys import MaskKeyEntry, SignedRoster

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A site's name; also the name of its kit and folder."""

ConsortiumName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
"""A consortium's name. Sites print it beside their fingerprint, so it must not look like one."""


class Member(BaseModel):
    """A site's public keys as PEM, and its own signature (hex) over its mask key, as `mask_keys` wants it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    masking: str
    vouch: str


class Membership(BaseModel):
    """All members that are not revoked. A roster with a higher `serial` replaces one with a lower."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: ConsortiumName
    serial: Annotated[int, Field(ge=1)]
    members: dict[SiteName, Member]
    signature: str = ""

    def signed_by(self, key: NodeKey) -> Membership:
        """The roster with a signature of the authority."""
        return self.model_copy(update={"signature": b64encode(sign(key, self._content())).decode()})

    def check(self, authority: x509.Certificate, source: str) -> None:
        """InputError unless the authority of this certificate signed this very roster."""
        public = authority.public_key()
        try:
            signature = b64decode(self.signature, validate=True)
        except ValueError:
            signature = b""
        if not isinstance(public, ec.EllipticCurvePublicKey) or not signed(public, self._content(), signature):
            raise InputError(f"{source}: is not signed by the consortium's authority.", fix="Ask for the kit again.")

    def identities(self) -> dict[str, str]:
        """The keys that say who the members are."""
        return {name: member.node for name, member in self.members.items()}

    def write(self, path: Path) -> None:
        """Write it as JSON, as `read_membership` takes it."""
        write_json(path, self.model_dump(mode="json"))

    def _content(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))


def mask_roster(members: Mapping[str, Member]) -> SignedRoster:
    """These members' mask keys with their own signatures."""
    return SignedRoster(
        entries=tuple(
            MaskKeyEntry(site=name, key=_raw(name, member.masking), signature=member.vouch)
            for name, member in members.items()
        )
    )


def _raw(site: str, masking: str) -> str:
    return load_masking_public(masking.encode(), site).public_bytes_raw().hex()


def read_membership(path: Path, authority: x509.Certificate) -> Membership:
    """The roster in a file; InputError if it is none, or not signed by the authority."""
    roster = parse_membership(read_json(path), str(path))
    roster.check(authority, str(path))
    return roster


def parse_membership(content: Any, source: str) -> Membership:
    """The roster in the content of a file, whoever signed it; InputError if it is none."""
    try:
        roster = Membership.model_validate(content)
        mask_roster(roster.members)  # what a member signed must be of the form that sites mask by
        canonical_json(roster.model_dump(mode="json"))  # what is half a letter cannot be signed, nor written
    except (ValidationError, UnicodeError):
        raise InputError(f"{source}: is no roster.", fix="Ask the coordinator for the newest roster.json.") from None
    return roster
