"""What a site keeps is on its disk before it answers; nobody waits for the files of a simulated one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fedgraft.common.protocol.instructions import Update
from fedgraft.simulations.engines.run import Hospitals
from helpers.played import PlayedSite
from helpers.simulated import simulate

_PASSING = re.compile(r"\.(.+)\.[0-9a-f]{8}")
"""The name of a file that is about to take another one's place; of that one's name it has 60 letters."""


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The files that the disk was waited for, by the first 60 letters of their names or all."""
    found: set[Path] = set()

    def noting(sync):
        def noted(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            while passing := _PASSING.fullmatch(path.name):
                path = path.with_name(passing[1])
            found.add(path)
            sync(descriptor)

        return noted

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return found


def test_a_simulation_waits_for_no_file_of_its_sites(hospitals, make_study, tmp_path: Path, waited: set[Path]) -> None:
    method = {"name": "silobn", "rounds": 1, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}
    two = Hospitals({name: hospitals.cohorts[name] for name in ("east", "north")})
    run = simulate(make_study(method=method), two, tmp_path / "run")
    sites = run.resolve() / "sites"
    assert list(sites.glob("east/local_state/*/*.safetensors")), "they keep something between rounds"
    assert [path for path in waited if sites in path.parents and path.parent != sites] == []
    assert "result.json" in {path.name for path in waited}, "what is said in the end is on the disk"
    assert any("checkpoint" in str(path) for path in waited), "and what a run goes on from"


def test_a_site_waits_for_every_file_that_it_keeps(hospitals, make_study, tmp_path: Path, waited: set[Path]) -> None:
    site = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], sync=True)
    study = make_study()
    site.greets(study)
    assert isinstance(site.visits(study, 1), Update)
    site.restart()
    kept = {path for place in ("state", "state.witness") for path in (site.home / place).rglob("*") if path.is_file()}
    lacking = {path.name for path in kept if not waited & {path, path.with_name(path.name[:60])}}
    assert lacking == {"site.log"}
    assert {site.home / "site.json", site.home / "approvals.json"} <= waited
