"""What people did with a server or an authority: a chained file in its folder, signed where the folder has persons.

It says what the commands were asked to do, written before it is done. Whoever has the folder can do without the
commands, or cut off the file's end; nobody can put words into another's mouth, or take a line out of the middle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, is_there, locked, sha256_file, write_atomic
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.author import author
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import Signed

ACTIONS = "actions.jsonl"
_FIRST = "0" * 64
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

ActionKind = Literal["ask", "run", "resume", "stop", "enrol", "revoke", "renew"]
ByWhom = tuple[str | None, Path | None]
"""A name as it was typed, and the file of its passphrase."""
NOBODY: ByWhom = (None, None)


class Action(Value):
    """One thing that somebody did. `server` is the digest of the authority's certificate, `previous` that of a line."""

    seq: int
    at: str
    action: ActionKind
    about: dict[str, Any]
    server: _Hash
    previous: _Hash
    by: str
    signed: Signed | None
    hash: str

    def words(self) -> dict[str, Any]:
        """What the person signs: for this server, at this place of its log, and nowhere else."""
        body = hashlib.sha256(canonical_json(self.about)).hexdigest()
        said = {"action": f"server {self.action}", "body": body, "at": self.at}
        return said | {"server": self.server, "seq": self.seq, "previous": self.previous}

    def seal(self) -> str:
        """The digest of all of the line."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"hash"}))).hexdigest()


class ActionLog:
    """The file in the folder of a server, or of an authority."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ACTIONS
        self._folder = folder

    def record(self, by: ByWhom, action: ActionKind, about: Mapping[str, Any]) -> None:
        """Write down what is about to be done, with the signature of who does it.

        InputError if the folder has persons and none of them signs, or the file is not as it was written.
        """
        server = self._server()
        with locked(self.path):
            known = self.entries()
            if faults := _chain_faults(known, server):
                raise InputError(f"{self.path}: {faults[0]}.", fix="Look with `fedgraft server actions`; restore it.")
            who = author(self._folder, *by, required=bool(PersonBook(self._folder).all()))
            line = Action(
                seq=len(known),
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                action=action,
                about=dict(about),
                server=server,
                previous=known[-1].hash if known else _FIRST,
                by="" if who is None else who.name,
                signed=None,
                hash="",
            )
            line = line.model_copy(update={"signed": None if who is None else who.sign(line.words())})
            line = line.model_copy(update={"hash": line.seal()})
            before = self.path.read_bytes() if known else b""
            write_atomic(self.path, before + canonical_json(line.model_dump(mode="json")) + b"\n")

    def entries(self) -> tuple[Action, ...]:
        """All lines, believed or not. InputError for one that cannot be read."""
        if not is_there(self.path):
            return ()
        found = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                found.append(Action.model_validate(json.loads(line)))
            except (ValidationError, ValueError, RecursionError) as error:
                why = "; ".join(describe(error)) if isinstance(error, ValidationError) else "is no JSON"
                raise InputError(f"{self.path}: line {number}: {why}.", fix="Restore it.") from None
        return tuple(found)

    def faults(self) -> list[str]:
        """What does not hold: lines that were changed, moved or taken out, and signatures that are nobody's here."""
        known, book = self.entries(), PersonBook(self._folder)
        faults = _chain_faults(known, self._server())
        for line in known:
            if line.signed is not None and not (line.signed.name == line.by and book.holds(line.signed, line.words())):
                faults.append(f"line {line.seq + 1}: {line.by}, as this folder knows them, has not signed it")
        return faults

    def _server(self) -> str:
        try:
            return sha256_file(self._folder / "ca.crt")
        except OSError as error:
            fix = "Make it with `fedgraft server provision`."
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}.", fix=fix) from None


def _chain_faults(lines: tuple[Action, ...], server: str) -> list[str]:
    faults, before, signed = [], _FIRST, False
    for number, line in enumerate(lines):
        if (line.seq, line.previous) != (number, before):
            faults.append(f"line {number + 1}: does not follow the one before it")
        elif line.seal() != line.hash:
            faults.append(f"line {number + 1}: is not as it was written")
        elif line.server != server:
            faults.append(f"line {number + 1}: is of another server")
        elif signed and line.signed is None:
            faults.append(f"line {number + 1}: nobody has signed it, though there were persons")
        before, signed = line.hash, signed or line.signed is not None
    return faults
