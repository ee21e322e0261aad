"""A coordinator that lies about where in the study it is: hand-made instructions, sent to a real site.

The site derives from the approved study what each exchange is, and keeps its own record of how far it has come.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.client.runtime.site import Site
from fedgraft.common.base.files import load_tensors
from fedgraft.common.protocol.instructions import Answer, Code, Instruction, Refusal, Update
from fedgraft.common.study.schedule import split_at, step_at
from helpers.courses import CLOSED, OPEN, PERSONAL, PRIVATE, TRAIN, a_model, a_site, legal
from helpers.work import MakeStudy


def refused(answer: Answer) -> bool:
    return isinstance(answer, Refusal) and answer.code is Code.OUT_OF_TURN


def test_an_honest_course_is_answered_to_its_end(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[PERSONAL, TRAIN])
    site = a_site(study, tmp_path)
    site.greet()
    for instruction in legal(study, a_model(study)):
        for _ in range(2):  # asked again, as after a crash of the coordinator
            assert isinstance(site.visit(instruction), Update)


def test_a_later_stage_cannot_come_before_an_earlier_one(make_study: MakeStudy, tmp_path: Path) -> None:
    """Checks of a plan look at the order of its stages, which must then be the order in which they happen."""
    study = make_study(plan=[PRIVATE, PERSONAL], evaluate={"every": 0})
    state = a_model(study)
    private, first, second, _ = legal(study, state)
    site = a_site(study, tmp_path)
    site.greet()
    assert refused(site.visit(replace(private, stage=1)))
    assert refused(site.visit(replace(first, exchange=1)))
    assert isinstance(site.visit(first), Update)  # the private round was missed, which may happen
    assert refused(site.visit(private))
    assert refused(site.visit(replace(private, exchange=2)))
    assert isinstance(site.visit(second), Update)
    assert not (tmp_path / "ledger").exists()


def test_personal_entries_are_not_deleted_by_anybody_outside(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[PERSONAL, TRAIN], evaluate={"every": 0})
    state = a_model(study)
    instructions = legal(study, state)
    site = a_site(study, tmp_path)
    site.greet()
    for instruction in instructions[:2]:
        site.visit(instruction)
    (folder,) = (tmp_path / "local_state").iterdir()
    before = {path.name: load_tensors(path) for path in folder.iterdir()}
    assert len(before) == 2
    for number in (0, 1, -1, 10**6):
        assert refused(site.visit(replace(instructions[0], exchange=number)))
    assert {path.name for path in folder.iterdir()} == set(before)
    # A coordinator that begins anew says so by a greeting; what was there is then put away, not deleted.
    site.greet()
    assert isinstance(site.visit(instructions[0]), Update)
    (aside,) = (tmp_path / "local_state").glob("*.before-1")
    for name, entries in before.items():
        assert all(entries[key].tobytes() == array.tobytes() for key, array in load_tensors(aside / name).items())


def test_no_split_is_evaluated_but_the_one_that_the_study_says(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[TRAIN], evaluate={"every": 2})
    state = a_model(study)
    first, second, third, end = legal(study, state)
    site = a_site(study, tmp_path)
    site.greet()
    assert [one.evaluate for one in (first, second, third, end)] == ["val", None, "val", "test"]
    for honest in (first, second, third, end):
        for split in {"train", "val", "test", "all"} - {honest.evaluate}:
            assert refused(site.visit(replace(honest, evaluate=split)))
        assert refused(site.visit(replace(honest, work=not honest.work)))
        answer = site.visit(honest)
        assert isinstance(answer, Update)
        assert bool(answer.metrics) == (honest.evaluate is not None)


def test_a_site_that_was_started_anew_still_knows_where_it_was(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[PERSONAL, TRAIN], evaluate={"every": 0})
    instructions = legal(study, a_model(study))
    site = a_site(study, tmp_path)
    site.greet()
    assert isinstance(site.visit(instructions[3]), Update)
    for earlier in instructions[:3]:
        assert refused(a_site(study, tmp_path).visit(earlier))
    assert isinstance(a_site(study, tmp_path).visit(instructions[4]), Update)
    # The record was torn by a crash while it was written: what is whole still counts.
    (record,) = (tmp_path / "progress").iterdir()
    record.write_bytes(record.read_bytes() + b"9999")
    again = a_site(study, tmp_path)
    assert refused(again.visit(instructions[3]))
    assert isinstance(again.visit(instructions[5]), Update)


def test_private_work_takes_no_own_entries_that_noise_has_not_touched(make_study: MakeStudy, tmp_path: Path) -> None:
    """Played as if the plan's check had let it through: what really happened is looked at once more."""
    study = make_study(plan=[PERSONAL, PRIVATE], evaluate={"every": 0})
    first, second, private, _ = legal(study, a_model(study))
    site = a_site(study, tmp_path)
    site.greet()
    for instruction in (first, second):
        assert isinstance(site.visit(instruction), Update)
    answer = site.visit(private)
    assert isinstance(answer, Refusal)
    assert answer.code is Code.POLICY
    assert not (tmp_path / "ledger").exists()


def test_noised_figures_are_not_of_a_model_that_noise_has_not_touched(make_study: MakeStudy, tmp_path: Path) -> None:
    """A personal head without noise carries its training patients into the counts of the test patients."""
    for plan, tells in (([PERSONAL], False), ([TRAIN], True)):
        study = make_study(plan=plan, evaluate={"every": 0})
        folder = tmp_path / plan[0]["name"]
        site = a_site(study, folder, OPEN.model_copy(update={"metrics": "noised"}))
        site.greet()
        *work, end = legal(study, a_model(study))
        for instruction in work:
            assert isinstance(site.visit(instruction), Update)
        answer = site.visit(end)
        assert isinstance(answer, Update)
        assert bool(answer.metrics) == tells
        assert (folder / "ledger").exists() == tells


def test_work_that_fails_in_silence_says_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    """Whether training diverged says something of the patients; where policy closes figures, it does not leave."""
    wild = PERSONAL | {"local": PERSONAL["local"] | {"lr": 1e38, "optimiser": "sgd"}}
    answers = {}
    for name, stage in (("calm", PERSONAL), ("wild", wild)):
        study = make_study(plan=[stage], evaluate={"every": 0})
        site = a_site(study, tmp_path / name, CLOSED)
        site.greet()
        answers[name] = site.visit(legal(study, a_model(study))[0])
    calm, wild_answer = answers["calm"], answers["wild"]
    assert isinstance(calm, Update)
    assert calm == wild_answer
    assert "failed in silence" in (tmp_path / "wild" / "site.log").read_text()
    assert not list((tmp_path / "wild" / "local_state").rglob("*.safetensors"))


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "study": st.sampled_from(["", "0" * 64]),
    "exchange": st.integers(-2, 9),
    "stage": st.integers(-2, 3),
    "round": st.integers(-1, 4),
    "work": st.booleans(),
    "evaluate": st.sampled_from(["train", "val", "test", "all"]),
}


@pytest.fixture(scope="module")
def course(make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[Instruction]]:
    study = make_study(plan=[PERSONAL, TRAIN], evaluate={"every": 2})
    site = a_site(study, tmp_path_factory.mktemp("course"))
    site.greet()
    return site, legal(study, a_model(study))


@given(lie=st.fixed_dictionaries({}, optional=FIELDS), at=st.integers(0, 5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_changed_in_an_instruction_is_refused(
    course: tuple[Site, list[Instruction]], lie: dict[str, Any], at: int
) -> None:
    """An instruction that differs from every legal one in any word about the course is not carried out."""
    site, instructions = course
    asked = replace(instructions[at], **lie)
    step = step_at(site._study, asked.exchange)
    said = asked.study, asked.stage, asked.round, asked.work
    honest = step is not None and said == (site._study.digest, step.stage, step.round, step.work)
    # That nothing is evaluated is no lie: a coordinator may know enough already.
    honest = honest and asked.evaluate in (None, split_at(site._study, step))
    if honest:
        return
    answer = site.visit(asked)
    assert isinstance(answer, Refusal)
    assert answer.code in (Code.OUT_OF_TURN, Code.UNKNOWN_STUDY)
