"""How soon somebody who types a command is answered: what is imported for it, and the CPU seconds that it takes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import fedgraft

SLOW = ("torch", "torchvision", "flwr", "opacus", "sklearn", "scipy", "pydicom", "matplotlib", "grpc", "httpx")
HELP = ("", "study", "privacy", "data", "weights", "site", "server", "simulate", "compare", "predict", "site start")
PROGRAM = """
import atexit, json, sys
asked = json.loads(sys.argv[1])
atexit.register(lambda: print(json.dumps([name for name in asked["slow"] if name in sys.modules]), file=sys.stderr))
sys.argv = ["fedgraft", *asked["words"]]
from fedgraft.cli import main
main()
"""


class Answered:
    """What a fresh Python says, what slow modules it loaded, and its CPU seconds."""

    def __init__(self, words: list[str], home: Path, slow: tuple[str, ...] = SLOW) -> None:
        package = str(Path(fedgraft.__file__).parents[1])
        environment = os.environ | {"PYTHONPATH": package, "FEDGRAFT_HOME": str(home)}
        command = [sys.executable, "-c", PROGRAM, json.dumps({"slow": slow, "words": words})]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.code, self.out = done.returncode, done.stdout
        *said, loaded = done.stderr.splitlines()
        self.errors = "\n".join(said)
        self.loaded = json.loads(loaded)


def test_the_package_itself_is_light() -> None:
    names = (*SLOW, "numpy", "pydantic", "typer")
    code = f"import sys, fedgraft; print([name for name in {names} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(fedgraft.__file__).parents[1])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert said.stdout == "[]\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("words", HELP)
def test_help_imports_nothing_that_only_work_needs(tmp_path: Path, words: str) -> None:
    answered = Answered([*words.split(), "--help"], tmp_path, (*SLOW, "numpy", "pydantic", "yaml"))
    assert "Usage" in answered.out
    assert (answered.code, answered.loaded) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["study", "check", "quickstart"], ["study", "explain", "quickstart"]], ids=["check", "explain"]
)
def test_a_study_is_looked_at_again_without_torch(tmp_path: Path, words: list[str]) -> None:
    first, again = (Answered(words, tmp_path) for _ in range(2))
    assert "quickstart" in first.out
    assert first.loaded == ["torch"], "nothing else is needed to build slim_resnet"
    assert (again.code, again.out, again.errors) == (first.code, first.out, first.errors)
    assert again.loaded == []
    assert again.cpu_s < 1.0


@pytest.mark.slow
def test_a_small_simulation_loads_nothing_that_only_other_work_needs(tmp_path: Path) -> None:
    for number, (folder, level) in enumerate(product(("north", "south"), (60, 190))):
        place = tmp_path / folder / str(level)
        place.mkdir(parents=True)
        for index in range(12):
            noise = np.random.default_rng([number, index]).integers(0, 40, (32, 32))
            Image.fromarray((noise + level).astype(np.uint8)).save(place / f"{index}.png")
    sites = [{"name": name, "cohort": {"kind": "images", "root": str(tmp_path / name)}} for name in ("north", "south")]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"name": "two", "sites": sites}))
    study = {
        "name": "tiny",
        "scenario": "two.yaml",
        "tasks": [{"name": "cls", "classes": ["60", "190"]}],
        "input": {"kind": "image", "size": 32},
        "model": {"backbone": "slim_resnet", "weights": None},
        "method": {"name": "fedavg", "rounds": 1, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    words = ["simulate", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    others = ("torch._dynamo", "torchvision", "opacus", "sklearn", "scipy.stats", "pydicom")
    answered = Answered(words, tmp_path, others)
    assert (answered.code, answered.loaded) == (0, []), answered.errors
    assert "completed" in answered.out


@pytest.mark.parametrize(
    "words", [["weights", "verify", "slim-ctmr-synthetic"], ["weights", "list"], ["study", "show", "quickstart"]]
)
def test_what_looks_at_files_alone_needs_no_torch(tmp_path: Path, words: list[str]) -> None:
    answered = Answered(words, tmp_path)
    assert (answered.code, answered.loaded) == (0, [])
