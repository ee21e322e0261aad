"""Every file that ships loads, and explains itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.checks.explain import check_study, explain, sentence
from fedgraft.common.models.model import build_model
from fedgraft.common.study.study import locate, parse_study, read_study
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.weights.weights_import import WeightsSource, import_weights

STUDIES = sorted((CONFIGS / "studies").glob("*.yaml"))
SCENARIOS = sorted((CONFIGS / "scenarios").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that come inside a package are unpacked below it when a study names them."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))


def test_there_are_studies_and_scenarios():
    assert {path.stem for path in STUDIES} >= {"quickstart", "breast_cancer", "source_ctmr"}
    assert {path.stem for path in SCENARIOS} >= {"xray5", "breast_cancer", "folders"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_that_ships_has_no_fault_and_names_a_scenario_that_ships(path: Path):
    study, scenario = read_study(path)
    check_study(study, path.name)
    assert study.name == path.stem
    assert scenario is not None
    assert load_scenario(scenario).sites


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_written_out_is_the_same_study(path: Path):
    study, _ = read_study(path)
    again = parse_study(yaml.safe_load(study.to_yaml()), "shown")
    assert again == study
    assert again.digest == study.digest


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_stage_is_explained_in_words(path: Path):
    study, _ = read_study(path)
    explained = explain(study, path.name)
    for stage, row in zip(study.plan, explained.rows, strict=True):
        words = sentence(stage, row)
        assert words.endswith(".")
        assert words[0].isupper()
        if row["shared_parameters"]:
            assert f"{row['shared_parameters']:,}" in words


@pytest.mark.parametrize("name", ["quickstart", "xray5", "folders"])
def test_the_files_people_copy_explain_every_key(name: str):
    """A key is explained in its own line, or by a comment line above it."""
    path = next(path for path in STUDIES + SCENARIOS if path.stem == name)
    lines = path.read_text(encoding="utf-8").splitlines()
    seen: set[str] = set()
    for number, line in enumerate(lines):
        found = re.match(r"\s*(?:- )?([a-z_]+):", line)
        if found is None or found[1] in seen:
            continue
        above = lines[number - 1].lstrip() if number else ""
        if "#" in line or above.startswith("#"):
            seen.add(found[1])
    keys = {found[1] for line in lines if (found := re.match(r"\s*(?:- )?([a-z_]+):", line))}
    assert keys - seen <= {"model", "weight_decay", "sites", "cohort", "cls"}, keys - seen


IMAGENET = {"normalise": "fixed", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COLOUR, GREY = {"channels": 3, **IMAGENET}, {"channels": 1, "normalise": "fixed", "mean": [0.449], "std": [0.226]}


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (COLOUR, []),
        (GREY, []),
        ({"channels": 3}, ["input.normalise"]),
        ({**COLOUR, "mean": [0.5]}, ["input.mean"]),
        ({**GREY, "mean": [0.5], "std": [0.5]}, ["input.mean", "input.std"]),
    ],
)
def test_images_must_be_prepared_as_the_weights_need_them(make_study, tmp_path, monkeypatch, changes, faults):
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path))
    state = build_model("slim_resnet", {}, channels=3, seed=0).state_dict()
    torch.save(state, tmp_path / "w.pth")
    import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0", normalise="imagenet"), "theirs")
    wanted = {"kind": "image", "size": 32, **changes}
    study = make_study(input=wanted, model={"backbone": "slim_resnet", "weights": "theirs"})
    if not faults:
        check_study(study, "test")
        return
    with pytest.raises(StudyError) as caught:
        check_study(study, "test")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == faults


def test_a_folder_of_the_same_name_hides_no_study_and_no_scenario_that_ships(tmp_path, monkeypatch):
    """As a person has it who keeps what came out of `cxr` in a folder of that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "xray5", "mine"):
        Path(name).mkdir()
    study, scenario = read_study(locate(Path("quickstart")))
    assert (study.name, scenario) == ("quickstart", "xray5")
    assert load_scenario("xray5").name == "xray5"
    for of in (locate, load_scenario):
        with pytest.raises(StudyError, match=r"no (study|scenario) of that name ships"):
            of(Path("mine"))
