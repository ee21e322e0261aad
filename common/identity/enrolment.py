"""What a site that makes its own keys sends to the coordinator: public halves, with proof that it has the others."""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, read_json, write_json
from fedgraft.common.identity.keys import (
    MaskingKey,
    NodeKey,
    load_masking_public,
    load_node_public,
    public_pem,
    sign,
    signed,
)
from fedgraft.common.identity.roster import SiteName
from fedgraft.common.secure_aggregation.mask_keys import sign_entry


class Enrolment(BaseModel):
    """A site's public keys as PEM, signed with the private half of `node`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: str
    site: SiteName
    node: str
    masking: str
    vouch: str
    signature: str = ""

    def content(self) -> bytes:
        """What the signature is over."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))


def write_enrolment(path: Path, consortium: str, site: str, node: NodeKey, masking: MaskingKey) -> None:
    """Write a site's enrolment; nothing in it is secret."""
    plain = Enrolment(
        consortium=consortium,
        site=site,
        node=public_pem(node).decode(),
        masking=public_pem(masking).decode(),
        vouch=sign_entry(site, masking.public_key(), node).signature,
    )
    signature = b64encode(sign(node, plain.content())).decode()
    write_json(path, plain.model_copy(update={"signature": signature}).model_dump(mode="json"))


def read_enrolment(path: Path) -> Enrolment:
    """An enrolment whose signature is right; InputError otherwise."""
    try:
        found = Enrolment.model_validate(read_json(path))
        signature = b64decode(found.signature, validate=True)
        node, masking, content = found.node.encode(), found.masking.encode(), found.content()
    except (ValidationError, ValueError):
        raise InputError(f"{path}: is no enrolment.", fix="Give the file that `fedgraft site join` wrote.") from None
    load_masking_public(masking, str(path))
    if not signed(load_node_public(node, str(path)), content, signature):
        raise InputError(f"{path}: its signature is not that of its own key.", fix="Ask the site to send it again.")
    return found
