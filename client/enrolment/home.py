"""A site's folder: what it joined with, what it approved, and its configuration. Nothing of it ever leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import home, is_there, read_json, write_json
from fedgraft.common.identity.keys import (
    MaskingKey,
    NodeKey,
    load_certificate,
    load_masking_key,
    load_node_key,
)
from fedgraft.common.identity.kit import HostName
from fedgraft.common.identity.roster import ConsortiumName, Membership, SiteName, read_membership

_FIX = "Join first: `fedgraft site join KIT`."


class Joined(BaseModel):
    """The consortium that a site joined, and where its server is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: ConsortiumName
    site: SiteName
    host: HostName
    port: Annotated[int, Field(ge=1, le=65535)]


class SiteHome:
    """Paths and small files of a site's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config = self.path / "site.yaml"
        self.authority = self.path / "ca.crt"
        self.roster_file = self.path / "roster.json"
        self.node_file = self.path / "node.key"
        self.masking_file = self.path / "masking.key"
        self.secure_aggregation_file = self.path / "masks.json"
        self.state = self.path / "state"
        self.cache = self.path / "cache"
        self._joined = self.path / "joined.json"

    @property
    def has_joined(self) -> bool:
        """Whether a site has joined here, be what was written of it readable or not."""
        return is_there(self._joined)

    def joined(self) -> Joined:
        """Which consortium this is; InputError if the site joined none."""
        if not self._joined.is_file():
            raise InputError(f"{self.path}: no site has joined here.", fix=_FIX)
        try:
            return Joined.model_validate(read_json(self._joined))
        except ValidationError:
            raise InputError(f"{self._joined}: is not valid.", fix=_FIX) from None

    def write_joined(self, joined: Joined) -> None:
        """Write which consortium this is: the last file of joining."""
        write_json(self._joined, joined.model_dump(mode="json"), private=True)

    def node_key(self) -> NodeKey:
        """The private key that signs the site's requests; InputError if the file is missing or damaged."""
        return load_node_key(_bytes(self.node_file), str(self.node_file))

    def masking_key(self) -> MaskingKey:
        """The key that masks are agreed on with."""
        return load_masking_key(_bytes(self.masking_file), str(self.masking_file))

    def roster(self) -> Membership:
        """The consortium's members, as its authority signed them."""
        return read_membership(self.roster_file, load_certificate(self.authority))


def default_home() -> Path:
    """Where a site is if nobody says otherwise."""
    return home() / "site"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.", fix=_FIX) from None
