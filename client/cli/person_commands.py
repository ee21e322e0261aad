"""What people type to say who decides: `fedgraft person add`, `remove` and `list`."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.cli.records_commands import demand_agreement
from fedgraft.client.enrolment.config import read_site, site_home
from fedgraft.client.governance.persons.removing import Removed, approved_with, finish_removal, remove_person
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.author import passphrase_from
from fedgraft.common.identity.person_book import Person, PersonBook, Removal
from fedgraft.common.identity.person_book import Voucher as Signing
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
    """A line for each person, also for those who were removed."""
    folder = site_home(home)
    book = PersonBook(folder)
    for one in book.entries():
        if isinstance(one, Person):
            by = "the first" if one.vouched is None else f"added by {one.vouched.name}"
            gone = book.removal_of(one.key)
            since = "" if gone is None else f"; {_removed(gone)}, {_still(len(approved_with(folder, one.key)))}"
            say(f"{one.name}: {fingerprint_of(one.key)} ({one.place}), {one.added}, {by}{since}")
    if not book.all():
        say("Nobody decides here now: fedgraft person add NAME")


def remove(home: Path, name: str, voucher: Voucher, *, revoke: bool, force: bool) -> None:
    """Put on record that a person decides nothing more. InputError if nobody signs it, and it is not forced."""
    folder = site_home(home)
    config, others = read_site(folder), [one.name for one in PersonBook(folder).all() if one.name != name]
    if force and voucher[0] is not None:
        raise InputError("Give one of --by NAME and --force.")
    done = finish_removal(config, folder, name)
    if done is None:
        demand_agreement(config, folder)
        if voucher[0] is None and not force:
            fix = (
                f"One of {', '.join(others)} signs it: --by NAME."
                if others
                else "Add another person first; or --force."
            )
            raise InputError(f"Nobody signs that {name} is removed.", fix=fix)
        done = remove_person(config, folder, name, _by(voucher), revoke=revoke)
    _say_removed(done)
    added = [
        one.name for one in PersonBook(folder).all() if one.vouched is not None and one.vouched.key == done.removal.key
    ]
    if added:
        say(f"Added by {name}, and still there: {', '.join(added)}.")
    if not others:
        say("Nobody is left who could sign: fedgraft person add NAME")


def _say_removed(done: Removed) -> None:
    gone = done.removal
    say(f"{gone.removed} is {_removed(gone)}. The key {fingerprint_of(gone.key)} never counts here again.")
    for one in done.withdrawn:
        say(f"Withdrawn: {one.study or 'study'} {one.digest[:12]}, approved on {one.approved}")
    for one in done.in_force:
        say(f"Still approved by {gone.removed}: {one.study or 'study'} {one.digest[:12]}, since {one.approved}")
        say(f"  to end it: fedgraft site approve {one.digest} --withdraw")


def _removed(removal: Removal) -> str:
    who = "in nobody's name (--force, or a settlement)" if removal.by is None else f"by {removal.by.name}"
    return f"removed since {removal.at} {who}"


def _still(count: int) -> str:
    return f"{count} approval{'s' * (count != 1)} by them still in force"


def _by(voucher: Voucher) -> Signing | None:
    name, path = voucher
    return None if name is None else (name, passphrase_from(path, f"Passphrase of {name}"))


def _say_added(person: Person) -> None:
    say(f"{person.name} is added, with the key {fingerprint_of(person.key)}.")
    say("Others who check signatures compare this fingerprint with what you tell them.")
