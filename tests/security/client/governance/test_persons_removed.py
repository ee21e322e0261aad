"""Whoever was removed and kept their key, or has an older copy of the book, decides nothing at the site any more."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedgraft.client.governance.approval import Approval, approve, is_approved, read_approvals, withdraw
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.persons.removing import Removed, finish_removal, remove_person
from fedgraft.client.governance.records import Records
from fedgraft.client.governance.settlement import propose_settlement, settle
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.author import Author, author
from fedgraft.common.identity.person_book import Person, PersonBook
from fedgraft.common.identity.persons import TOKEN, open_person_key, signed_by, words_digest
from fedgraft.common.identity.ssh_wire import string
from fedgraft.common.protocol.instructions import Code, Greeting
from fedgraft.simulations.engines.run import OPEN, Hospitals
from helpers.played import PlayedSite
from helpers.work import MakeStudy

PHRASE = "correct horse battery"
ANNA = ("Anna Berg", lambda: PHRASE)
BO = "Bo Holm"
BEFORE, AFTER = 64 * "a", 64 * "b"
"""Studies: one that Bo approved in time, and one that he would approve later."""


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the book of Anna, and Bo, who has approved a study."""
    book = PersonBook(tmp_path_factory.mktemp("people"))
    book.add_with_passphrase(ANNA[0], PHRASE, None)
    book.add_with_passphrase(BO, PHRASE, ANNA)
    approve(book.folder, BEFORE, "before", Author(BO, book, lambda: PHRASE, signs=True))
    return book.folder


@pytest.fixture
def site(hospitals: Hospitals, people: Path, tmp_path: Path) -> PlayedSite:
    """A site of those people, where persons are required."""
    policy = OPEN.model_copy(update={"persons": "required"})
    made = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], policy)
    shutil.copytree(people, made.home, dirs_exist_ok=True)
    return made


def remove(site: PlayedSite, *, revoke: bool = False) -> Removed:
    return remove_person(site.config, site.home, BO, ANNA, revoke=revoke)


def by_bo(site: PlayedSite, words: dict[str, Any]) -> dict[str, Any]:
    """What Bo signs with the key that he took along, as JSON."""
    key = open_person_key(site.home / "persons" / f"{BO}.key", PHRASE)
    return signed_by(BO, key, words).model_dump(mode="json")


def back_dated(site: PlayedSite, study: str, at: str) -> None:
    """Bo writes an approval into the site's folder, of a time when he was there."""
    forged = Approval(study="after", digest=study, approved=at, by=BO)
    path = site.home / "approvals.json"
    line = forged.model_dump(mode="json") | {"signed": by_bo(site, forged.words())}
    path.write_text(json.dumps([*json.loads(path.read_text()), line]))


def entries(site: PlayedSite) -> list[Any]:
    found: list[Any] = json.loads((site.home / "persons.json").read_text())
    return found


def write(site: PlayedSite, content: list[Any]) -> None:
    (site.home / "persons.json").write_text(json.dumps(content))


def wrong(site: PlayedSite) -> str:
    return " ".join(Records(site.config, site.home, exchanges_of).contradictions())


def approved(site: PlayedSite, study: str) -> bool:
    return is_approved(site.home, study, by_person=True)


def test_what_was_signed_stands_and_nothing_else_by_that_key_under_any_date(site: PlayedSite) -> None:
    earlier = read_approvals(site.home)[0].approved
    done = remove(site)
    assert [one.digest for one in done.in_force] == [BEFORE]
    back_dated(site, AFTER, earlier)
    assert approved(site, BEFORE)
    assert not approved(site, AFTER), "signed by a key that was removed, whatever date it names"
    assert not wrong(site)
    with pytest.raises(InputError, match="Bo Holm was removed on"):
        author(site.home, "Bo Holm", None, required=False)
    approve(site.home, AFTER, "after", Author(ANNA[0], PersonBook(site.home), ANNA[1], signs=True))
    assert approved(site, AFTER), "what Bo wrote keeps nobody from deciding"


def test_what_is_withdrawn_with_a_person_cannot_be_put_back(site: PlayedSite) -> None:
    kept = (site.home / "approvals.json").read_text()
    assert [one.digest for one in remove(site, revoke=True).withdrawn] == [BEFORE]
    assert not is_approved(site.home, BEFORE)
    (site.home / "approvals.json").write_text(kept)
    assert not approved(site, BEFORE)


def test_what_a_removed_person_signs_counts_for_nothing_where_nobody_must_sign_either(site: PlayedSite) -> None:
    """`persons: optional`: what is back-dated, and what was withdrawn with them and comes back with a copy."""
    kept = (site.home / "approvals.json").read_text()
    earlier = read_approvals(site.home)[0].approved
    remove(site, revoke=True)
    (site.home / "approvals.json").write_text(kept)
    back_dated(site, AFTER, earlier)
    for study in (BEFORE, AFTER):
        assert not is_approved(site.home, study)
        approve(site.home, study, "by somebody who is there")
        assert is_approved(site.home, study)


def test_a_book_without_the_removal_stops_the_site(site: PlayedSite, make_study: MakeStudy) -> None:
    """It was restored from a backup, or the entry was cut out; and the removal can be put back as it was signed."""
    older, study = entries(site), make_study()
    approve(site.home, study.digest, study.name, Author(BO, PersonBook(site.home), lambda: PHRASE, signs=True))
    remove(site)
    assert isinstance(site.greets(study), Greeting)
    write(site, older)
    assert "does not have the removal of Bo Holm" in wrong(site)
    assert site.greets(study).code == Code.LEDGER  # type: ignore[union-attr]
    assert finish_removal(site.config, site.home, "Bo Holm") is not None
    assert isinstance(site.greets(study), Greeting)
    PersonBook(site.home).add_with_passphrase("Carl", PHRASE, ANNA)
    write(site, [one for one in entries(site) if "removed" not in one])
    assert [one.name for one in PersonBook(site.home).all()] == ["Anna Berg", "Bo Holm", "Carl"], "a whole book"
    assert "does not have the removal of Bo Holm" in wrong(site)


def test_a_log_without_the_line_stops_the_site(site: PlayedSite) -> None:
    """Log and witness are restored together, so that nothing but the book tells of the removal."""
    site.log.note("ping", {"word": "here"})
    shutil.copytree(site.state, site.home / "backup")
    remove(site)
    assert not wrong(site)
    shutil.rmtree(site.state)
    shutil.copytree(site.home / "backup", site.state)
    assert "a removal of Bo Holm that the egress log does not tell of" in wrong(site)


def test_nobody_is_removed_by_one_who_is_not_in_the_book(site: PlayedSite, tmp_path: Path) -> None:
    remove(site)
    *before, removal = entries(site)
    eve = PersonBook(tmp_path / "elsewhere")
    eve.add_with_passphrase("Eve", PHRASE, None)
    book = PersonBook(site.home)
    of_anna = book.remove("Anna Berg", (), None, lambda _: None)
    forced = of_anna.model_dump(mode="json")
    by_eve = eve.sign("Eve", lambda: PHRASE, of_anna.words()).model_dump(mode="json")
    widened = removal | {"stands": [*removal["stands"], 64 * "0"]}
    for forged in (
        [*before, removal, forced | {"by": by_eve}],
        [*before, removal, forced | {"by": by_eve | {"name": "Anna Berg"}}],
        [*before, removal, forced | {"by": by_bo(site, of_anna.words())}],
        [*before, widened],
    ):
        write(site, forged)
        with pytest.raises(InputError, match="has signed for the removal of"):
            book.all()
    write(site, [*before, removal, forced])
    assert "a removal of Anna Berg that the egress log does not tell of" in wrong(site)


def test_whoever_was_removed_lets_nobody_in_under_an_earlier_date(site: PlayedSite, tmp_path: Path) -> None:
    remove(site)
    *before, removal = entries(site)
    eve = PersonBook(tmp_path / "elsewhere").add_with_passphrase("Eve", PHRASE, None)
    let_in = eve.model_dump(mode="json") | {"vouched": by_bo(site, eve.words(PersonBook(site.home).first()))}
    for forged in ([*before, let_in, removal], [*before, removal, let_in]):
        write(site, forged)
        with pytest.raises(InputError, match="nobody who was in it has signed"):
            PersonBook(site.home).all()


def test_a_name_may_come_back_and_a_key_never(site: PlayedSite) -> None:
    gone = remove(site).removal
    book = PersonBook(site.home)
    back = {"name": "Robert", "key": gone.key, "place": "file", "added": "2026-01-01T00:00:00+00:00"}
    words = Person.model_validate(back).words(book.first())
    write(site, [*entries(site), back | {"vouched": book.sign(*ANNA, words).model_dump(mode="json")}])
    with pytest.raises(InputError, match="the key of Robert is or was the key of Bo Holm"):
        book.all()
    write(site, entries(site)[:-1])
    old = open_person_key(site.home / "persons" / f"{BO}.key", PHRASE)
    book.add_with_passphrase(BO, PHRASE, ANNA)
    words = {"action": "approve", "study": AFTER, "at": "2026-01-01T00:00:00+00:00"}
    assert book.holds(book.sign(BO, lambda: PHRASE, words), words)
    assert signed_by(BO, old, words).holds(words)
    assert not book.holds(signed_by(BO, old, words), words)


def test_a_key_spelt_otherwise_is_the_same_key(tmp_path: Path) -> None:
    """The blob of a token's key ends within a letter of base64, whose last bits say nothing."""
    book = PersonBook(tmp_path)
    key = f"{TOKEN} {b64encode(string(TOKEN.encode()) + string(bytes(32)) + string(b'ssh:')).decode()}"
    assert key.endswith("o=")
    person = {"name": "Bo Holm", "key": key, "place": "agent", "added": "2026-01-01T00:00:00+00:00", "vouched": None}
    (tmp_path / "persons.json").write_text(json.dumps([person]))
    book.remove(BO, (), None, lambda _: None)
    content = json.loads((tmp_path / "persons.json").read_text())
    again = person | {"name": "Robert", "key": f"{key[:-2]}p="}
    (tmp_path / "persons.json").write_text(json.dumps([*content, again]))
    with pytest.raises(InputError, match="is or was the key of Bo Holm"):
        book.all()


def test_a_removal_that_was_broken_off_is_finished(site: PlayedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(PersonBook, "_append", gone)
        with pytest.raises(OSError, match="no room"):
            remove(site)
    assert "does not have the removal of Bo Holm" in wrong(site), "the site stands still until then"
    assert finish_removal(site.config, site.home, "Anna Berg") is None
    finished = finish_removal(site.config, site.home, "Bo Holm")
    assert finished is not None
    assert finished.removal.by is not None
    assert not wrong(site)


@pytest.mark.parametrize("lost", ["restored", "wider", "damaged"])
def test_a_settlement_lets_nobody_in_again(site: PlayedSite, lost: str) -> None:
    older = entries(site)
    stands = remove(site).removal.stands
    earlier = read_approvals(site.home)[0].approved
    back_dated(site, AFTER, earlier)
    if lost == "restored":
        write(site, older[:1])
        PersonBook(site.home).add_with_passphrase("Carl", PHRASE, ANNA)
        write(site, [*entries(site), older[1]])
    elif lost == "wider":
        write(site, older)
        more = {*stands, *_digests_of_back_dated(site)}
        PersonBook(site.home).remove(BO, more, None, lambda _: None)
        assert approved(site, AFTER), "what the book alone would let pass"
    else:
        (site.home / "persons.json").write_text("{")
    assert wrong(site)
    settle(site.config, propose_settlement(site.config, site.home, exchanges_of), "J. Operator")  # type: ignore[arg-type]
    assert not wrong(site)
    assert not approved(site, AFTER)
    assert all(one.name != "Bo Holm" for one in PersonBook(site.home).all())
    assert approved(site, BEFORE) == (lost == "restored"), "a book that is put aside takes its signatures along"
    write(site, older)
    assert "does not have the removal of Bo Holm" in wrong(site), "also after the settlement"


def _digests_of_back_dated(site: PlayedSite) -> set[str]:
    return {words_digest(BO, one.words()) for one in read_approvals(site.home) if one.digest == AFTER}


def test_the_log_tells_who_removed_whom(site: PlayedSite) -> None:
    remove(site)
    line = [*EgressLog(site.state).entries()][-1]
    assert (line.kind, line.words["removed"], line.words["by"]["name"]) == ("person_removed", "Bo Holm", "Anna Berg")


def test_what_is_withdrawn_while_a_passphrase_is_typed_stays_withdrawn(site: PlayedSite) -> None:
    """Bo approves another study, and takes their time; Anna ends the one that they had approved."""
    asked, typed = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        assert typed.wait(60)
        return PHRASE

    with ThreadPoolExecutor(2) as pool:
        by_bo = Author(BO, PersonBook(site.home), slow, signs=True)
        approving = pool.submit(approve, site.home, AFTER, "after", by_bo)
        assert asked.wait(60)
        withdraw(site.home, BEFORE)
        typed.set()
        approving.result(60)
    assert approved(site, AFTER)
    assert not approved(site, BEFORE)
