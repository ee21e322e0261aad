"""What people did with a server or an authority: a chained file in its folder, signed where the folder has persons.

It says what the commands were asked to do, written before it is done. Whoever has the folder can do without the
commands, cut off the file's end, or write what nobody has signed, which then says so; nobody can put words that are
signed into another's mouth, or take a line out of the middle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, is_there, locked, sha256_file, write_atomic
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.author import Author, author
from fedgraft.common.identity.person_book import BOOK, Person, PersonBook, Removal
from fedgraft.common.identity.persons import Moment, PersonName, Signed, words_digest

ACTIONS = "actions.jsonl"
_FIRST = "0" * 64
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_CLOCK = timedelta(minutes=10)
"""So much a clock may be set back."""

ActionKind = Literal["ask", "run", "resume", "stop", "provision", "enrol", "revoke", "renew", "login", "remove person"]
_REMOVE: ActionKind = "remove person"
ByWhom = tuple[str | None, Path | None]
"""A name as it was typed, and the file of its passphrase."""
NOBODY: ByWhom = (None, None)


class Action(Value):
    """One thing that somebody did. `server` says by a digest whose log it is in, `previous` after which line."""

    seq: int
    at: Moment
    action: ActionKind
    about: dict[str, Any]
    server: _Hash
    previous: _Hash
    by: PersonName | Literal[""]
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

        InputError if the folder has or had persons and none of them signs, or file and book are not as they were.
        """
        with locked(self.path):
            known, book = self._whole(), PersonBook(self._folder)
            if faults := _removal_faults(known, book):
                fix = "Restore the newest book, or remove them again: `fedgraft server remove-person`."
                raise InputError(f"{self.path}: {faults[0]}.", fix=fix)
            signs = bool(book.all()) or any(line.signed is not None for line in known)
            self._add(known, author(self._folder, *by, required=signs), action, about)

    def remove_person(self, name: str, by: ByWhom) -> None:
        """Take a person's key out of use for ever; the lines that they have signed stand. Another person signs it.

        InputError if nobody else does, or there is no such person.
        """
        # Nobody signs a line meanwhile: it would be disowned.
        with locked(self.path):
            known, book = self._whole(), PersonBook(self._folder)
            who = author(self._folder, *by, required=True)
            signer = book.named(who.name) if who else None
            if signer is not None and signer.key in _removed(known):
                raise InputError(
                    f"{self.path}: {signer.name} was removed, and decides nothing here.", fix="--by another."
                )
            stands = _signed_until_removed(known, book.named(name))

            def first(removal: Removal) -> None:
                self._add(known, who, _REMOVE, {"person": removal.removed, "key": removal.key})

            book.remove(name, stands, (who.name, who.passphrase) if who else None, first)

    def _whole(self) -> tuple[Action, ...]:
        """All lines. InputError if they are not as they were written."""
        known = self.entries()
        if faults := _chain_faults(known, self._server()):
            raise InputError(f"{self.path}: {faults[0]}.", fix="Look with `fedgraft server actions`; restore it.")
        return known

    def _add(self, known: tuple[Action, ...], who: Author | None, action: ActionKind, about: Mapping[str, Any]) -> None:
        try:
            canonical_json(about)
        except ValueError:
            raise InputError(
                "A name that was given is no text, and cannot be written down.", fix="Rename it."
            ) from None
        line = Action(
            seq=len(known),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            action=action,
            about=dict(about),
            server=self._server(),
            previous=known[-1].hash if known else _FIRST,
            by="" if who is None else who.name,
            signed=None,
            hash="",
        )
        line = line.model_copy(update={"signed": None if who is None else who.sign(line.words())})
        line = line.model_copy(update={"hash": line.seal()})
        lines = [*(self.path.read_bytes().splitlines() if known else ()), canonical_json(line.model_dump(mode="json"))]
        write_atomic(self.path, b"".join(one + b"\n" for one in lines))

    def entries(self) -> tuple[Action, ...]:
        """All lines, believed or not. InputError for one that cannot be read."""
        if not is_there(self.path):
            return ()
        found = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                found.append(Action.model_validate(json.loads(line)))
                found[-1].words()  # which what JSON cannot hold has not
            except (ValidationError, ValueError, RecursionError) as error:
                why = "; ".join(describe(error)) if isinstance(error, ValidationError) else "is no JSON"
                raise InputError(f"{self.path}: line {number}: {why}.", fix="Restore it.") from None
        return tuple(found)

    def faults(self) -> list[str]:
        """What does not hold: lines that were changed, moved or taken out, and signatures that are nobody's here."""
        known, book = self.entries(), PersonBook(self._folder)
        faults = _chain_faults(known, self._server()) + _removal_faults(known, book) + _time_faults(known)
        first = next((one.added for one in book.entries() if isinstance(one, Person)), None)
        for line in known:
            if line.signed is None and first is not None and line.at > first:
                faults.append(f"line {line.seq + 1}: nobody has signed it, though there were persons")
            if line.signed is not None and not (line.signed.name == line.by and book.holds(line.signed, line.words())):
                faults.append(f"line {line.seq + 1}: {line.by}, as this folder knows them, has not signed it")
        return list(dict.fromkeys(faults))

    def _server(self) -> str:
        """Whose log this is: of the server or the authority, which have one certificate."""
        what = "server" if is_there(self._folder / "server.json") else "authority"
        try:
            return hashlib.sha256(f"{what} {sha256_file(self._folder / 'ca.crt')}".encode()).hexdigest()
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


def _time_faults(lines: tuple[Action, ...]) -> list[str]:
    """Lines that say that they are older than the one before: somebody, or a clock, has dated them back."""
    times = [datetime.fromisoformat(line.at) for line in lines]
    back = [number for number in range(1, len(times)) if times[number] < times[number - 1] - _CLOCK]
    return [f"line {number + 1}: says that it is older than the one before it" for number in back]


def _removal_faults(lines: tuple[Action, ...], book: PersonBook) -> list[str]:
    """Where log and book differ on who was removed: an older copy of one of them is there, or a command was killed."""
    log = _removed(lines)
    gone = {one.key: one.removed for one in book.removals()}
    lost = [line for key, line in log.items() if key not in gone]
    told = [f"line {one.seq + 1}: {one.about.get('person')} was removed, and {BOOK} does not have it" for one in lost]
    return told + [f"{BOOK} removes {name}, and no line does" for key, name in gone.items() if key not in log]


def _signed_until_removed(lines: tuple[Action, ...], person: Person | None) -> list[str]:
    """The digests of what a person has signed. If they were removed before, and the book has lost that: until then."""
    key = None if person is None else person.key
    until = None if (removal := _removed(lines).get(str(key))) is None else removal.seq
    own = [one for one in lines[:until] if one.signed is not None and one.signed.key == key]
    return [words_digest(one.by, one.words()) for one in own]


def _removed(lines: tuple[Action, ...]) -> dict[str, Action]:
    """The first line about each key that a person was removed with."""
    return {str(line.about.get("key")): line for line in reversed(lines) if line.action == _REMOVE}
