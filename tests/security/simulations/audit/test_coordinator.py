"""The audit's coordinator that lies: sound sites hold against it, and each careless one is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.runtime.site import Site
from fedgraft.common.protocol.instructions import Answer, Instruction, Update
from fedgraft.common.study.study import Study, find_study
from fedgraft.simulations.audit.lying import consortium, oracle
from fedgraft.simulations.audit.lying.courses import carried_out
from fedgraft.simulations.audit.lying.lies import lies_about, others
from helpers import careless
from helpers.work import MakeStudy

COLUMNS = {
    "name": "columns",
    "local": {"kind": "statistics", "of": "columns"},
    "share": {"roles": ["scale"]},
    "aggregate": {"kind": "standardise"},
}
LOCAL = {"kind": "gradient", "steps": 1, "batch_size": 8, "lr": 0.01}
HEADS = {"name": "heads", "local": LOCAL | {"train": "heads"}, "share": "heads", "aggregate": {"kind": "mean"}}
PULLED = {
    "name": "pulled",
    "local": LOCAL | {"losses": [{"kind": "supervised"}, {"kind": "proximal", "to": "pretrained"}]},
    "share": "all",
    "aggregate": {"kind": "mean"},
    "rounds": 2,
}
PERSONAL = {
    "name": "personal",
    "local": LOCAL | {"train": {"roles": ["body"]}},
    "keep": {"roles": ["body"]},
    "rounds": 2,
}
PRIVATE = HEADS | {
    "name": "private",
    "local": LOCAL | {"train": "heads", "private": {"noise_multiplier": 1.0, "sample_rate": 0.5}},
    "rounds": 2,
}


@pytest.fixture
def a_study(make_study: MakeStudy) -> Callable[..., Study]:
    def make(*plan: dict[str, object], secure: bool = False) -> Study:
        return make_study(
            plan=list(plan),
            secure_aggregation=secure,
            input={"kind": "table", "numeric": ["a", "b", "c"]},
            model={"backbone": "table_mlp", "weights": None},
        )

    return make


@pytest.fixture
def private(a_study: Callable[..., Study]) -> Study:
    return a_study(COLUMNS, PRIVATE)


@pytest.fixture
def personal(a_study: Callable[..., Study]) -> Study:
    return a_study(COLUMNS, PERSONAL, HEADS)


@pytest.fixture
def secure(a_study: Callable[..., Study]) -> Study:
    return a_study(PULLED, HEADS, secure=True)


# Sound sites.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["private", "personal", "secure"])
def test_a_sound_site_carries_out_nothing_that_the_study_does_not_have(
    kind: str, request: pytest.FixtureRequest
) -> None:
    found = carried_out(request.getfixturevalue(kind), 0)
    assert found.holds, found.words
    count, _, words = found.words.partition(" ")
    assert int(count) > 300
    assert words.startswith("instructions that the study does not have: none carried out; ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "private"])
def test_studies_that_ship_hold_under_secure_aggregation(name: str) -> None:
    """As they are they hold in `test_twelve_ways.py`, in the audit of every study that ships."""
    found = carried_out(find_study(Path(name), ("secure_aggregation=true",))[0], 0)
    assert found.holds, found.words


# Careless sites.

CARELESS = [
    (careless.stage_not_checked, "personal", "stage was carried out"),
    (careless.round_not_checked, "personal", "round was carried out"),
    (careless.split_not_checked, "personal", "evaluate was carried out"),
    (careless.work_flag_not_checked, "personal", "work was carried out"),
    (careless.study_not_checked, "personal", "study was carried out"),
    (careless.turn_not_checked, "personal", "an exchange that is over was carried out"),
    (careless.turn_not_written, "personal", "an exchange that is over was carried out"),
    (careless.each_greeting_leads_one_back, "personal", "a step too far back after many greetings was carried out"),
    (careless.own_entries_not_put_aside, "personal", "own entries were deleted by a course that begins anew"),
    (careless.strangers_taken, "personal", "tensors was carried out"),
    (careless.own_entries_deleted_before_the_look, "personal", "was refused, and changed local_state"),
    (careless.bare_entries_allowed, "private", "own entries that were computed without noise was carried out"),
    (careless.replies_not_kept, "private", "an honest instruction was refused (budget)"),
    (careless.figures_not_kept, "private", "got another answer when it came again"),
    (careless.rounds_computed_anew, "private", "got another answer when it came again"),
    (careless.masks_without_the_split, "secure", "evaluate was masked for a sum with those who were told otherwise"),
    (careless.masks_without_what_came, "secure", "tensors was masked for a sum with those who were told otherwise"),
    (careless.masks_without_what_is_beside, "secure", "tensors was masked for a sum with those"),
    (careless.one_group_per_stage, "secure", "fewer sites was masked with another group"),
    (careless.any_group, "secure", "fewer sites was masked with another group"),
    (careless.lost_masks_forgotten, "secure", "masks.sqlite was lost: fewer sites got a sum"),
    (careless.numbers_used_again, "secure", "was masked under a number that was used"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "kind", "words"), CARELESS, ids=lambda value: getattr(value, "__name__", None))
def test_a_careless_site_is_found_out(
    broken: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    words: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = request.getfixturevalue(kind)
    broken(monkeypatch)
    monkeypatch.setattr(oracle, "_SHOWN", 10**6)
    found = carried_out(study, 0)
    assert not found.holds
    assert words in found.words


@pytest.mark.slow
def test_the_command_fails_for_a_careless_site(command, personal: Study, tmp_path: Path, monkeypatch) -> None:
    """What it says of a sound one: `test_audit.py`, beside a run."""
    (tmp_path / "study.yaml").write_text(personal.to_yaml())
    careless.turn_not_checked(monkeypatch)
    code, _, err = command("privacy", "audit", "study.yaml", "--out", "found", "--allow-plain")
    assert code == 1
    assert "every stage: coordinator" in err
    found = {one["name"]: one for one in json.loads(Path("found/audit.json").read_text())["findings"]}["coordinator"]
    assert found["passed"] is False
    assert "an exchange that is over was carried out" in found["words"]
    assert found["words"] in Path("found/audit.html").read_text(encoding="utf-8")


# Fields that instructions may have one day.


@dataclass(frozen=True)
class Longer(Instruction):
    """An instruction with one more field."""

    peek: bool = False


def test_every_field_is_lied_about_whatever_it_is_called() -> None:
    honest = Longer("0" * 64, 1, 0, 1, work=True, evaluate="val", tensors={"a": np.ones(3, np.float32)})
    told = lies_about(honest, np.random.default_rng(0))
    assert {name for name, _ in told} == {one.name for one in fields(Longer)}
    assert all(getattr(lie, name) is not getattr(honest, name) for name, lie in told)
    assert ("peek", replace(honest, peek=True)) in [(name, lie) for name, lie in told if name == "peek"]
    with pytest.raises(TypeError, match="no lies are known"):
        list(others(complex, 1j, np.random.default_rng(0)))


@pytest.mark.slow
def test_a_new_field_that_a_site_obeys_is_found_out(personal: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consortium, "Instruction", Longer)
    assert carried_out(personal, 0).holds
    real = Site._visit

    def obeys(self: Site, asked: Instruction) -> Answer:
        answer = real(self, asked)
        peeks = isinstance(asked, Longer) and asked.peek and isinstance(answer, Update)
        return replace(answer, train={"labels": 1.0}) if peeks else answer

    monkeypatch.setattr(Site, "_visit", obeys)
    found = carried_out(personal, 0)
    assert not found.holds
    assert "another peek made a difference" in found.words
