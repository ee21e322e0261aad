"""What a run leaves behind is for whoever ran it, even where the person's mask would let everybody read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_private, private_folder
from fedgraft.server.rounds.resolve import resolve
from fedgraft.simulations.engines.run import Engine, prepare, resume, simulate
from helpers.runs import open_to_others

ROOT = Path(__file__).parents[4]
LOCAL = {"steps": 1, "batch_size": 8, "lr": 0.003}


@pytest.fixture(autouse=True)
def _open_mask() -> Iterator[None]:
    before = os.umask(0o000)
    yield
    os.umask(before)


@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_finished_simulation_is_its_owner_s_alone(hospitals, make_study, tmp_path, engine):
    study = make_study(method={"name": "fedbn", "rounds": 1, "local": LOCAL})
    run = simulate(study, hospitals, tmp_path / "below" / "run", Engine(name=engine))
    assert (run / "report.html").is_file()
    assert len(list(run.rglob("*"))) > 20
    assert open_to_others(run) == []
    assert os.umask(0o000) == 0o000, "the person's own mask is as it was"


def test_so_is_one_that_fails_or_is_continued(hospitals, make_study, tmp_path):
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": LOCAL}, rounds={"min_sites": 4})
    (tmp_path / "run").mkdir(mode=0o777)
    prepare(study, hospitals, tmp_path / "run")
    assert open_to_others(tmp_path / "run") == []
    (tmp_path / "run" / "note.txt").write_text("put there by hand")
    (tmp_path / "run" / "sites" / "south" / "site.json").write_text("{}")
    with pytest.raises(InputError, match=r"south/site\.json: 2 faults"):
        resume(tmp_path / "run")
    assert open_to_others(tmp_path / "run") == []


def test_so_are_heads_that_were_solved_anew(hospitals, make_study, tmp_path):
    plan = [
        {
            "name": "probe",
            "local": {"kind": "statistics", "retain_statistics": True},
            "share": "heads",
            "aggregate": {"kind": "ridge", "ridge_penalty": 0.1},
        }
    ]
    run = simulate(make_study(plan=plan), hospitals, tmp_path / "run")
    resolve(run, tmp_path / "without", ["south"])
    assert open_to_others(tmp_path / "without") == []


def test_what_a_command_writes_is_private(command, hospitals, tmp_path):
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north"]}
    (tmp_path / "consortium.yaml").write_text(yaml.safe_dump(content))
    code, _, err = command("server", "provision", "consortium.yaml", "--out", "kits")
    assert code == 0, err
    assert open_to_others(tmp_path / "kits") == []


def test_links_and_what_lies_elsewhere_are_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("another's")
    elsewhere.chmod(0o644)
    with private_folder(tmp_path / "run"):
        (tmp_path / "run" / "link").symlink_to(elsewhere)
        (tmp_path / "run" / "nowhere").symlink_to(tmp_path / "gone")
    assert elsewhere.stat().st_mode & 0o777 == 0o644
    make_private(tmp_path / "not there")


def test_git_leaves_keys_and_kits_alone():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0

    assert all(map(ignored, ("kits/north.zip", "kits/authority/ca.key", "deploy/kits/server/gate.key", "x.code")))
