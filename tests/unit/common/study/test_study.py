from pathlib import Path

import pytest
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.common.study.methods.presets import NamedMethod, expand, presets
from fedgraft.common.study.plan import (
    Gradient,
    Recalibrate,
    Role,
    Select,
    Statistics,
    Tag,
    named,
)
from fedgraft.common.study.stages.aggregates import Ridge
from fedgraft.common.study.study import Study, parse_study, read_study

TASKS = [{"name": "cls", "classes": ["benign", "malignant"]}]
MINIMAL = {"name": "tiny", "tasks": TASKS, "method": "fedavg"}


def test_a_preset_expands_to_stages_and_the_expanded_study_is_the_same_study():
    study = parse_study(MINIMAL, "here")
    again = parse_study(yaml.safe_load(study.to_yaml()), "there")
    assert again == study
    assert again.digest == study.digest
    assert isinstance(study.plan[0].local, Gradient)


def test_a_copy_with_another_seed_is_another_study(make_study):
    study = make_study()
    before = study.digest
    copy = study.model_copy(update={"seed": study.seed + 1})
    assert copy.digest == make_study(seed=study.seed + 1).digest != before
    assert study.digest == before


def test_every_fault_is_reported_at_once_with_its_key():
    bad = {
        "name": "Bad Name",
        "tasks": [{"name": "cls", "classes": ["one"]}],
        "method": {"name": "fedavgg", "round": 3},
        "input": {"kind": "image", "size": 4},
        "split": {"train": 0.9, "val": 0.9, "test": 0.1},
        "rounds": {"quorum": 2},
        "lr": 0.1,
    }
    with pytest.raises(StudyError) as caught:
        parse_study(bad, "bad.yaml")
    text = str(caught.value)
    assert text.startswith("bad.yaml: ")
    for key in (
        "name:",
        "tasks.0.classes:",
        "method.round:",
        "input.image.size:",
        "split:",
        "rounds.quorum:",
        "lr:",
    ):
        assert key in text, key


def test_an_unknown_method_is_answered_with_the_names_there_are():
    with pytest.raises(StudyError, match="fedbn"):
        parse_study(MINIMAL | {"method": "fedavgg"}, "here")


def test_method_and_plan_together_are_refused():
    plan = [stage.model_dump() for stage in expand(NamedMethod(name="fedavg"), table=False)]
    with pytest.raises(StudyError, match="either method or plan"):
        parse_study(MINIMAL | {"plan": plan}, "here")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_named(tmp_path: Path, content: str, words: str):
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(StudyError, match=words) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(StudyError, match="no such file"):
        read_study(tmp_path / "nothing.yaml")


def test_overrides_reach_nested_keys_and_bad_ones_are_all_reported(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"scenario": "xray5", "method": {"name": "fedavg", "rounds": 3}}))
    study, scenario = read_study(path, ["method.rounds=7", "seed=5", "tasks.0.name=finding"])
    assert (study.plan[0].rounds, study.seed, study.tasks[0].name) == (7, 5, "finding")
    assert scenario == "xray5"
    with pytest.raises(StudyError) as caught:
        read_study(path, ["nonsense", "name.x=1", "seed={"])
    assert len(caught.value.faults) == 3


def test_the_scenario_is_no_part_of_what_the_sites_are_asked(tmp_path: Path):
    digests = []
    for scenario in ("one", "two"):
        path = tmp_path / f"{scenario}.yaml"
        path.write_text(yaml.safe_dump(MINIMAL | {"scenario": scenario}))
        digests.append(read_study(path)[0].digest)
    assert digests[0] == digests[1]


def test_a_study_is_frozen():
    study = parse_study(MINIMAL, "here")
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3  # type: ignore[misc]


def test_any_change_of_what_is_asked_changes_the_digest():
    base = parse_study(MINIMAL, "here").digest
    for change in ({"seed": 1}, {"split": {"train": 0.5, "val": 0.2, "test": 0.3}}, {"method": "fedbn"}):
        assert parse_study(MINIMAL | change, "here").digest != base


def test_every_preset_makes_a_valid_study():
    for name in presets():
        assert isinstance(parse_study(MINIMAL | {"method": {"name": name, "teacher": "a finished run"}}, name), Study)
    plan = parse_study(MINIMAL | {"method": "graft"}, "here").plan
    assert [type(stage.local) for stage in plan] == [Statistics, Gradient, Recalibrate]
    assert isinstance(plan[0].aggregate, Ridge)


def test_selections_by_name_role_and_depth():
    stem, deep, head = Tag(Role.STEM, 0), Tag(Role.BODY, 3), Tag(Role.HEAD, 9, "cls")
    stats, affine = Tag(Role.NORM_STATS, 2), Tag(Role.NORM_AFFINE, 2)
    everything = [stem, deep, head, stats, affine]
    assert [tag in named("all_but_norm") for tag in everything] == [True, True, True, False, False]
    assert [tag in named("all_but_norm_stats") for tag in everything] == [True, True, True, False, True]
    assert [tag in named("heads") for tag in everything] == [False, False, True, False, False]
    late = Select.model_validate({"roles": ["body", "head"], "min_depth": 3})
    assert [tag in late for tag in everything] == [False, True, True, False, False]
    assert Select.model_validate(late.model_dump()) == late
    with pytest.raises(ValueError, match="all_but_norm"):
        Select.model_validate("everything")


def test_gradient_needs_exactly_one_length():
    for lengths in ({}, {"epochs": 1, "steps": 1}):
        with pytest.raises(ValueError, match="either epochs or steps"):
            Gradient(**lengths)
