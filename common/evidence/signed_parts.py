"""A document of named parts, each sealed with the hash of the one before and signed with the site's key.

The first part, `head`, names the site, its key and all parts that follow, so that none can be changed, exchanged with
that of another document, left out or added without being named. Who the key belongs to is for people to say: by its
fingerprint, or a roster that they trust.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json
from fedgraft.common.identity.keys import NodeKey, fingerprint, load_node_public, public_pem, sign, signed

HEAD = "head"
_FIRST = "0" * 64
Kind = Literal["audit", "passport", "release_audit"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SignedPart(BaseModel):
    """One part: its content, the seal of the one before, its own seal (SHA-256 of all three), and a signature of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(max_length=64)]
    content: dict[str, Any]
    previous: Hash
    seal: Hash
    signature: str

    def right_seal(self) -> str:
        """The seal that name, content and the part before ask for, 64 hex digits."""
        return hashlib.sha256(canonical_json([self.name, self.content, self.previous])).hexdigest()


class SignedHead(BaseModel):
    """What the first part says: who signs what kind of document, of which study, and which parts follow.

    `identity` is "consortium" for the key that the site joined with, "drawn" for one made for this site alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Kind
    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$")]
    study: Hash
    made: str
    key: str
    identity: Literal["consortium", "drawn"]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A document as it was read, believed or not: ask `faults` first."""

    source: str
    parts: tuple[SignedPart, ...]

    def content(self, name: str) -> dict[str, Any]:
        """What a part says; nothing if there is none of that name."""
        return next((part.content for part in self.parts if part.name == name), {})

    def head(self) -> SignedHead:
        """Who signed what; InputError if the first part does not say so."""
        try:
            return SignedHead.model_validate(self.content(HEAD))
        except ValidationError:
            raise InputError(
                f"{self.source}: its head does not say who signed what.", fix="Ask the site again."
            ) from None

    def fingerprint(self) -> str:
        """The fingerprint of the key that it says it is signed with."""
        key = self.head().key
        load_node_public(key.encode(), self.source)
        return fingerprint(key)

    def plain(self) -> dict[str, Any]:
        """The document as JSON has it."""
        return {"fedgraft_evidence": 1, "parts": [part.model_dump(mode="json") for part in self.parts]}

    def faults(self) -> tuple[str, ...]:
        """What was changed, part by part, in words; none if all of it is as the owner of the key signed it."""
        if not self.parts or self.parts[0].name != HEAD:
            return ("part head is missing",)
        try:
            head = self.head()
            public = load_node_public(head.key.encode(), self.source)
        except (InputError, UnicodeError):
            return ("part head was changed: it names no site, key and parts",)
        found = []
        names, expected = [part.name for part in self.parts], [HEAD, *head.parts]
        found += [f"part {name} is missing" for name in expected if name not in names]
        found += [f"part {name} was added" for name in names if name not in expected]
        if not found and names != expected:
            found.append(f"parts are not in their order, which is {', '.join(expected)}")
        before = _FIRST
        for part in self.parts:
            if fault := _fault(part, public):
                found.append(f"part {part.name} {fault}")
            elif part.previous != before:
                found.append(f"part {part.name} does not follow the part before it, or is of another document")
            before = part.seal
        return tuple(found)


def signed_document(head: SignedHead, parts: Mapping[str, Mapping[str, Any]], key: NodeKey) -> Document:
    """The document with these parts in their order; `head.parts` are their names, `head.key` is the public half."""
    assert head.parts == tuple(parts)
    assert head.key == public_pem(key).decode()
    chain: list[SignedPart] = []
    before = _FIRST
    for name, content in {HEAD: head.model_dump(mode="json"), **parts}.items():
        bare = SignedPart(name=name, content=dict(content), previous=before, seal=_FIRST, signature="")
        before = bare.right_seal()
        signature = b64encode(sign(key, _signed_words(before))).decode()
        chain.append(bare.model_copy(update={"seal": before, "signature": signature}))
    return Document("", tuple(chain))


def read_document(path: Path) -> Document:
    """The document in a file, not checked yet; InputError if it is none."""
    return parse_document(read_json(path), str(path))


def parse_document(content: Any, source: str) -> Document:
    """The document in the content of a file; InputError names `source` if it is none."""
    try:
        match content:
            case {"fedgraft_evidence": 1, "parts": list() as parts}:
                return Document(source, tuple(map(SignedPart.model_validate, parts)))
    except ValidationError:
        pass
    fix = "Give the file that `fedgraft site audit` or `fedgraft site passport` wrote."
    raise InputError(f"{source}: is no audit sheet and no passport.", fix=fix)


def _signed_words(seal: str) -> bytes:
    """What a signature is over: nothing else that the key signs begins so."""
    return b"fedgraft evidence 1 " + seal.encode()


def _fault(part: SignedPart, public: ec.EllipticCurvePublicKey) -> str:
    try:
        sealed = part.seal == part.right_seal()
        signature = b64decode(part.signature, validate=True)
    except (ValueError, UnicodeError):
        return "was changed"
    if not sealed:
        return "was changed"
    return "" if signed(public, _signed_words(part.seal), signature) else "is not signed with the site's key"
