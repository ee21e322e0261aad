"""A server's home, a scripted server in Flower's place, and a run that can be begun on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.operations import deploy
from fedgraft.server.operations.deploy import prepare
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from helpers.ports import free_port
from helpers.scripted_control import SITES, ScriptedControl

STUDY = {
    "name": "test",
    "tasks": [{"name": "cls", "classes": ["a", "b"]}],
    "input": {"kind": "image", "size": 32},
    "model": {"backbone": "slim_resnet", "weights": None},
    "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    kits = tmp_path_factory.mktemp("kits") / "kits"
    server = {"host": "localhost", "port": free_port(), "inner_port": free_port()}
    Authority(kits).provision(Consortium.model_validate({"name": "trial", "server": server, "sites": list(SITES)}))
    made = Authority(kits).home
    made.studies.mkdir()
    return made


@pytest.fixture
def control(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedControl]:
    monkeypatch.setattr(deploy, "_POLL_S", 0.02)
    monkeypatch.setattr(deploy, "_PAUSE_S", 0.05)
    made = ScriptedControl(home)
    yield made
    made.close()


@pytest.fixture
def study() -> Study:
    return parse_study(STUDY, "test")


@pytest.fixture
def run(study: Study, tmp_path: Path) -> Path:
    prepare(study, SITES, tmp_path / "run")
    return tmp_path / "run"
