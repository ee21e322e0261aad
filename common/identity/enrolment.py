"""What a site sends to the coordinator: public halves of the keys that it made, and proof that it has the others."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json, write_json
from fedgraft.common.identity.codes import code_mac, same_mac
from fedgraft.common.identity.keys import (
    MaskingKey,
    NodeKey,
    load_masking_public,
    load_node_public,
    new_masking_key,
    new_node_key,
    public_pem,
    sign,
    signed,
)
from fedgraft.common.identity.roster import ConsortiumName, Member, SiteName
from fedgraft.common.secure_aggregation.mask_keys import sign_entry


@dataclass(frozen=True)
class SiteKeys:
    """A site's two private keys. They are made where the site is, and stay there."""

    node: NodeKey
    masking: MaskingKey

    @classmethod
    def new(cls) -> SiteKeys:
        """Fresh ones."""
        return cls(new_node_key(), new_masking_key())

    def member(self, site: str) -> Member:
        """The public halves, with the site's own signature over its mask key."""
        vouch = sign_entry(site, self.masking.public_key(), self.node).signature
        return Member(node=public_pem(self.node).decode(), masking=public_pem(self.masking).decode(), vouch=vouch)


class Enrolment(BaseModel):
    """A site's public keys, signed with the private half of `node`; `proof` is made with the site's code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: ConsortiumName
    site: SiteName
    member: Member
    signature: str = ""
    proof: str = ""

    def content(self) -> bytes:
        """What signature and proof are over."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature", "proof"}))

    def proves(self, code: str) -> bool:
        """Whether whoever wrote this knew `code`."""
        return same_mac(self.proof, self.proof_by(code))

    def proof_by(self, code: str) -> str:
        """The proof of somebody who knows `code`."""
        return code_mac(code, canonical_json(["fedgraft enrolment 1", self.consortium, self.site]), self.content())


def write_enrolment(path: Path, consortium: str, site: str, keys: SiteKeys, code: str) -> None:
    """Write a site's enrolment; nothing in it is secret."""
    plain = Enrolment(consortium=consortium, site=site, member=keys.member(site))
    signature = b64encode(sign(keys.node, plain.content())).decode()
    whole = plain.model_copy(update={"signature": signature, "proof": plain.proof_by(code)})
    write_json(path, whole.model_dump(mode="json"))


def read_enrolment(path: Path, sha256: str | None = None) -> Enrolment:
    """An enrolment whose signature is right; InputError otherwise, or if the file is not of this digest.

    Its proof is looked at by who knows the code.
    """
    try:
        found = Enrolment.model_validate(read_json(path, sha256))
        signature = b64decode(found.signature, validate=True)
        node, masking = found.member.node.encode(), found.member.masking.encode()
        content = found.content()
    except (ValidationError, ValueError):
        raise InputError(f"{path}: is no enrolment.", fix="Give the file that `fedgraft site join` wrote.") from None
    load_masking_public(masking, str(path))
    if not signed(load_node_public(node, str(path)), content, signature):
        raise InputError(f"{path}: its signature is not that of its own key.", fix="Ask the site to send it again.")
    return found
