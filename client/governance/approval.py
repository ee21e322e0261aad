"""Which studies the people at a site have approved. A site acts on no other; an approval can be withdrawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, locked, make_folder, read_json, write_json
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe
from fedgraft.common.identity.author import Author
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import Signed, approval_words

_FILE = "approvals.json"


class Approval(Value):
    """One study that was approved, by the digest of all that it asks, and when; times are UTC.

    `by` is who approved it, `signed` that person's signature, where the site has persons.
    """

    study: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    approved: str
    withdrawn: str | None = None
    by: str | None = None
    signed: Signed | None = None

    def words(self) -> dict[str, Any]:
        """What the person who approves it signs."""
        return approval_words(self.digest, self.approved)


_Approvals = TypeAdapter(tuple[Approval, ...])


def read_approvals(folder: Path) -> tuple[Approval, ...]:
    """All approvals in a site's home folder, oldest first; InputError if the file is damaged."""
    path = folder / _FILE
    if not is_there(path):
        return ()
    try:
        return _Approvals.validate_python(read_json(path))
    except ValidationError as error:
        fix = "Restore it, or remove it and approve your studies again."
        raise InputError(f"{path}: is damaged: {'; '.join(describe(error))}.", fix=fix) from None


def is_approved(folder: Path, digest: str, *, by_person: bool = False) -> bool:
    """Whether the study of this digest may run here: `by_person` asks for the signature of a person of the site.

    A damaged file approves nothing.
    """
    try:
        facts = os.stat(f"{folder}/{_FILE}")  # noqa: PTH116 - asked for every instruction
    except OSError:
        return False
    # Not the time of its content, which whoever writes a file may set.
    there = _approved(str(folder), (facts.st_ino, facts.st_ctime_ns, facts.st_size))
    return any(one.digest == digest and _counts(folder, one, by_person=by_person) for one in there)


def _counts(folder: Path, approval: Approval, *, by_person: bool) -> bool:
    return PersonBook(folder).counts(approval.signed, approval.words(), required=by_person)


def what_is_wrong(folder: Path) -> str:
    """Why nothing is approved in a site's home folder though it may have been; nothing if the file can be read."""
    try:
        read_approvals(folder)
    except (InputError, OSError) as error:
        return str(error)
    return ""


@lru_cache(maxsize=1024)
def _approved(folder: str, _version: tuple[int, int, int]) -> tuple[Approval, ...]:
    """All that are approved. Asked for every instruction, so the file is read again only if it is another one."""
    try:
        return tuple(one for one in read_approvals(Path(folder)) if one.withdrawn is None)
    except (InputError, OSError):
        return ()


def approve(folder: Path, digest: str, name: str = "", by: Author | None = None, *, sync: bool = True) -> Approval:
    """Record that the study of this digest may run here; the record that there is, if it was approved before.

    `name` is what the study calls itself, for people; `by` who approves it, whose signature takes the place of an
    approval without one. Without `sync` the record does not outlive a loss of power.
    """

    def that_counts(known: tuple[Approval, ...]) -> Approval | None:
        there = next((one for one in known if one.digest == digest and one.withdrawn is None), None)
        signed = by is not None and by.signs
        return there if there is not None and _counts(folder, there, by_person=signed) else None

    if (there := that_counts(read_approvals(folder))) is not None:
        return there
    now = _now()
    approval = Approval(study=name, digest=digest, approved=now, by=None if by is None else by.name)
    if by is not None:
        approval = approval.model_copy(update={"signed": by.sign(approval.words())})
    # Read again: what others have withdrawn while a passphrase was typed stays so.
    with _alone(folder):
        known = read_approvals(folder)
        if (there := that_counts(known)) is not None:
            return there
        before = (
            one.model_copy(update={"withdrawn": now}) if one.digest == digest and one.withdrawn is None else one
            for one in known
        )
        _write(folder, (*before, approval), sync=sync)
    return approval


def withdraw(folder: Path, digest: str) -> Approval:
    """Record that the study may no longer run here. InputError if it was not approved."""
    with _alone(folder):
        known = read_approvals(folder)
        ended = {one.digest: one.model_copy(update={"withdrawn": _now()}) for one in known if one.withdrawn is None}
        if digest not in ended:
            raise InputError(f"No study with the digest {digest} is approved here.", fix="See approvals.json.")
        _write(folder, tuple(ended[digest] if one.digest == digest and one.withdrawn is None else one for one in known))
    return ended[digest]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else reads and writes the file meanwhile."""
    make_folder(folder)
    with locked(folder / _FILE):
        yield


def _write(folder: Path, approvals: tuple[Approval, ...], *, sync: bool = True) -> None:
    write_json(folder / _FILE, [one.model_dump(mode="json") for one in approvals], private=True, sync=sync)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
