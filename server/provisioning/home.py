"""The server's folder: certificates, who may connect, and what the running server keeps. It holds no authority."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json, write_atomic, write_json
from fedgraft.common.base.locking import try_lock
from fedgraft.common.identity.expiry import WARN_DAYS, left
from fedgraft.common.identity.keys import load_certificate
from fedgraft.common.identity.roster import ConsortiumName, SiteName
from fedgraft.server.provisioning.consortium import ServerEntry

_FIX = "Make it with `fedgraft server provision`."


class OldKey(BaseModel):
    """A public key that was renewed, and the moment (UTC) from which the server refuses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    until: AwareDatetime


class Enrolled(BaseModel):
    """A site as the server knows it: the public key it signs with, and since when it is not welcome any more.

    `old` are keys that it had before, which hold until it has had time to take over the new one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    revoked: str | None = None
    old: tuple[OldKey, ...] = ()

    def valid_keys(self) -> tuple[str, ...]:
        """The public keys that may connect now, the newest first."""
        if self.revoked is not None:
            return ()
        now = datetime.now(UTC)
        return (self.node, *(key.node for key in self.old if now < key.until))

    def renewed(self, node: str, grace: timedelta) -> Enrolled:
        """The same site with another key; the one that it had holds for so long. None of a site that was revoked."""
        if node == self.node:
            return Enrolled(node=node, old=self.old)
        now = datetime.now(UTC)
        had = () if self.revoked is not None else (*self.old, OldKey(node=self.node, until=now + grace))
        return Enrolled(node=node, old=tuple(key for key in had if now < key.until and key.node != node))


class ServerFacts(BaseModel):
    """What provisioning fixed: the consortium's name, and where sites reach its server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: ConsortiumName
    server: ServerEntry


class ServerHome:
    """Paths and small files of a server's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.authority = self.path / "ca.crt"
        self.gate = (self.path / "gate.crt", self.path / "gate.key")
        self.inner = (self.path / "inner.crt", self.path / "inner.key")
        self.secret = self.path / "secret.bin"
        self.database = self.path / "state.db"
        self.bodies = self.path / "bodies"
        self.logs = self.path / "logs"
        self.flower = self.path / "flower"
        self.studies = self.path / "studies"

    def facts(self) -> ServerFacts:
        """What the server is; InputError if the folder holds none."""
        source = self.path / "server.json"
        if not source.is_file():
            raise InputError(f"{self.path}: is no server's folder.", fix=f"Give it with --home. {_FIX}")
        try:
            return ServerFacts.model_validate(read_json(source))
        except ValidationError:
            raise InputError(f"{source}: is not valid.", fix=_FIX) from None

    def write_facts(self, facts: ServerFacts) -> None:
        """Write what the server is, and the secret that its own processes share."""
        write_json(self.path / "server.json", facts.model_dump(mode="json"))
        if not self.secret.exists():
            write_atomic(self.secret, secrets.token_bytes(32), private=True)

    def sites(self) -> dict[SiteName, Enrolled]:
        """All sites that were ever enrolled with a key."""
        source = self.path / "sites.json"
        if not is_there(source):
            return {}
        try:
            return {name: Enrolled.model_validate(entry) for name, entry in read_json(source).items()}
        except (ValidationError, AttributeError):
            raise InputError(f"{source}: is not valid.", fix=_FIX) from None

    def write_sites(self, sites: Mapping[SiteName, Enrolled]) -> None:
        """Replace the list; a running server takes it over within seconds."""
        content = {name: entry.model_dump(mode="json") for name, entry in sorted(sites.items())}
        write_json(self.path / "sites.json", content, private=True)

    def process(self) -> int:
        """The running server's process number; InputError if none runs."""
        with (self.path / "lock").open("a+", encoding="ascii") as lock:
            if not try_lock(lock):
                lock.seek(0)
                return _number(lock.read(), self.path / "lock")
        raise InputError(f"The server of {self.path} does not run.")

    def lock(self) -> IO[str]:
        """Say that this process is the server of this folder, as long as the file is open; InputError if one is."""
        lock = (self.path / "lock").open("a+", encoding="ascii")
        if not try_lock(lock):
            lock.close()
            raise InputError(f"The server of {self.path} runs already.", fix="Stop that one first.")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def check_certificates(self) -> None:
        """InputError unless the server's certificates are there, each with its key, and have not expired."""
        load_certificate(self.authority)
        if over := expired(self):
            raise InputError(f"{self.path}: {over[0]}")
        for certificate, key in (self.gate, self.inner):
            load_certificate(certificate)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
            except (OSError, ValueError):  # an SSLError is an OSError that names no file
                fix = "Make both anew with `fedgraft server renew`."
                raise InputError(f"{key}: is not the key of {certificate.name}.", fix=fix) from None

    def found_database(self) -> None:
        """Make Flower's database, if there is none yet, with the largest pages: models come in pieces of 5 MiB."""
        if not self.database.exists():
            with contextlib.closing(sqlite3.connect(self.database)) as database:
                database.execute("PRAGMA page_size = 65536")
                database.execute("VACUUM")  # writes the file's first page, and with it their size

    def admitted(self) -> dict[str, str]:
        """Public key to name, of all sites that may connect."""
        return {key: name for name, entry in self.sites().items() for key in entry.valid_keys()}


_RENEW = "Make it anew with `fedgraft server renew` and start the server again; sites wait meanwhile."
_NEW_AUTHORITY = "It is the consortium's own authority: a new consortium takes its place."


def _number(text: str, source: Path) -> int:
    if not text.isdecimal():
        raise InputError(f"{source}: does not name the server's process.", fix="Stop the server by hand.")
    return int(text)


def today() -> str:
    """Now in UTC to the second, as ISO 8601: "2026-01-31T12:00:00+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def expired(home: ServerHome) -> list[str]:
    """A line for each certificate of the server that has expired."""
    now = datetime.now(UTC)
    return [
        f"{path.name} expired on {expires(path):%Y-%m-%d}. {fix}" for path, fix in _renewed(home) if expires(path) < now
    ]


def soon_to_end(home: ServerHome) -> list[str]:
    """A line for each certificate of the server that has expired, or is good for less than thirty days."""
    found, now = expired(home), datetime.now(UTC)
    for path, fix in _renewed(home):
        days = (expires(path) - now).total_seconds() / 86400
        if 0 <= days < WARN_DAYS:
            found.append(f"{path.name} is good for {left(days)}, until {expires(path):%Y-%m-%d}. {fix}")
    return found


def _renewed(home: ServerHome) -> list[tuple[Path, str]]:
    """The server's certificates, and how each is made anew."""
    return [(home.gate[0], _RENEW), (home.inner[0], _RENEW), (home.authority, _NEW_AUTHORITY)]


def expires(path: Path) -> datetime:
    """When the certificate in this PEM file ends, in UTC."""
    return load_certificate(path).not_valid_after_utc
