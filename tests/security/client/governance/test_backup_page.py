"""docs/how_to/backup.md is followed: it saves a site and brings it back, and an old copy spends nothing twice."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.protocol.instructions import Code, Greeting, Refusal, Update
from fedgraft.common.study.study import Study
from helpers.played import PlayedSite

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs" / "how_to" / "backup.md").read_text(encoding="utf-8")
SAVE, RESTORE = (
    [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if word in line]
    for word in ("--create", "--extract")
)

pytestmark = pytest.mark.slow


def types(line: str, site: PlayedSite, archive: Path) -> None:
    line = line.replace("~/.fedgraft/site", str(site.home)).replace("site-backup.tgz", str(archive))
    subprocess.run(line, shell=True, check=True)


def test_the_newest_copy_goes_on_and_an_older_one_spends_nothing(
    hospitals, make_study: Callable[..., Study], tmp_path: Path
) -> None:
    local = {"steps": 2, "lr": 0.01, "private": {"epsilon": 5.0, "sample_rate": 0.5}}
    study = make_study(method={"name": "linear_probe", "rounds": 4, "local": local})
    policy = SitePolicy(min_patients=1, epsilon_per_study=5.2, epsilon_lifetime=5.5)
    disk = tmp_path / "disk"
    disk.mkdir()
    site = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], policy, witness=disk)
    assert len(SAVE) == len(RESTORE) == 1

    def restored(archive: Path) -> None:
        assert (site.home / "cache").is_dir()
        shutil.rmtree(site.home)
        site.home.mkdir(mode=0o700)
        types(RESTORE[0], site, archive)
        site.restart()

    assert isinstance(site.greets(study), Greeting)
    assert isinstance(site.visits(study, 1), Update)
    types(SAVE[0], site, tmp_path / "old.tgz")
    assert isinstance(site.visits(study, 2), Update)
    types(SAVE[0], site, tmp_path / "new.tgz")
    spent = site.held.open(100.0).spent().epsilon

    restored(tmp_path / "old.tgz")
    assert site.visits(study, 2) == Refusal(2, Code.LEDGER), "it has forgotten that this was paid for"
    assert not (site.home / "cache").exists(), "what can be made anew is not in the archive"

    (site.home / "cache").mkdir()
    restored(tmp_path / "new.tgz")
    assert isinstance(site.visits(study, 3), Update), "in the middle of a study as well"
    assert site.held.open(100.0).spent().epsilon > spent
    assert (site.state / "patients.key").stat().st_mode & 0o077 == 0
    site.restart()
