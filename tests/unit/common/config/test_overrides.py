"""What was typed wrong on a command line is told with the flag, what there is instead, and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.common.base.errors import StudyError
from fedgraft.common.study.study import find_study

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "rounds.min_site=2",
            "rounds.min_site: there is no such key; did you mean min_sites? "
            "There are: deadline_s, max_change, min_sites, quorum",
        ),
        ("metod=fedavg", "metod: there is no such key; did you mean method? There are: clusters, compare, evaluate,"),
        ("plan.1.local.lrr=3", "plan.1.local.gradient.lrr: there is no such key; did you mean lr? There are: augment,"),
        ("plan.1.local.lr=-3", "plan.1.local.gradient.lr: Input should be greater than 0 (found -3)"),
        ("plan.9.rounds=3", "there is no '9' to set a key in"),
        ("rounds", "must look like key=value"),
    ],
)
def test_what_is_set_wrong_is_told_with_the_flag(command: Command, typed: str, said: str) -> None:
    code, _, err = command("study", "check", "quickstart", "--set", typed)
    assert code == 2
    assert f"--set {typed}: {said}" in err


def test_a_fault_of_the_file_is_not_blamed_on_the_flag(command: Command, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntasks: [{name: cls, classes: [a]}]\nmethod: fedavg\n")
    code, _, err = command("study", "check", "mine.yaml", "--set", "rounds.quorum=2")
    assert code == 2
    assert "  - --set rounds.quorum=2: rounds.quorum: Input should be less than or equal to 1" in err
    assert "  - tasks.0.classes: " in err


def test_an_engine_that_does_not_exist_is_told_with_those_that_do(command: Command) -> None:
    code, _, err = command("simulate", "quickstart", "--engine", "poool")
    assert code == 2
    assert "--engine poool: there is no such engine; did you mean pool? There are: inprocess, pool, ray." in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("method.rounds=1000000000", "1,000,000,000 rounds meant? They would take 32 years at the very least"),
        ("method.local.epochs=1000000000", "epochs in all rounds meant?"),
    ],
)
def test_a_study_that_would_not_end_in_a_lifetime_is_questioned(command: Command, tmp_path, typed: str, said: str):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntasks: [{name: cls, classes: [a, b]}]\ninput: {kind: image, size: 32}\n"
        "model: {backbone: slim_resnet, weights: null}\nmethod: {name: fedavg, rounds: 3}\n"
    )
    assert command("study", "check", "mine.yaml")[0] == 0
    code, _, err = command("study", "check", "mine.yaml", "--set", typed)
    assert code == 2
    assert said in err


def test_a_plan_takes_the_place_of_a_method_and_a_method_that_of_a_plan(tmp_path: Path) -> None:
    """`plan=[]` is how a person says "evaluate only", of a study that trains and of one that a run wrote down."""
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntasks: [{name: cls, classes: [none, smooth, spiculated, ring]}]\nmethod: fedavg\n"
        "model: {backbone: slim_resnet, weights: null, heads: fresh}\n"
    )
    mine, finished = tmp_path / "mine.yaml", "model.weights=slim-ctmr-synthetic"
    for path in (mine, Path("quickstart")):
        study, _ = find_study(path, ("plan=[]", finished))
        assert (study.plan, study.model.heads) == ((), "weights")
        trained, _ = find_study(path, ("method=ridge_probe",))
        assert [stage.name for stage in trained.plan] == ["probe"]
    named, _ = find_study(Path("quickstart"), ("method.name=fedbn", "method.rounds=4"))
    assert [stage.rounds for stage in named.plan] == [4]
    for typed, said in (
        (("plan=[]", "method=fedavg"), "give either method or plan"),
        (("plan=[]",), "name its run or its file as model.weights"),
        (("plan=[]", finished, "model.heads=fresh"), "leave model.heads out"),
    ):
        with pytest.raises(StudyError, match=said):
            find_study(mine, typed)
