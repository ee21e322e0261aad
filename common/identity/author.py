"""Who decides something, as it was typed: a name, and the signature of whoever is in the book of persons under it."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import demand_own
from fedgraft.common.identity.person_book import Passphrase, PersonBook
from fedgraft.common.identity.persons import Signed, demand_name


@dataclass(frozen=True)
class Author:
    """A person who decides. `signs` says that they are in the book, so that only their key will do."""

    name: str
    book: PersonBook
    passphrase: Passphrase
    signs: bool

    def sign(self, words: Mapping[str, Any]) -> Signed | None:
        """The signature of these words; None for a name that stands for itself. InputError if they do not sign."""
        return self.book.sign(self.name, self.passphrase, words) if self.signs else None


def author(folder: Path, by: str | None, passphrase_file: Path | None, *, required: bool) -> Author | None:
    """The person of that name in the folder of a site or a server; None if nobody is named, and nobody need be.

    InputError for what is no name; if a person is `required`, and the name is none of the book's; or if that person was
    removed from it.
    """
    book = PersonBook(folder)
    known = [one.name for one in book.all()]
    name = (by or "").strip()
    if required and name not in known:
        who = ", ".join(known) or "nobody yet: fedgraft person add NAME"
        raise InputError("A person must sign this (persons: required).", fix=f"--by NAME; there are: {who}.")
    if not name:
        return None
    demand_name(name)  # what it is put on record as must not say more than who
    if name not in known and (gone := [one.at for one in book.removals() if one.removed == name]):
        raise InputError(f"{name} was removed on {gone[-1]}, and decides nothing here.", fix="--by another NAME.")
    return Author(name, book, passphrase_from(passphrase_file, f"Passphrase of {name}"), name in known)


def passphrase_from(path: Path | None, question: str) -> Passphrase:
    """Asks for a passphrase on the terminal, without showing it, or reads the first line of a file of its owner's."""

    def read() -> str:
        if path is None:
            return getpass.getpass(f"{question}: ")
        try:
            demand_own(path)
            return path.read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeError):
            raise InputError(f"{path}: cannot be read.", fix="Its first line is the passphrase.") from None

    return read
