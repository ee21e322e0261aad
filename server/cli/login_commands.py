"""What `fedgraft server login` does."""

from __future__ import annotations

from pathlib import Path

from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, write_atomic
from fedgraft.common.identity.author import passphrase_from
from fedgraft.server.provisioning.actions import NOBODY, ActionLog, ByWhom
from fedgraft.server.watch.login.login_book import LoginBook


def add(home: Path, name: str, password_file: Path | None, by: ByWhom = NOBODY) -> None:
    """Set a password that is asked for twice, or in a file. InputError if the two differ, or others may read it."""
    book = _book(home)
    password = passphrase_from(password_file, f"New password of {name}")()
    if password_file is None and passphrase_from(None, "The same again")() != password:
        raise InputError("The two passwords are not the same.")
    _record(home, by, name, "password")
    if book.set_password(name, password):
        say(f"{name} may log in to the page. A page that has had no login yet asks for one when it is started anew.")
    else:
        say(f"{name} has another password. Whoever was logged in with the old one is not any more.")


def add_program(home: Path, name: str, out: Path, by: ByWhom = NOBODY) -> None:
    """Write a new token into a file that is not there yet."""
    if is_there(out):
        raise InputError(f"{out}: is there already.", fix="Choose another --out.")
    book = _book(home)
    _record(home, by, name, "token")
    token = book.add_program(name)
    write_atomic(out, f"{token}\n".encode(), private=True)
    say(f"{name} may read /metrics with the token in {out}: as `Authorization: Bearer TOKEN`.")


def remove(home: Path, name: str, by: ByWhom = NOBODY) -> None:
    """Remove a login or a token."""
    book = _book(home)
    _record(home, by, name, "remove")
    book.remove(name)
    say(f"{name} is out.")


def show(home: Path) -> None:
    """A line for each."""
    book = _book(home)
    for person in book.persons():
        say(f"{person.name}: a password, {person.at}")
    for program in book.programs():
        say(f"{program.name}: a token for /metrics, {program.at}")
    if not book.persons() and not book.programs():
        say("Nobody: fedgraft server login add NAME")


def _record(home: Path, by: ByWhom, name: str, what: str) -> None:
    """A server writes it down first, and one signs where it has persons; a page may also be of simulations alone."""
    if is_there(home / "server.json"):
        ActionLog(home).record(by, "login", {"name": name, "does": what})


def _book(home: Path) -> LoginBook:
    if not home.is_dir():
        raise InputError(f"{home}: there is no such folder.", fix="Give the server's folder with --home.")
    return LoginBook(home)
