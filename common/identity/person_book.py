"""The persons of a site or a server: who they are, by their keys, and who vouched for whom. A file in its folder.

The first is added by whoever has the folder; each that follows is signed for by one who is in it already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, locked, read_json, write_json
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.persons import (
    PersonName,
    PublicKey,
    Signed,
    Signer,
    fingerprint_of,
    new_person_key,
    open_person_key,
    signed_by,
)
from fedgraft.common.identity.ssh_agent import agent_key

_FILE, _KEYS = "persons.json", "persons"

Passphrase = Callable[[], str]
"""Asks for a passphrase, or reads it."""


class Person(Value):
    """One person. `vouched` is the signature of the one who added them; None for the first."""

    name: PersonName
    key: PublicKey
    place: Literal["file", "agent"]
    """Where the key is: in the folder, under a passphrase, or in the person's ssh-agent."""
    added: str
    vouched: Signed | None = None

    def words(self) -> dict[str, Any]:
        """What the one who adds them signs."""
        return {"action": "add person", "person": self.name, "key": self.key, "at": self.added}


_Persons = TypeAdapter(tuple[Person, ...])


class PersonBook:
    """The persons in the folder of a site or a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> tuple[Person, ...]:
        """All of them, in the order in which they were added. InputError if one is not vouched for."""
        return _read(self.folder, _version(self.folder))

    def named(self, name: str) -> Person | None:
        """The person of that name; None if there is none."""
        return next((one for one in self.all() if one.name == name), None)

    def holds(self, signed: Signed | None, words: Mapping[str, Any]) -> bool:
        """Whether a person of this book has signed these words."""
        if signed is None:
            return False
        known = self.named(signed.name)
        return known is not None and known.key == signed.key and signed.holds(words)

    def add_with_passphrase(self, name: str, passphrase: str, voucher: tuple[str, Passphrase] | None) -> Person:
        """A person with a new key in the folder; `voucher` names who adds them. InputError for a name that is there."""
        self._demand_new(name)
        key = new_person_key(self._key_file(name), passphrase)
        return self._add(name, key.public, "file", voucher)

    def add_from_agent(self, name: str, public: str, voucher: tuple[str, Passphrase] | None) -> Person:
        """A person whose key, of this public half, is in ssh-agent, which must sign now. InputError as above."""
        self._demand_new(name)
        made = signed_by(name, agent_key(public), {"action": "try"})
        if not made.holds({"action": "try"}):
            raise InputError(f"The key {fingerprint_of(public)} does not sign as its kind says.")
        return self._add(name, public, "agent", voucher)

    def sign(self, name: str, passphrase: Passphrase, words: Mapping[str, Any]) -> Signed:
        """A person's signature of these words. InputError if there is no such person, or they do not sign."""
        return signed_by(name, self._signer(name, passphrase), words)

    def _signer(self, name: str, passphrase: Passphrase) -> Signer:
        person = self.named(name)
        if person is None:
            known = ", ".join(one.name for one in self.all()) or "nobody"
            fix = f"There are: {known}. fedgraft person add NAME --home {self.folder}"
            raise InputError(f"{self.folder}: there is no person called {name}.", fix=fix)
        signer = (
            agent_key(person.key) if person.place == "agent" else open_person_key(self._key_file(name), passphrase())
        )
        if signer.public != person.key:
            raise InputError(f"{self._key_file(name)}: is not the key of {name}.")
        return signer

    def _demand_new(self, name: str) -> None:
        try:
            Person(name=name, key="ssh-ed25519 " + 40 * "A", place="file", added="")
        except ValidationError:
            raise InputError(
                f"{name!a}: is no name: letters, digits, blanks, '.', '-' and \"'\", 64 at most."
            ) from None
        if self.named(name) is not None:
            raise InputError(f"{self.folder}: there is a person called {name} already.")

    def _add(
        self, name: str, public: str, place: Literal["file", "agent"], voucher: tuple[str, Passphrase] | None
    ) -> Person:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        person = Person(name=name, key=public, place=place, added=at)
        with locked(self.folder / _FILE):
            known = self.all()
            if known:
                if voucher is None:
                    fix = f"One of {', '.join(one.name for one in known)} adds them: --by NAME."
                    raise InputError(f"{self.folder}: has persons, who vouch for others.", fix=fix)
                person = person.model_copy(update={"vouched": self.sign(*voucher, person.words())})
            write_json(self.folder / _FILE, [one.model_dump(mode="json") for one in (*known, person)], private=True)
        return person

    def _key_file(self, name: str) -> Path:
        return self.folder / _KEYS / f"{name}.key"


def _version(folder: Path) -> tuple[int, int, int]:
    try:
        facts = os.stat(f"{folder}/{_FILE}")  # noqa: PTH116 - asked for every instruction
    except OSError:
        return 0, 0, 0
    return facts.st_ino, facts.st_ctime_ns, facts.st_size


@lru_cache(maxsize=256)
def _read(folder: Path, _version: tuple[int, int, int]) -> tuple[Person, ...]:
    path = folder / _FILE
    if not is_there(path):
        return ()
    try:
        persons = _Persons.validate_python(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: is damaged: {'; '.join(describe(error))}.", fix="Restore it.") from None
    known: dict[str, str] = {}
    for person in persons:
        vouched = person.vouched
        sound = (
            not known if vouched is None else known.get(vouched.name) == vouched.key and vouched.holds(person.words())
        )
        if not sound or person.name in known:
            raise InputError(f"{path}: nobody who was in it has signed for {person.name}.", fix="Restore it.")
        known[person.name] = person.key
    return persons
