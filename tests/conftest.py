"""Small real inputs for all tests: folders of PNG images that can be learnt in seconds, and studies over them."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from fedgraft import cli
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.plugins import registry
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals
from helpers import no_skips
from helpers.site_home import Hospital, copied, generate

CLASSES = ("left", "right", "middle")

# No law is broken by a machine that is busy. CI tries the same examples every time, `make nightly` others.
settings.register_profile("nightly", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", settings.get_profile("nightly"), derandomize=True)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("FEDGRAFT_NO_SKIPS"):
        no_skips.pytest_configure(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from helpers.schedule import by_file  # without xdist there are no workers to share tests

    return by_file(config, log)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the developer's own ~/.fedgraft, and none takes more than its share of the cores."""
    before = os.environ.get("FEDGRAFT_HOME")
    os.environ["FEDGRAFT_HOME"] = str(tmp_path_factory.mktemp("home"))
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["FEDGRAFT_HOME"]
    else:
        os.environ["FEDGRAFT_HOME"] = before


@pytest.fixture(autouse=True)
def _drawn_alike() -> None:
    """What a test draws from the generators that a process has is the same whatever that process ran before it.

    Which tests share a process, and in what order, is the schedule's chance; no assertion may hang on it.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _no_weights_left() -> Iterator[None]:
    """A test that adds weights does so in a home of its own: those of one test are no candidates in another."""
    home = os.environ["FEDGRAFT_HOME"]
    yield
    assert not Path(home, "weights").exists(), "this test left weights in the home that all tests share"


@pytest.fixture(autouse=True)
def _no_plugins_left() -> Iterator[None]:
    """What one test registers is nothing that the workers of another test's run would have to load."""
    kept = [(known, known.copy()) for known in (registry._registered, registry._digests)]
    places, before = registry._places, list(registry._places)
    yield
    places[:] = before
    for known, copy in kept:
        known.clear()
        known.update(copy)


def write_images(root: Path, seed: int, cases: int, size: int = 32) -> None:
    """A folder per class; the class is where a bright bar stands in a noisy image. `images.csv` says whose each is."""
    rng = np.random.default_rng(seed)
    rows = ["path,cls,patient"]
    for number in range(cases):
        label = CLASSES[number % len(CLASSES)]
        image = rng.normal(100, 25, (size, size))
        at = {"left": 2, "right": size - 10, "middle": size // 2 - 4}[label]
        image[:, at : at + 8] += 40
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")
        rows.append(f"{label}/{number:04d}.png,{label},P{number}")
    (root / "images.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """Four sites of 24 to 60 images, each of a patient of its own."""
    root = tmp_path_factory.mktemp("images")
    cohorts = {}
    for number, (name, cases) in enumerate({"east": 48, "north": 24, "south": 60, "west": 36}.items()):
        write_images(root / name, number, cases)
        labels = root / name / "images.csv"
        cohorts[name] = CohortSpec(kind="images", root=root / name, labels=labels, patient_column="patient")
    return Hospitals(cohorts)


MakeStudy = Callable[..., Study]


@pytest.fixture(scope="session")
def make_study() -> MakeStudy:
    """A study over those sites; keyword arguments replace its keys."""

    def make(**changes: Any) -> Study:
        base: dict[str, Any] = {
            "name": "test",
            "seed": 3,
            "tasks": [{"name": "cls", "classes": list(CLASSES)}],
            "input": {"kind": "image", "size": 32},
            "split": {"train": 0.5, "val": 0.25, "test": 0.25},
            "model": {"backbone": "slim_resnet", "weights": None},
            "method": {"name": "silobn", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
        }
        if "plan" in changes:
            del base["method"]
        return parse_study(base | changes, "test")

    return make


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs fedgraft in this process, in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def phantom_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 32 phantom patients, two DICOM files each, and their labels; not to be changed."""
    return generate(tmp_path_factory.mktemp("phantoms") / "small")


@pytest.fixture
def hospital(phantom_site: Path, tmp_path: Path) -> Hospital:
    """A site's home and its data, for a test to spoil."""
    return copied(phantom_site, tmp_path)
