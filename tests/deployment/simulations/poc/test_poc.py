"""`fedgraft poc up`: a whole consortium in one command, and nothing of it left, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from fedgraft.common.base.errors import RunError
from fedgraft.simulations.poc.parts import Parts
from helpers.federation import ROOT, Started, children, command, line_of, until
from helpers.site_home import STUDY

pytestmark = pytest.mark.deployment
SITE = {"patients": 24, "images_per_patient": [1, 1], "scanner": {"matrix": 48, "spacing_mm": 5.3}}


class Up:
    """The command, typed in a folder with a study and a scenario of three small hospitals, of which two take part."""

    def __init__(self, folder: Path, rounds: int, *more: str) -> None:
        scenario = {"name": "small", "sites": [{"name": name, "phantom": SITE} for name in ("north", "south", "west")]}
        study = STUDY | {"scenario": "small.yaml", "method": {**STUDY["method"], "rounds": rounds}}
        for name, content in (("study.yaml", study), ("small.yaml", scenario)):
            (folder / name).write_text(yaml.safe_dump(content))
        paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "FEDGRAFT_HOME": str(folder / "home")}
        self.run, self._said = folder / "consortium" / "run", folder / "said"
        with self._said.open("wb") as output:
            self.process = Started(
                command(["poc", "up", "--sites", 2, "--study", "study.yaml", *more]),
                cwd=folder,
                env=os.environ | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def await_words(self, words: str) -> None:
        until(lambda: words in self.said() or self.process.poll() is not None, 240, words)
        assert words in self.said(), self.said()

    def family(self) -> dict[int, str]:
        """All that runs because of it, by number."""
        return {number: line_of(number) for number in children(self.process.pid, "")}


def gone(family: dict[int, str]) -> None:
    until(lambda: not [line for number, line in family.items() if line_of(number) == line], 30, "what was started")


def test_a_study_runs_is_shown_and_leaves_nothing(tmp_path: Path):
    up = Up(tmp_path, 1, "--stay", "--remove")
    up.await_words("All of it goes on")
    result = json.loads((up.run / "result.json").read_text())
    assert (result["status"], set(result["sites"])) == ("completed", {"north", "south"})
    assert (up.run / "model.safetensors").is_file()
    (address,) = set(re.findall(r"http://127\.0\.0\.1:\d+/", up.said()))
    with urllib.request.urlopen(f"{address}state", timeout=20) as answer:
        assert json.load(answer)["run"]["study"] == STUDY["name"]
    family = up.family()
    lines = "\n".join(family.values())
    assert lines.count("site start") == 2
    assert "server start" in lines
    assert "superlink" in lines
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(90) == 0, up.said()
    gone(family)
    assert not (tmp_path / "consortium").exists()


def test_a_site_that_dies_ends_the_whole_consortium(tmp_path: Path):
    up = Up(tmp_path, 500, "--remove")
    up.await_words("train")
    family = up.family()
    (site,) = [number for number, line in family.items() if "site start" in line and line.rstrip().endswith("south")]
    os.kill(site, signal.SIGKILL)
    assert up.process.wait(120) == 1
    gone(family)
    assert "south was ended by SIGKILL, and with it the whole consortium." in up.said()
    assert "Traceback" not in up.said()
    assert (tmp_path / "consortium" / "output" / "south.log").is_file(), "a failure can be looked into"


def test_a_part_that_cannot_start_is_named(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT)

    def start_one_that_cannot() -> None:
        with Parts(tmp_path / "output") as parts:
            parts.start("south", "site", "start", "--home", tmp_path / "nowhere")
            time.sleep(60)

    with pytest.raises(RunError, match=r"south ended with exit code 2.*south\.log"):
        start_one_that_cannot()
    assert "no site has joined here" in (tmp_path / "output" / "south.log").read_text()
    assert signal.getsignal(signal.SIGINT) is before
