"""A start-up kit: one zip per site with all that it needs to join. Checksums show damage, the code shows forgery.

Nothing in a kit is secret: the certificate of the authority, the roster, and where the server is. Keys are made at the
site, which sends back their public halves. The code, which travels another way than the kit, authenticates both.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.identity.codes import code_mac, same_mac
from fedgraft.common.identity.roster import ConsortiumName, SiteName

FORMAT = 1
_SUMS, _MAC, _FACTS = "SHA256SUMS", "SHA256SUMS.mac", "kit.json"
_LARGEST_BYTES = 1 << 20


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9:.-]{1,253}$")]
"""A server's name or number."""


class KitFacts(BaseModel):
    """What a kit says about itself. `host` and `port` are where the site reaches the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    consortium: ConsortiumName
    site: SiteName
    host: HostName
    port: Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class Kit:
    """A kit whose checksums and code are right."""

    facts: KitFacts
    files: Mapping[str, bytes]


def write_kit(path: Path, facts: KitFacts, files: Mapping[str, bytes], code: str) -> None:
    """Write a kit, readable by its owner alone."""
    content = {_FACTS: facts.model_dump_json(indent=1).encode() + b"\n", **files}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(content.items())).encode()
    salt = secrets.token_bytes(16)
    content |= {_SUMS: sums, _MAC: f"{salt.hex()} {code_mac(code, salt, sums)}\n".encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    write_atomic(path, buffer.getvalue(), private=True)


def read_kit(path: Path, code: str) -> Kit:
    """The kit in a zip file, or in the folder it was unpacked to; InputError if it is damaged or forged."""
    content = _unpacked(path) if path.is_dir() else _zipped(path)
    again = "Ask the coordinator for the kit again."
    for name in (_FACTS, _SUMS, _MAC):
        if name not in content:
            raise InputError(f"{path}: is no kit: {name} is missing.", fix=again)
    salt, _, mac = content[_MAC].decode("ascii", "replace").strip().partition(" ")
    if not same_mac(mac, code_mac(code, _bytes(salt), content[_SUMS])):
        raise InputError(f"{path}: the code is not that of this kit, or the kit was changed.", fix=again)
    files = {name: data for name, data in content.items() if name not in (_SUMS, _MAC)}
    lines = [line.partition("  ") for line in content[_SUMS].decode("utf-8", "replace").splitlines()]
    sums = {name: digest for digest, _, name in lines}
    for name in sorted(sums.keys() | files.keys()):
        if name not in files or sums.get(name) != hashlib.sha256(files[name]).hexdigest():
            raise InputError(f"{path}: {name} is not what the kit's checksums say.", fix=again)
    try:
        facts = KitFacts.model_validate_json(files[_FACTS])
    except ValidationError:
        raise InputError(f"{path}: kit.json is not valid.", fix=again) from None
    if facts.format != FORMAT:
        raise InputError(f"{path}: is of format {facts.format}; this version reads format {FORMAT}.", fix=again)
    return Kit(facts, files)


def _zipped(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _LARGEST_BYTES:
                raise InputError(f"{path}: is too large for a kit.")
            return {member.filename: archive.read(member) for member in members}
    except InputError:
        raise
    except ENDS:
        raise
    except BaseException:  # a damaged archive meets any part of its reader, which was not written for that
        raise InputError(f"{path}: is no readable kit.", fix="Give the zip file that the coordinator sent.") from None


def _unpacked(folder: Path) -> dict[str, bytes]:
    try:
        files = [path for path in folder.iterdir() if path.is_file()]
        if sum(path.stat().st_size for path in files) > _LARGEST_BYTES:
            raise InputError(f"{folder}: is too large for a kit.")
        return {path.name: path.read_bytes() for path in files}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}.") from None


def _bytes(digits: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""
