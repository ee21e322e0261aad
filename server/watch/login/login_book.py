"""Who may log in to the live page, and programs that may read its figures: a file in the server's folder.

Of a password there is what scrypt makes of it, of a program's token its digest: nobody who reads the file has either.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, locked, read_json, write_json
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.persons import PersonName, demand_name, stretched

LOGINS = "logins.json"
SHORTEST, LONGEST = 12, 256
"""Letters of a password."""


class Login(Value):
    """A person's: `stretched` is what scrypt makes of the password with `salt`, both in hex."""

    name: PersonName
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    stretched: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    at: str


class PageToken(Value):
    """A program's, which reads figures alone: `sha256` is that of 256 random bits, which nobody guesses."""

    name: PersonName
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    at: str


class _Logins(Value):
    persons: tuple[Login, ...] = ()
    programs: tuple[PageToken, ...] = ()


class LoginBook:
    """The logins in the folder of a server."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOGINS

    def persons(self) -> tuple[Login, ...]:
        """All who may log in. InputError if the file is damaged."""
        return self._read().persons

    def programs(self) -> tuple[PageToken, ...]:
        """All programs with a token. InputError as above."""
        return self._read().programs

    def named(self, name: str) -> Login | None:
        """The login of that name, as it is now; None if there is none."""
        return next((one for one in self.persons() if one.name == name), None)

    def login(self, name: str, password: str) -> Login | None:
        """The login whose name and password these are; None, after the same work, if they are nobody's."""
        found: Login | None = self.named(name)
        login = found or _NOBODY
        made = stretched(_one_form(password), bytes.fromhex(login.salt))
        return found if hmac.compare_digest(made, login.stretched.encode()) else None

    def program(self, token: str) -> PageToken | None:
        """The program whose token this is."""
        digest, found = _digest(token), None
        for one in self.programs():
            if hmac.compare_digest(digest, one.sha256):
                found = one
        return found

    def set_password(self, name: str, password: str) -> bool:
        """Give a person a password, or another one; True if they had none. InputError if it is short, or no name."""
        if not (SHORTEST <= len(password) <= LONGEST and password.isprintable()):
            raise InputError(f"A password has {SHORTEST} to {LONGEST} letters.", fix="Several words make a good one.")
        demand_name(name)
        salt = secrets.token_bytes(16)
        login = Login(name=name, salt=salt.hex(), stretched=stretched(_one_form(password), salt).decode(), at=_now())
        with locked(self.path):
            kept = self._read()
            self._demand_none(name, kept.programs)
            others = tuple(one for one in kept.persons if one.name != name)
            self._write(kept.model_copy(update={"persons": (*others, login)}))
        return len(others) == len(kept.persons)

    def add_program(self, name: str) -> str:
        """A new token for a program; it is nowhere else. InputError for a name that is there, or no name."""
        demand_name(name)
        token = secrets.token_urlsafe(32)
        made = PageToken(name=name, sha256=_digest(token), at=_now())
        with locked(self.path):
            kept = self._read()
            self._demand_none(name, kept.persons)
            self._demand_none(name, kept.programs)
            self._write(kept.model_copy(update={"programs": (*kept.programs, made)}))
        return token

    def remove(self, name: str) -> None:
        """Shut a person out, or a program; also who is logged in. InputError if there is none of that name."""
        with locked(self.path):
            kept = self._read()
            left = {
                "persons": tuple(one for one in kept.persons if one.name != name),
                "programs": tuple(one for one in kept.programs if one.name != name),
            }
            if left == {"persons": kept.persons, "programs": kept.programs}:
                known = ", ".join([one.name for one in kept.persons] + [one.name for one in kept.programs]) or "nobody"
                raise InputError(f"{self.path}: there is no login {name}.", fix=f"There are: {known}.")
            self._write(kept.model_copy(update=left))

    def _demand_none(self, name: str, known: Iterable[Login | PageToken]) -> None:
        if name in {one.name for one in known}:
            fix = f"Choose another name, or first: fedgraft server login remove {name!r}"
            raise InputError(f"{self.path}: {name} is there already.", fix=fix)

    def _read(self) -> _Logins:
        if not is_there(self.path):
            return _Logins()
        try:
            return _Logins.model_validate(read_json(self.path))
        except ValidationError as error:
            raise InputError(f"{self.path}: is damaged: {'; '.join(describe(error))}.", fix="Restore it.") from None

    def _write(self, logins: _Logins) -> None:
        write_json(self.path, logins.model_dump(mode="json"), private=True)


_NOBODY = Login(name="nobody", salt=secrets.token_hex(16), stretched=secrets.token_hex(64), at="")
"""What is compared where there is no login: who guesses names learns nothing by the time that it takes."""


def _one_form(password: str) -> str:
    """Keyboards spell one letter in several ways."""
    return unicodedata.normalize("NFKC", password)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
