"""Code of others over real sites: each hospital installs it, and a site runs what its own policy lists, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fedgraft.client.data.spec import CohortSpec
from fedgraft.simulations.engines.run import OPEN
from helpers.federation import Federation, command, same_weights
from helpers.plugins import EXAMPLE, fresh, wheel_of
from helpers.simulated import simulate

assert fresh
pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south", "west")
WORK = {"steps": 2, "batch_size": 8, "lr": 0.003, "losses": [{"kind": "focal", "options": {"gamma": 1.0}}]}


def pip_install(wheel: Path, folder: Path) -> Path:
    """As the people at a site do it, from the wheel that they were given; the folder."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder, wheel]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    return folder


def allow(federation: Federation, name: str, listed: dict[str, str]) -> None:
    file = federation.site(name) / "site.yaml"
    policy = OPEN.model_dump(mode="json") | {"plugins": listed}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"policy": policy}))


def as_arrays(root: Path, out: Path) -> Path:
    """Images as the files that the example's reader reads, in folders by class."""
    for path in root.rglob("*.png"):
        place = out / path.relative_to(root).with_suffix(".npy")
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.asarray(Image.open(path)))
    return out


def read_by_it(federation: Federation, name: str, cohort: dict[str, str]) -> None:
    """A site whose own data are read by the plug-in's reader, which only its own file names."""
    file = federation.site(name) / "site.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"cohort": cohort}))


def told_digest(federation: Federation, name: str, packages: Path) -> str:
    """What the operator's command says of the distribution that is installed at a site."""
    words = command(["site", "plugins", "--home", federation.site(name), "--json"])
    done = subprocess.run(
        words, env=federation.environment(packages), cwd=federation.root, capture_output=True, check=True
    )
    (found,) = json.loads(done.stdout)
    assert found["distribution"] == "fedgraft-example"
    return str(found["digest"])


def refusals(federation: Federation, out: str) -> dict[str, str]:
    found = json.loads((federation.root / out / "result.json").read_text())
    return {one["site"]: one["code"] for one in found["refusals"]}


def test_each_site_runs_what_its_policy_lists_and_no_other(hospitals, make_study, tmp_path, fresh):
    wheels = [wheel_of(EXAMPLE, tmp_path / "wheels", version) for version in ("1.0.0", "2.0.0")]
    study = make_study(
        model={"backbone": "patch_mixer"},
        plugins=["fedgraft-example==1.0.0"],
        method={"name": "fedavg", "rounds": 1, "local": WORK},
        rounds={"min_sites": 1, "quorum": 0.2},
    )
    federation = Federation(tmp_path / "federation", hospitals, SITES)
    try:
        here = pip_install(wheels[0], tmp_path / "coordinator")
        fresh.setenv("PYTHONPATH", str(here), prepend=":")
        federation.start_server()
        federation.admit(study, *SITES)
        own = {"kind": "npy", "root": str(as_arrays(hospitals.cohorts["east"].root, tmp_path / "arrays"))}
        read_by_it(federation, "east", own)
        read_by_it(federation, "north", own)
        packages = dict.fromkeys(SITES, here) | {"west": pip_install(wheels[1], tmp_path / "west")}
        digests = {name: told_digest(federation, name, packages[name]) for name in ("east", "west")}
        assert digests["east"] != digests["west"]
        allow(federation, "east", {"fedgraft-example": digests["east"]})
        allow(federation, "south", {"fedgraft-example": digests["west"]})
        allow(federation, "west", {"fedgraft-example": digests["west"]})
        for name in SITES:
            federation.spawn(name, command(["site", "start", "--home", federation.site(name)]), packages[name])
        federation.run(study)
        assert refusals(federation, "run") == {
            "north": "plugin_not_listed",
            "south": "plugin_digest",
            "west": "plugin_version",
        }
        log = (federation.site("west") / "state" / "site.log").read_text()
        assert "the study names fedgraft-example==1.0.0, and here is 2.0.0" in log
        fresh.syspath_prepend(here)
        east = replace(hospitals, cohorts={"east": CohortSpec.model_validate(own)})
        assert same_weights(federation.root / "run", simulate(study, east, tmp_path / "reference"))
    finally:
        federation.end()
