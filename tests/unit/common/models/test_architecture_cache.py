"""What is remembered of a model is what the model is; and nothing is found that is not that, or that was damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.checks.explain import check_study
from fedgraft.common.models import architecture_cache
from fedgraft.common.models.architecture import Architecture, Blueprint, blueprint
from fedgraft.common.models.architecture_cache import architecture_of, recall, remember
from fedgraft.common.models.ensemble import Ensemble
from fedgraft.common.models.initialise import make_model, make_teacher
from fedgraft.common.models.model import TransferModel, build_model, state_arrays
from fedgraft.common.models.weights import save_weights
from fedgraft.common.study.study import Study, read_study
from helpers.work import MakeStudy

SHIPPED = sorted((CONFIGS / "studies").glob("*.yaml"))
CHEAP = ("slim_resnet", "slim_resnet_gn", "resnet18", "resnet18_gn", "mobilenet_v3_small", "shufflenet_v2_x0_5")
MASK = {"name": "lesion", "kind": "segmentation"}
CLASSES = {"name": "cls", "classes": ["no", "yes"]}
TABLE = {"kind": "table", "numeric": ["age", "size"], "categorical": {"sex": ["f", "m"]}}
TABLE_PLAN = [
    {"name": "scale", "local": {"kind": "statistics", "of": "columns"}, "aggregate": {"kind": "standardise"}},
    {"name": "fit", "local": {"kind": "gradient", "steps": 1}, "share": "all", "aggregate": {"kind": "mean"}},
]
DANN = {"name": "dann", "rounds": 1, "local": {"steps": 1}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def remembered(plan: Blueprint) -> Architecture:
    """Built, kept, and read again."""
    architecture_of(plan)
    found = recall(plan)
    assert found is not None
    return found


def assert_is(found: Architecture, model: TransferModel) -> None:
    """Against the naive twin: the model itself, entry by entry, in order."""
    state = model.state_dict()
    assert list(found.entries) == list(state)
    for key, value in state.items():
        assert found.entries[key].shape == tuple(value.shape)
        assert getattr(torch, found.entries[key].dtype) == value.dtype
    assert found.tags == model.tags()
    assert found.sizes == {key: value.numel() for key, value in state.items()}
    parts = model.backbone.base_models if isinstance(model.backbone, Ensemble) else []
    assert len(found.base_models) == len(parts)
    for inner, part in zip(found.base_models, parts, strict=True):
        assert_is(inner, part)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_study_that_ships_is_remembered_as_it_is_built(path: Path) -> None:
    study, _ = read_study(path)
    assert_is(remembered(blueprint(study, study.model)), make_model(study.model_copy(update={"seed": 91})))
    for teacher in filter(None, map(study.teacher_of, study.plan)):
        assert_is(remembered(blueprint(study, teacher, plain=True)), make_teacher(study, teacher))


@pytest.mark.parametrize("backbone", CHEAP)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_backbone_is_remembered_as_it_is_built(make_study: MakeStudy, backbone: str, channels: int) -> None:
    wanted = {"kind": "image", "size": 48, "channels": channels}
    study = make_study(model={"backbone": backbone}, input=wanted, method=DANN)
    assert study.domain_discriminators
    assert_is(remembered(blueprint(study, study.model)), make_model(study))


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": [CLASSES, MASK]},
        {"tasks": [MASK], "model": {"backbone": "resnet18"}},
        {"input": TABLE, "model": {"backbone": "table_linear"}, "plan": TABLE_PLAN},
        {"input": TABLE, "model": {"backbone": "table_mlp"}, "plan": TABLE_PLAN},
        {
            "model": {
                "backbone": "ensemble",
                "base_models": [{"weights": "one"}, {"weights": "other", "backbone": "shufflenet_v2_x0_5"}],
            },
            "method": "average_ensemble",
            "tasks": [{"name": "z", "classes": ["no", "yes"]}, {"name": "a", "classes": ["1", "2", "3"]}],
        },
    ],
    ids=["masks", "masks_alone", "table_linear", "table_mlp", "ensemble"],
)
def test_all_kinds_of_models_are_remembered_as_they_are_built(make_study: MakeStudy, changes: dict[str, Any]) -> None:
    study = make_study(**changes)
    assert_is(remembered(blueprint(study, study.model)), make_model(study))


def test_what_changes_a_model_changes_what_is_looked_for(make_study: MakeStudy) -> None:
    study = make_study()
    architecture_of(blueprint(study, study.model))
    assert recall(blueprint(make_study(seed=8, name="else"), study.model)) is not None
    others = [
        make_study(input={"kind": "image", "size": 48}),
        make_study(input={"kind": "image", "size": 32, "channels": 3}),
        make_study(tasks=[CLASSES]),
        make_study(tasks=[*study.model_dump(mode="json")["tasks"], MASK]),
        make_study(method=DANN),
        make_study(model={"backbone": "slim_resnet_gn"}),
    ]
    assert [recall(blueprint(other, other.model)) for other in others] == [None] * len(others)


@pytest.mark.parametrize("changed", ["code", "torch", "torchvision", "gone"])
def test_nothing_is_found_by_other_code_or_with_other_libraries(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    study = make_study()
    plan = blueprint(study, study.model)
    remembered(plan)
    installed = architecture_cache.version

    def version(name: str) -> str:
        if changed == "gone":
            raise architecture_cache.PackageNotFoundError(name)
        return installed(name) + ("+patched" if name == changed else "")

    monkeypatch.setattr(architecture_cache, "version", version)
    if changed == "code":
        monkeypatch.setattr(architecture_cache, "code_digest", lambda: "0" * 64)
    assert recall(plan) is None
    assert_is(architecture_of(plan), make_model(study))


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "other"])
def test_a_damaged_file_counts_as_none_and_is_written_anew(make_study: MakeStudy, home: Path, harm: str) -> None:
    study = make_study()
    plan = blueprint(study, study.model)
    remembered(plan)
    (file,) = (home / "architectures").iterdir()
    data = file.read_bytes()
    harmed = {
        "cut": data[: len(data) // 2],
        "changed": data.replace(b'"head"', b'"body"', 1),
        "empty": b"",
        "other": b"{}",
    }
    assert harmed[harm] != data
    file.write_bytes(harmed[harm])
    assert recall(plan) is None
    assert_is(architecture_of(plan), make_model(study))
    assert file.read_bytes() == data


def test_a_home_that_cannot_be_written_only_costs_time(make_study: MakeStudy, home: Path) -> None:
    home.write_text("no folder")
    study = make_study()
    assert_is(architecture_of(blueprint(study, study.model)), make_model(study))


def test_the_oldest_make_room(make_study: MakeStudy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture_cache, "_MOST", 2)
    plans = [
        blueprint(one, one.model) for one in (make_study(input={"kind": "image", "size": n}) for n in (32, 48, 64))
    ]
    built = architecture_of(plans[0])
    for at, plan in enumerate(plans):
        remember(plan, built)
        for file in (home / "architectures").iterdir():
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**9 * (3 - at)))
    assert [recall(plan) is not None for plan in plans] == [False, True, True]


CHECK = """
import json, sys
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import parse_study
said = []
for plain in json.loads(sys.stdin.read()):
    try:
        found = check_study(parse_study(plain, "study"), "study")
        said.append([found.provenance.says, found.provenance.licence, found.architecture.sizes])
    except FedgraftError as error:
        said.append(str(error))
print(json.dumps([said, "torch" in sys.modules]))
"""


def said_without_torch(studies: list[Study]) -> list[Any]:
    environment = os.environ | {"PYTHONPATH": str(Path(fedgraft.__file__).parents[1])}
    asked = json.dumps([study.model_dump(mode="json") for study in studies])
    done = subprocess.run(
        [sys.executable, "-c", CHECK], input=asked, env=environment, capture_output=True, text=True, check=True
    )
    said, torch_too = json.loads(done.stdout)
    assert not torch_too
    return said


def said_with_torch(study: Study) -> Any:
    try:
        found = check_study(study, "study")
    except FedgraftError as error:
        return str(error)
    return [found.provenance.says, found.provenance.licence, found.architecture.sizes]


def test_a_check_without_torch_says_the_very_same_of_good_and_bad_weights(make_study: MakeStudy, home: Path) -> None:
    """The weights are read and compared each time, however often the study was checked."""
    state = state_arrays(build_model("slim_resnet", {}, channels=1, seed=5))
    facts = {"backbone": "slim_resnet", "input": None, "classes": {}, "synthetic": True, "how": "by hand"}
    facts |= {"trained_on": "noise", "licence": "CC0-1.0"}

    def kept(name: str, **changes: np.ndarray | None) -> Path:
        arrays = {key: array for key, array in (state | changes).items() if array is not None}
        save_weights(home / "weights" / name, arrays, facts | {"id": name})
        return home / "weights" / name

    stem, norm = "backbone.conv1.weight", "backbone.bn1.weight"
    kept("good")
    kept("colour", **{stem: np.repeat(state[stem], 3, axis=1)})
    kept("nan", **{norm: np.full_like(state[norm], np.nan)})
    kept("short", **{norm: None})
    kept("more", **{"backbone.else": np.zeros(3, np.float32)})
    kept("wide", **{norm: np.zeros(5, np.float32)})
    for at, name in enumerate(("flipped", "cut")):
        file = shutil.copytree(kept("good"), home / "weights" / name) / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if at == 0 else data[:-100])
    names = ("good", "colour", "nan", "short", "more", "wide", "flipped", "cut", "unknown")
    studies = [make_study(model={"backbone": "slim_resnet", "weights": name}) for name in names]
    studies.append(make_study(split={"train": 0.5, "val": 0.5, "test": 0.0}))
    with_torch = [said_with_torch(study) for study in studies]
    assert said_without_torch(studies) == with_torch
    assert [isinstance(said, str) for said in with_torch] == [False] * 2 + [True] * 8
    assert with_torch[0][:2] == ["good", "CC0-1.0"]
