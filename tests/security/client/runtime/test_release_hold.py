"""A coordinator that wants what a person has not let go: it asks again, otherwise, or for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedgraft.client.evidence.passport import passport
from fedgraft.client.evidence.release import HeldRelease
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.governance.approval import approve, read_approvals
from fedgraft.client.governance.persons.removing import remove_person
from fedgraft.client.governance.records import Records
from fedgraft.client.governance.release.held_answers import Decision, HeldAnswers
from fedgraft.client.governance.verdict import judge
from fedgraft.client.privacy.policy import Reason
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.errors import InputError, PolicyError
from fedgraft.common.base.files import read_sealed, sealed, write_json
from fedgraft.common.evidence.audit_sheet import NOT_TESTED
from fedgraft.common.evidence.passport import releases_in_words
from fedgraft.common.identity.author import Author
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import open_person_key, signed_by
from fedgraft.common.models.initialise import make_model
from fedgraft.common.protocol.instructions import Answer, Code, Greeting, Refusal, Update
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN, Hospitals
from helpers.played import PlayedSite
from helpers.work import MakeStudy

HOLD = OPEN.model_copy(update={"release": "hold"})
METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 1, "batch_size": 4, "lr": 0.01}}
FINAL, END = 2, 3


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    return make_study(method=METHOD)


@pytest.fixture
def site(hospitals: Hospitals, tmp_path: Path) -> PlayedSite:
    return PlayedSite(tmp_path / "north", hospitals.cohorts["north"], HOLD)


def code(answer: Answer | Greeting) -> str:
    return answer.code.value if isinstance(answer, Refusal) else type(answer).__name__


def until_held(site: PlayedSite, study: Study) -> None:
    site.greets(study)
    assert isinstance(site.visits(study, 1, evaluate="val"), Update), "what is not the last leaves as ever"
    assert code(site.visits(study, FINAL, evaluate="val")) == Code.HELD


def decide(site: PlayedSite, study: Study, verdict: str, who: Author | None = None) -> str:
    held = HeldRelease.of(site.home, study.digest)
    held.decide(verdict, who or Author("Anna", PersonBook(site.home), lambda: "", signs=False))  # type: ignore[arg-type]
    return held.held.digest


def left(site: PlayedSite) -> list[tuple[int, str]]:
    return [(entry.exchange, entry.kind) for entry in site.log.entries() if entry.tensors or entry.metrics]


def test_nothing_leaves_while_a_person_has_not_decided(site: PlayedSite, study: Study, make_study: MakeStudy) -> None:
    """Asked again, with another model, for a round that was, for figures, from the beginning, in another study."""
    until_held(site, study)
    asked = [(FINAL, None), (FINAL, "val"), (1, None), (1, "val"), (END, "test"), (END, None)]
    for exchange, split in asked:
        assert code(site.visits(study, exchange, shift=0.5, evaluate=split)) == Code.HELD
    site.restart()
    assert not isinstance(site.greets(study), Refusal)
    for exchange, split in asked:
        assert code(site.visits(study, exchange, evaluate=split)) == Code.HELD
    other = study.model_copy(update={"seed": 99})
    assert code(site.visits(other, FINAL)) == Code.NOT_APPROVED
    assert left(site) == [(1, "update")]


def test_what_was_signed_leaves_to_the_bit_and_nothing_else_in_its_place(site: PlayedSite, study: Study) -> None:
    """After a restart, asked with another model: nothing is worked out again, and figures follow by policy."""
    until_held(site, study)
    held = HeldAnswers(site.state, study.digest).all()[0].update()
    digest = decide(site, study, "signed")
    site.restart()
    got = site.visits(study, FINAL, shift=0.5)
    assert isinstance(got, Update)
    assert {key: array.tobytes() for key, array in got.tensors.items()} == {
        key: array.tobytes() for key, array in held.tensors.items()
    }
    assert got.weights == held.weights
    assert got.metrics["cls"].keys() == held.metrics["cls"].keys()
    assert isinstance(site.visits(study, END, evaluate="test"), Update)
    lines = [entry for entry in site.log.entries() if entry.kind == "release"]
    assert [(one.exchange, one.words["decision"], one.words["by"], one.words["digest"]) for one in lines] == [
        (FINAL, "signed", "Anna", digest)
    ]
    assert [entry.kind for entry in site.log.entries()].index("release") < left_at(site, FINAL)


def left_at(site: PlayedSite, exchange: int) -> int:
    kinds = [(entry.exchange, entry.kind) for entry in site.log.entries()]
    return kinds.index((exchange, "update"))


def test_a_refusal_is_the_end_of_the_study_here_whatever_the_policy_says_later(site: PlayedSite, study: Study) -> None:
    until_held(site, study)
    decide(site, study, "refused")
    site.config.model_copy(update={"policy": OPEN}).write(site.home / "site.json")
    site.restart()
    assert code(site.greets(study)) == Code.RELEASE_REFUSED
    for exchange in (1, FINAL, END):
        assert code(site.visits(study, exchange)) == Code.RELEASE_REFUSED
    with pytest.raises(InputError, match="decided already"):
        decide(site, study, "signed")
    assert left(site) == [(1, "update")]


def test_a_refusal_that_is_gone_from_the_disk_is_missed(site: PlayedSite, study: Study) -> None:
    until_held(site, study)
    decide(site, study, "refused")
    for path in (site.state / "held_answers" / study.digest).iterdir():
        path.unlink()
    assert any("refused to release" in one for one in Records(site.config, site.home, exchanges_of).contradictions())
    assert code(site.visits(study, FINAL)) == Code.LEDGER


def test_who_skips_the_final_step_has_its_figures_held_and_the_step_after_them(site: PlayedSite, study: Study) -> None:
    """A signature under figures is none under the step before them."""
    site.greets(study)
    site.visits(study, 1)
    assert code(site.visits(study, END, evaluate="test")) == Code.HELD
    decide(site, study, "signed")
    assert isinstance(site.visits(study, END, evaluate="test"), Update)
    site.greets(study)
    assert code(site.visits(study, FINAL)) == Code.HELD
    assert left(site) == [(1, "update"), (END, "update")]


def test_a_signature_is_good_for_the_course_of_the_study_that_it_was_given_in(site: PlayedSite, study: Study) -> None:
    until_held(site, study)
    decide(site, study, "signed")
    assert isinstance(site.visits(study, FINAL), Update)
    site.greets(study)
    assert isinstance(site.visits(study, 1, shift=0.5), Update)
    assert code(site.visits(study, FINAL, shift=0.5)) == Code.HELD


def test_an_answer_that_was_changed_on_the_disk_does_not_leave(site: PlayedSite, study: Study) -> None:
    until_held(site, study)
    decide(site, study, "signed")
    (path,) = (site.state / "held_answers" / study.digest).glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert code(site.visits(study, FINAL)) == Code.BAD_DATA
    assert left(site) == [(1, "update")]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"release_wait_h": 0}, Reason.NOT_AWAITED), ({"early_stopping": {"patience": 1}}, Reason.NO_LAST_STEP)],
)
def test_a_study_that_waits_for_nobody_is_refused_before_it_begins(
    site: PlayedSite, make_study: MakeStudy, changes: dict[str, Any], word: str
) -> None:
    plan = [stage.model_dump(mode="json") for stage in make_study(method=METHOD).plan]
    rounds = {key: changes[key] for key in changes if key == "release_wait_h"}
    plan[-1] |= {key: changes[key] for key in changes if key == "early_stopping"}
    study = make_study(plan=plan, rounds=rounds)
    assert code(site.greets(study)) == Code.POLICY
    verdict = judge(site.config, study, make_model(study).tags(), 100)
    assert verdict.refused == word
    assert "ask the coordinator" in verdict.fix.lower()


def test_where_persons_are_required_a_name_is_no_signature(site: PlayedSite, study: Study) -> None:
    """Neither under an approval nor under a release, and not one that a person gave to something else."""
    policy = HOLD.model_copy(update={"persons": "required"})
    site.config.model_copy(update={"policy": policy}).write(site.home / "site.json")
    book = PersonBook(site.home)
    book.add_with_passphrase("Anna Berg", "correct horse battery", None)
    anna = Author("Anna Berg", book, lambda: "correct horse battery", signs=True)
    assert code(site.greets(study)) == Code.NOT_APPROVED
    approve(site.home, study.digest, study.name, anna)
    until_held(site, study)
    decide(site, study, "signed")
    assert code(site.visits(study, FINAL)) == Code.POLICY
    (path,) = (site.state / "held_answers" / study.digest).glob("decision-*")
    words = read_sealed(path) | {"by": "Anna Berg", "signed": read_approvals(site.home)[-1].signed.model_dump()}  # type: ignore[union-attr]
    write_json(path, sealed(words))
    assert code(site.visits(study, FINAL)) == Code.POLICY
    path.unlink()
    decide(site, study, "signed", anna)
    assert isinstance(site.visits(study, FINAL), Update)


@pytest.mark.parametrize("persons", ["required", "optional"])
def test_what_removed_persons_had_signed_leaves_and_nothing_else(
    site: PlayedSite, study: Study, tmp_path: Path, persons: str
) -> None:
    """Bo is removed while an answer waits, and signs its release of an hour before; Anna leaves after she signed."""
    policy = HOLD.model_copy(update={"persons": persons})
    site.config.model_copy(update={"policy": policy}).write(site.home / "site.json")
    book, phrase = PersonBook(site.home), lambda: "correct horse battery"
    book.add_with_passphrase("Anna Berg", phrase(), None)
    book.add_with_passphrase("Bo Holm", phrase(), ("Anna Berg", phrase))
    anna = Author("Anna Berg", book, phrase, signs=True)
    approve(site.home, study.digest, study.name, Author("Bo Holm", book, phrase, signs=True))
    until_held(site, study)
    remove_person(site.config, site.home, "Bo Holm", ("Anna Berg", phrase), revoke=False)
    held = HeldRelease.of(site.home, study.digest).held
    late = Decision(decision="signed", digest=held.digest, by="Bo Holm", at=read_approvals(site.home)[0].approved)
    bo = open_person_key(site.home / "persons" / "Bo Holm.key", phrase())
    HeldAnswers(site.state, study.digest).decide(
        held, late.model_copy(update={"signed": signed_by("Bo Holm", bo, late.words(held))})
    )
    assert code(site.visits(study, FINAL)) == Code.POLICY
    next((site.state / "held_answers" / study.digest).glob("decision-*")).unlink()
    decide(site, study, "signed", anna)
    gone = remove_person(site.config, site.home, "Anna Berg", None, revoke=False).removal
    assert isinstance(site.visits(study, FINAL), Update), "approved by Bo and released by Anna, when they were there"
    (tmp_path / "study.yaml").write_bytes(study.to_json())
    told = passport(Statement.of(site.home, tmp_path))
    assert told["study"]["approver_removed"] == book.removals()[0].at
    assert f", removed since {gone.at}, " in next(releases_in_words(told["releases"]))


def test_what_is_attacked_is_the_model_that_the_coordinator_would_make(
    site: PlayedSite, study: Study, make_study: MakeStudy
) -> None:
    """Also where changes of entries travel rounded, so that most entries are not in the answer by their names."""
    plan = [stage.model_dump(mode="json") | {"compress": {"kind": "int8"}} for stage in study.plan]
    study = make_study(plan=plan)
    until_held(site, study)
    held, tags = HeldRelease.of(site.home, study.digest), make_model(study).tags()
    assert not held.held.update().tensors.keys() <= tags.keys(), "entries are not sent as they are"
    (entries, sums), received = held.sent(tags), held.held.received()
    assert entries.keys() == tags.keys()
    assert not sums
    moved = [key for key, array in entries.items() if array.tobytes() != received[key].tobytes()]
    assert len(moved) > len(held.held.update().tensors.keys() & tags.keys())


def test_sums_that_leave_beside_the_model_are_not_taken_for_attacked(
    site: PlayedSite, study: Study, make_study: MakeStudy
) -> None:
    """A method's sums tell of patients as a gradient does: a limit on the attack is not met by the entries alone."""
    plan = [stage.model_dump(mode="json") for stage in study.plan]
    plan[0]["local"]["methods"], plan[0]["rounds"] = [{"kind": "fedproto"}], 1
    study = make_study(plan=plan)
    policy = HOLD.model_copy(update={"release_membership_auc_max": 1.0})
    site.config.model_copy(update={"policy": policy}).write(site.home / "site.json")
    site.greets(study)
    assert code(site.visits(study, 1, evaluate="val")) == Code.HELD
    held = HeldRelease.of(site.home, study.digest)
    assert any(key not in make_model(study).tags() for key in held.held.update().tensors)
    last = held.audit()["membership"][-1]
    assert (last["target"], NOT_TESTED in last) == ("the sums beside it", True)
    with pytest.raises(PolicyError, match="sums would leave"):
        decide(site, study, "signed")
