"""A run's folder is its owner's alone: it holds models, metrics and, in a simulation, what the sites have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.common.base.files import make_folder, open_private, save_tensors, write_atomic, write_json
from fedgraft.server.operations.deploy import prepare
from fedgraft.server.rounds.resolve import resolve
from fedgraft.simulations.engines.run import simulate


@pytest.fixture(autouse=True)
def _no_help() -> Iterator[None]:
    """The account's own umask closes nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What of a folder others of this machine could read or change."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def test_a_simulated_run_and_what_is_made_of_it_is_its_owners_alone(hospitals, make_study, tmp_path: Path) -> None:
    study = make_study(method={"name": "ridge_probe", "retain_statistics": True})
    run = simulate(study, hospitals, tmp_path / "runs" / "run")
    assert open_to_others(run) == []
    resolve(run, tmp_path / "runs" / "without", ["east"], [])
    assert open_to_others(tmp_path / "runs" / "without") == []


def test_a_deployed_runs_folder_is_its_owners_alone(make_study, tmp_path: Path) -> None:
    prepare(make_study(), ["north"], tmp_path / "run")
    assert open_to_others(tmp_path / "run") == []


def test_a_comparison_is_its_owners_alone(hospitals, make_study, tmp_path: Path, command, monkeypatch) -> None:
    from fedgraft.simulations.compare.command import _take

    _take(tmp_path / "compared", make_study())
    assert open_to_others(tmp_path / "compared") == []


def test_every_way_to_write_a_file_writes_one_for_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    write_json(folder / "a.json", {})
    write_atomic(folder / "b", b"")
    save_tensors(folder / "c.safetensors", {})
    open_private(folder / "d", "ab").close()
    make_folder(folder / "e")
    assert open_to_others(folder) == []
    write_atomic(folder / "f", b"", private=False)
    assert open_to_others(folder) == [str(folder / "f")]
