"""Removing a person from a site's book: an entry more, which the egress log has first, and what stands of theirs.

Whoever keeps a key can sign under any date. So what they had signed until now is listed by its digest, and nothing else
by that key counts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.approval import Approval, read_approvals, withdraw
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.release.held_answers import HeldAnswers, studies_held
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.person_book import Person, PersonBook, Removal, Voucher
from fedgraft.common.identity.persons import words_digest


@dataclass(frozen=True)
class Removed:
    """What was put on record, and which approvals of the person are in force still, or were withdrawn with them."""

    removal: Removal
    in_force: tuple[Approval, ...]
    withdrawn: tuple[Approval, ...] = ()


def remove_person(config: SiteConfig, home: Path, name: str, voucher: Voucher | None, *, revoke: bool) -> Removed:
    """Remove a person, in the name of `voucher`, or of whoever has the folder; `revoke` withdraws their approvals too.

    InputError if there is no such person, or nobody signs. Decisions on held answers stand in any case.
    """
    book = PersonBook(home)
    person = book.named(name)
    log = EgressLog(config.state, config.witness, sync=config.sync)
    approvals = () if person is None else approved_with(home, person.key)
    ended = approvals if revoke else ()

    def first(removal: Removal) -> None:
        # Broken off after any of these, less counts than was decided, and never more.
        for one in ended:
            withdraw(home, one.digest)
        log.removed(removal.model_dump(mode="json"))

    kept = [words_digest(name, one.words()) for one in approvals if one not in ended]
    stands = [*kept, *(_decisions(config, person) if person is not None else ())]
    removal = book.remove(name, stands, voucher, first)
    return Removed(removal, () if revoke else approvals, ended)


def finish_removal(config: SiteConfig, home: Path, name: str) -> Removed | None:
    """What was broken off between the log and the book; None if nothing was."""
    book = PersonBook(home)
    told = [one for one in EgressLog(config.state, config.witness).entries() if one.kind == "person_removed"]
    if not told:
        return None
    last = Removal.model_validate(told[-1].words)
    if last.removed != name or book.removal_of(last.key) is not None or not book.take_in(last):
        return None
    return Removed(last, approved_with(home, last.key))


def approved_with(home: Path, key: str) -> tuple[Approval, ...]:
    """The approvals in force that the owner of this key has signed; none if the file is damaged."""
    try:
        every = read_approvals(home)
    except InputError:
        return ()
    return tuple(one for one in every if one.withdrawn is None and one.signed is not None and one.signed.key == key)


def approver_removed(home: Path, digest: str) -> dict[str, str] | None:
    """Who signed the approval of a study and was removed since, and when; None if it is not so."""
    book = PersonBook(home)
    for gone in book.removals():
        if any(one.digest == digest for one in approved_with(home, gone.key)):
            return {"name": gone.removed, "since": gone.at}
    return None


def _decisions(config: SiteConfig, person: Person) -> list[str]:
    """By their digests the decisions on held answers that the person has signed."""
    held = [one for digest in studies_held(config.state) for one in HeldAnswers(config.state, digest).all()]
    return [
        words_digest(person.name, one.decision.words(one))
        for one in held
        if one.decision is not None and one.decision.signed is not None and one.decision.signed.key == person.key
    ]
