"""What people type to say who decides: `fedgraft person add` and `list`."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.enrolment.config import site_home
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.author import passphrase_from
from fedgraft.common.identity.person_book import Passphrase, Person, PersonBook
from fedgraft.common.identity.persons import fingerprint_of
from fedgraft.common.identity.ssh_agent import agent_keys

Voucher = tuple[str | None, Path | None]
"""Who adds the person, and the file of their passphrase."""


def add_with_passphrase(home: Path, name: str, new: Path | None, voucher: Voucher) -> None:
    """Make a key under a passphrase, which is asked for twice. InputError if the two differ."""
    ask = passphrase_from(new, f"New passphrase of {name}")
    phrase = ask()
    if new is None and passphrase_from(None, "The same again")() != phrase:
        raise InputError("The two passphrases are not the same.")
    _say_added(PersonBook(site_home(home)).add_with_passphrase(name, phrase, _by(voucher)))


def add_from_agent(home: Path, name: str, fingerprint: str | None, voucher: Voucher) -> None:
    """Take a key of ssh-agent. InputError if it has none, or several and it was not said which."""
    keys = agent_keys()
    found = [key for key in keys if fingerprint in (None, fingerprint_of(key.public))]
    if len(found) != 1:
        known = ", ".join(f"{fingerprint_of(key.public)} {key.comment}" for key in keys) or "none"
        raise InputError(
            f"ssh-agent has {len(found)} ed25519 keys that could be meant.", fix=f"--key FINGERPRINT; it has: {known}."
        )
    _say_added(PersonBook(site_home(home)).add_from_agent(name, found[0].public, _by(voucher)))


def show(home: Path) -> None:
    """A line for each person."""
    persons = PersonBook(site_home(home)).all()
    for one in persons:
        by = "the first" if one.vouched is None else f"added by {one.vouched.name}"
        say(f"{one.name}: {fingerprint_of(one.key)} ({one.place}), {one.added}, {by}")
    if not persons:
        say("Nobody: fedgraft person add NAME")


def _by(voucher: Voucher) -> tuple[str, Passphrase] | None:
    name, path = voucher
    return None if name is None else (name, passphrase_from(path, f"Passphrase of {name}"))


def _say_added(person: Person) -> None:
    say(f"{person.name} is added, with the key {fingerprint_of(person.key)}.")
    say("Others who check signatures compare this fingerprint with what you tell them.")
