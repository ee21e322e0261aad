"""A coordinator that breaks courses off: what begins anew, goes back or fails on the way tells and loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.privacy.policy import Metrics
from fedgraft.common.base.files import load_tensors
from fedgraft.common.protocol.instructions import Code, Refusal, Update
from helpers.courses import OPEN, PERSONAL, PRIVATE, TRAIN, a_cohort, a_model, a_site, legal
from helpers.work import MakeStudy

LAST = PERSONAL | {"rounds": 1}
"""A silent personal stage, for the end of a plan: nothing private may come after it."""


def test_a_course_that_fails_as_it_begins_deletes_no_own_entries(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[PERSONAL, TRAIN], evaluate={"every": 0})
    first, second, *_ = legal(study, a_model(study))
    site = a_site(study, tmp_path)
    site.greet()
    site.visit(first)
    site.visit(second)
    (folder,) = (tmp_path / "local_state").iterdir()
    before = {path.name: load_tensors(path) for path in folder.iterdir()}
    site.greet()
    assert isinstance(site.visit(replace(first, tensors={})), Refusal)  # on record, and not carried out
    assert isinstance(site.visit(first), Update)
    (aside,) = (tmp_path / "local_state").glob("*.before-1")
    for name, entries in before.items():
        assert all(entries[key].tobytes() == array.tobytes() for key, array in load_tensors(aside / name).items())


def test_a_new_course_does_not_forget_whose_entries_are_bare(make_study: MakeStudy, tmp_path: Path) -> None:
    """The record of the stages worked in begins anew, so own entries must as well: noise would not hide them.

    The coordinator begins anew with an exchange that fails, and jumps to the end.
    """
    study = make_study(plan=[PRIVATE, LAST], evaluate={"every": 0})
    private, personal, end = legal(study, a_model(study))
    site = a_site(study, tmp_path, OPEN.model_copy(update={"metrics": "noised"}))
    site.greet()
    for instruction in (private, personal):
        assert isinstance(site.visit(instruction), Update)
    site.greet()
    assert isinstance(site.visit(replace(private, tensors={})), Refusal)
    site.visit(end)
    assert not (tmp_path / "local_state" / study.digest).exists()


def test_greetings_lead_one_exchange_back_and_not_step_by_step(make_study: MakeStudy, tmp_path: Path) -> None:
    """Only the last few versions of a site's own entries are kept: who goes further back would have them deleted."""
    study = make_study(plan=[PERSONAL | {"rounds": 6}], evaluate={"every": 0})
    *work, end = legal(study, a_model(study))
    site = a_site(study, tmp_path)
    site.greet()
    for instruction in work:
        assert isinstance(site.visit(instruction), Update)
    for back, allowed in ((work[4], True), (work[3], False), (work[2], False), (work[4], True)):
        site.greet()
        answer = site.visit(back)
        assert isinstance(answer, Update) == allowed
        assert allowed or answer == Refusal(back.exchange, Code.OUT_OF_TURN)
    assert isinstance(a_site(study, tmp_path).visit(work[5]), Update)
    assert isinstance(site.visit(end), Update)


@pytest.mark.parametrize("last", [True, False], ids=["figures", "private work"])
def test_what_failed_in_silence_does_not_show_later(make_study: MakeStudy, tmp_path: Path, *, last: bool) -> None:
    """A model whose training diverges only if one patient is there: figures, or private work, would say that it did."""
    follows = [] if last else [PRIVATE]
    said = {}
    for name, rate in (("calm", 0.1), ("wild", 1e38)):
        stage = LAST | {"local": LAST["local"] | {"lr": rate, "optimiser": "sgd"}}
        study = make_study(plan=[stage, *follows], evaluate={"every": 0})
        site = a_site(study, tmp_path / name, OPEN.model_copy(update={"metrics": "noised"}))
        site.greet()
        said[name] = [site.visit(instruction) for instruction in legal(study, a_model(study))]
        assert bool(list((tmp_path / name / "local_state").rglob("*.safetensors"))) == (name == "calm")
    assert said["calm"] == said["wild"]


@pytest.mark.parametrize("metrics", ["noised", "suppressed"])
def test_a_model_without_a_number_for_one_patient_is_not_told(
    make_study: MakeStudy, tmp_path: Path, metrics: Metrics
) -> None:
    """The one answer that a study gets is no oracle either: it comes, whatever the model makes of a single case."""
    study = make_study(plan=[TRAIN | {"rounds": 1}], evaluate={"every": 0})
    model = a_model(study)
    *_, end = legal(study, model)
    (weight,) = (key for key, array in model.items() if key.startswith("heads.") and array.ndim == 2)
    shown = {}
    for name, scale in (("sound", 1.0), ("overflows", 3e38)):
        crafted = model | {weight: np.full_like(model[weight], scale)}
        site = a_site(study, tmp_path / name, OPEN.model_copy(update={"metrics": metrics}))
        site.greet()
        shown[name] = site.visit(replace(end, tensors=crafted))
    assert len(a_cohort().splits["test"])
    for answer in shown.values():
        assert isinstance(answer, Update)
        assert set(answer.metrics) == {"cls"}
