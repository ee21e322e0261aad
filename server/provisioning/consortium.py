"""The consortium file: who takes part, and where the server is reached. Strict; all faults are reported at once."""

from __future__ import annotations

import ipaddress
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedgraft.common.base.errors import StudyError
from fedgraft.common.config.config_files import describe, read_mapping
from fedgraft.common.identity.kit import HostName
from fedgraft.common.identity.roster import ConsortiumName, SiteName

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerEntry(BaseModel):
    """Where sites reach the server (`host`, `port`, further `names` in its certificate), and where it listens.

    `listen` is the loopback address unless a person says otherwise: then no other machine reaches the server.
    `listen_port` is `port` if not given; another one stands behind a proxy. `inner_port` is Flower's own, on loopback.
    `connections_per_address` is how many connections on which nothing was signed yet one address may hold: all sites
    behind a proxy have one address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: HostName
    port: Port = 8443
    names: tuple[str, ...] = ()
    listen: str = "127.0.0.1"
    listen_port: Port | None = None
    inner_port: Port = 8001
    connections_per_address: Annotated[int, Field(ge=8, le=4096)] = 64

    @property
    def says_where(self) -> str:
        """Where the server listens, in words, and who can reach it there."""
        place = f"{self.listen} port {self.listen_port or self.port}"
        if not _is_loopback(self.listen):
            return f"{place}: other machines can reach it"
        if self.listen_port is not None or _is_loopback(self.host):
            return f"{place}, the loopback address: only this machine reaches it"
        return (
            f"{place}, the loopback address: only this machine reaches it. For sites elsewhere, give `listen` in the "
            "consortium's file, such as 0.0.0.0 for all networks of this machine, and provision again"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Consortium(BaseModel):
    """All of a consortium file. `valid_days` is how long the server's certificate holds.

    `renewal_grace_hours` is how long a site's old keys hold beside the new ones that `server enrol` takes in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ConsortiumName
    """What the consortium is called."""
    server: ServerEntry
    """Where the server is."""
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    """The names of the sites."""
    valid_days: Annotated[int, Field(ge=1, le=825)] = 365
    renewal_grace_hours: Annotated[float, Field(ge=0, le=24 * 90)] = 72.0

    @field_validator("sites", mode="before")
    @classmethod
    def _plain_names(cls, sites: object) -> object:
        if isinstance(sites, list | tuple) and any(isinstance(site, dict) for site in sites):
            raise ValueError("list the sites' names alone; every site makes its own keys when it joins")
        return sites

    @model_validator(mode="after")
    def _names_differ(self) -> Consortium:
        # Kits are files, and some file systems do not tell upper from lower case.
        counts = Counter(site.lower() for site in self.sites)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"more than one site is called {', '.join(twice)}")
        return self


def read_consortium(path: Path) -> Consortium:
    """The consortium in a YAML file; StudyError lists every fault."""
    try:
        return Consortium.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error)) from None
