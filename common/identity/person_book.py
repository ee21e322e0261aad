"""The persons of a site or a server: who they are, by their keys, and who vouched for whom. A file in its folder.

The first is added by whoever has the folder; each that follows is signed for by one who is in it already. Nobody is
ever deleted: who leaves gets an entry that says so, and that lists what stands of all that they had signed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import canonical_json, is_there, locked, read_json, write_json
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.persons import (
    Moment,
    PersonName,
    PublicKey,
    Signed,
    Signer,
    alike,
    demand_name,
    fingerprint_of,
    new_person_key,
    open_person_key,
    signed_by,
    words_digest,
)
from fedgraft.common.identity.ssh_agent import agent_key

BOOK = "persons.json"
"""The file's name."""
_KEYS = "persons"

Passphrase = Callable[[], str]
"""Asks for a passphrase, or reads it."""
Voucher = tuple[str, Passphrase]
"""Who signs for an entry of the book."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Person(Value):
    """One person. `vouched` is the signature of the one who added them; None for the first."""

    name: PersonName
    key: PublicKey
    place: Literal["file", "agent"]
    """Where the key is: in the folder, under a passphrase, or in the person's ssh-agent."""
    added: Moment
    vouched: Signed | None = None

    def words(self, first: str) -> dict[str, Any]:
        """What the one who adds them signs, for the book that begins with the entry of this digest and for no other."""
        return {"action": "add person", "person": self.name, "key": self.key, "at": self.added, "book": first}


class Removal(Value):
    """That a person is none of the book from here on, nor their key ever again.

    What they had signed stands by its digest (`words_digest`), since whoever has a key can sign any time under it.
    """

    removed: PersonName
    key: PublicKey
    at: Moment
    book: Digest
    """SHA-256 of all entries before: whoever came in by the person's signature must have been in by then."""
    stands: tuple[Digest, ...]
    by: Signed | None = None
    """The signature of the one who removed them; None if whoever has the folder did, without a person's key."""

    def words(self) -> dict[str, Any]:
        """What the one who removes them signs."""
        return {"action": "remove person", **self.model_dump(mode="json", exclude={"by"})}

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


Entry = Person | Removal
_Entries = TypeAdapter(tuple[Entry, ...])


class PersonBook:
    """The persons in the folder of a site or a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> tuple[Entry, ...]:
        """All that was ever written, in its order. InputError if one is not vouched for."""
        return _read(self.folder, _version(self.folder))

    def all(self) -> tuple[Person, ...]:
        """Those who are in it now, in the order in which they were added. InputError as above."""
        gone = {one.key for one in self.removals()}
        return tuple(one for one in self.entries() if isinstance(one, Person) and one.key not in gone)

    def first(self) -> str:
        """The digest of the first entry, by which those who vouch say which book they mean."""
        return _seal(self.entries()[:1])

    def removals(self) -> tuple[Removal, ...]:
        """Who was removed, in their order. InputError as above."""
        return tuple(one for one in self.entries() if isinstance(one, Removal))

    def removal_of(self, key: str) -> Removal | None:
        """How the owner of a key was removed; None if they were not."""
        return next((one for one in self.removals() if one.key == key), None)

    def named(self, name: str) -> Person | None:
        """The person of that name who is in it now; None if there is none."""
        return next((one for one in self.all() if one.name == name), None)

    def holds(self, signed: Signed | None, words: Mapping[str, Any]) -> bool:
        """Whether a person of this book has signed these words; if they were removed, whether that stands."""
        if signed is None or not any(_is_of(one, signed) for one in self.entries()) or not signed.holds(words):
            return False
        removal = self.removal_of(signed.key)
        return removal is None or words_digest(signed.name, words) in removal.stands

    def counts(self, signed: Signed | None, words: Mapping[str, Any], *, required: bool) -> bool:
        """Whether a decision counts: where a person's signature is `required`, one that holds, else none that does not.

        Where a name will do, that is one of a removed person that does not stand, and a damaged book takes none away.
        """
        try:
            if not required and (signed is None or self.removal_of(signed.key) is None):
                return True
            return self.holds(signed, words)
        except InputError:
            return not required

    def add_with_passphrase(self, name: str, passphrase: str, voucher: Voucher | None) -> Person:
        """A person with a new key in the folder; `voucher` names who adds them. InputError for a name that is there."""
        with locked(self.folder / BOOK):
            self._demand_new(name)
            key = new_person_key(self._key_file(name), passphrase)
            return self._add(name, key.public, "file", voucher)

    def add_from_agent(self, name: str, public: str, voucher: Voucher | None) -> Person:
        """A person whose key, of this public half, is in ssh-agent, which must sign now. InputError as above."""
        demand_name(name)
        made = signed_by(name, agent_key(public), {"action": "try"})
        if not made.holds({"action": "try"}):
            raise InputError(f"The key {fingerprint_of(public)} does not sign as its kind says.")
        with locked(self.folder / BOOK):
            self._demand_new(name)
            return self._add(name, public, "agent", voucher)

    def remove(
        self, name: str, stands: Iterable[str], voucher: Voucher | None, first: Callable[[Removal], None]
    ) -> Removal:
        """Put on record that a person is none of the book any more. InputError if there is none, or they sign it.

        `stands` are the digests of what they had signed and what goes on; without `voucher` whoever has the folder
        answers for it. `first` puts the removal where it cannot be lost, before the book has it.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with locked(self.folder / BOOK):
            person = self._person(name)
            if voucher is not None and voucher[0] == name:
                raise InputError(f"{name} cannot sign their own removal.", fix="Another person does: --by NAME.")
            removal = Removal(
                removed=name, key=person.key, at=at, book=_seal(self.entries()), stands=tuple(sorted({*stands}))
            )
            if voucher is not None:
                removal = removal.model_copy(update={"by": self.sign(*voucher, removal.words())})
            first(removal)
            self._append(removal)
        return removal

    def take_in(self, removal: Removal) -> bool:
        """Add a removal that is on record elsewhere; whether it follows what is in the book, as it must."""
        with locked(self.folder / BOOK):
            if removal.book != _seal(self.entries()):
                return False
            self._append(removal)
        return True

    def remove_again(self, removal: Removal) -> Removal:
        """Add one that was lost with entries before it, in nobody's name, since its signature is over those."""
        with locked(self.folder / BOOK):
            again = removal.model_copy(update={"book": _seal(self.entries()), "by": None})
            self._append(again)
        return again

    def sign(self, name: str, passphrase: Passphrase, words: Mapping[str, Any]) -> Signed:
        """A person's signature of these words. InputError if there is no such person, or they do not sign."""
        return signed_by(name, self._signer(name, passphrase), words)

    def _signer(self, name: str, passphrase: Passphrase) -> Signer:
        person = self._person(name)
        signer = (
            agent_key(person.key) if person.place == "agent" else open_person_key(self._key_file(name), passphrase())
        )
        if signer.public != person.key:
            raise InputError(f"{self._key_file(name)}: is not the key of {name}.")
        return signer

    def _person(self, name: str) -> Person:
        person = self.named(name)
        if person is None:
            known = ", ".join(one.name for one in self.all()) or "nobody"
            fix = f"There are: {known}. fedgraft person add NAME --home {self.folder}"
            raise InputError(f"{self.folder}: there is no person called {name}.", fix=fix)
        return person

    def _demand_new(self, name: str) -> None:
        demand_name(name)
        if like := [one.name for one in self.all() if alike(one.name) == alike(name)]:
            raise InputError(f"{self.folder}: there is a person called {like[0]} already.")

    def _add(self, name: str, public: str, place: Literal["file", "agent"], voucher: Voucher | None) -> Person:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        person = Person(name=name, key=public, place=place, added=at)
        if known := self.all():
            if voucher is None:
                fix = f"One of {', '.join(one.name for one in known)} adds them: --by NAME."
                raise InputError(f"{self.folder}: has persons, who vouch for others.", fix=fix)
            words = person.words(self.first())
            person = person.model_copy(update={"vouched": self.sign(*voucher, words)})
        self._append(person)
        return person

    def _append(self, entry: Entry) -> None:
        """Write the book with one entry more. InputError if it would not hold."""
        path, entries = self.folder / BOOK, (*self.entries(), entry)
        _demand_vouched(entries, path)
        write_json(path, [one.model_dump(mode="json") for one in entries], private=True)

    def _key_file(self, name: str) -> Path:
        return self.folder / _KEYS / f"{name}.key"


def _version(folder: Path) -> tuple[int, int, int]:
    try:
        facts = os.stat(f"{folder}/{BOOK}")  # noqa: PTH116 - asked for every instruction
    except OSError:
        return 0, 0, 0
    return facts.st_ino, facts.st_ctime_ns, facts.st_size


@lru_cache(maxsize=256)
def _read(folder: Path, _version: tuple[int, int, int]) -> tuple[Entry, ...]:
    path = folder / BOOK
    if not is_there(path):
        return ()
    try:
        entries = _Entries.validate_python(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: is damaged: {'; '.join(describe(error))}.", fix="Restore it.") from None
    _demand_vouched(entries, path)
    return entries


def _demand_vouched(entries: Sequence[Entry], path: Path) -> None:
    """InputError names the first entry that one who was in the book then has not signed for, or whose key was."""
    known: dict[str, str] = {}
    spent: dict[str, str] = {}  # whose a key is or was, by its fingerprint, since some can be spelt in several ways
    for number, entry in enumerate(entries):
        name = entry.name if isinstance(entry, Person) else entry.removed
        if isinstance(entry, Person):
            words = entry.words(_seal(entries[:1]))
            sound = (not known if entry.vouched is None else _vouches(entry.vouched, words, known)) and alike(
                name
            ) not in map(alike, known)
        else:
            sound = entry.book == _seal(entries[:number]) and (
                entry.by is None
                or (known.get(name) == entry.key and entry.by.name != name and _vouches(entry.by, entry.words(), known))
            )
        if not sound:
            what = name if isinstance(entry, Person) else f"the removal of {name}"
            raise InputError(f"{path}: nobody who was in it has signed for {what}.", fix="Restore it.")
        key = _fingerprint(entry.key, path)
        if isinstance(entry, Person):
            if key in spent:
                raise InputError(f"{path}: the key of {name} is or was the key of {spent[key]}.", fix="Take a new key.")
            known[name], spent[key] = entry.key, name
        else:
            known = {one: own for one, own in known.items() if own != entry.key}
            spent[key] = name


def _vouches(signed: Signed, words: Mapping[str, Any], known: Mapping[str, str]) -> bool:
    return known.get(signed.name) == signed.key and signed.holds(words)


def _is_of(entry: Entry, signed: Signed) -> bool:
    return isinstance(entry, Person) and (entry.name, entry.key) == (signed.name, signed.key)


def _fingerprint(key: str, path: Path) -> str:
    try:
        return fingerprint_of(key)
    except ValueError:
        raise InputError(f"{path}: holds a key that is none.", fix="Restore it.") from None


def _seal(entries: Sequence[Entry]) -> str:
    return hashlib.sha256(canonical_json([one.model_dump(mode="json") for one in entries])).hexdigest()
