"""Features made at the sites with local weights train a head that then answers for features of other images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import Command, write_images
from fedgraft.client.data.cohorts.batches import fit, to_float
from fedgraft.client.data.decoding.images import read_images
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import load_manifest
from fedgraft.common.study.study import parse_study

WEIGHTS = "slim-ctmr-synthetic"


@pytest.fixture
def sites(tmp_path: Path, command: Command) -> dict[str, dict[str, object]]:
    """Two hospitals with images in folders by class, and the cohorts that `site embed` says are to be used instead."""
    cohorts = {}
    for number, name in enumerate(("east", "west")):
        write_images(tmp_path / name, number, 24)
        out = tmp_path / f"{name}.npz"
        code, said, err = command(
            "site", "embed", "--home", "none", "--data", tmp_path / name, "--kind", "images", "--weights", WEIGHTS,
            "--out", out,
        )  # fmt: skip
        assert code == 0, err
        assert out.stat().st_mode & 0o077 == 0
        cohorts[name] = yaml.safe_load(said[said.index("input:") :])
    return cohorts


def test_features_are_those_of_the_weights_and_say_so(sites, tmp_path):
    manifest = load_manifest(WEIGHTS)
    with np.load(tmp_path / "east.npz") as kept:
        features, paths, made = kept["features"], kept["path"].tolist(), json.loads(str(kept["extractor"]))
    assert made["weights"] == manifest.sha256
    assert made == sites["west"]["input"]["extractor"]
    task = [{"name": "cls", "classes": ["a", "b"]}]
    model = {"backbone": "slim_resnet", "weights": WEIGHTS}
    plain = {"name": "x", "tasks": task, "input": manifest.input.model_dump(), "model": model, "method": "fedavg"}
    network = initialise(parse_study(plain, "x")).model.eval()
    (image,) = read_images(tmp_path / "east" / paths[5], "middle").frames
    stored = torch.from_numpy(fit(image, 1.0, manifest.input))[None]
    with torch.no_grad():
        wanted = network.features(to_float(stored, manifest.input))[0]
    np.testing.assert_allclose(features[5], wanted.numpy(), rtol=1e-4, atol=1e-5)


def write_study(folder: Path, sites, **more: object) -> None:
    study = {
        "name": "heads", "scenario": "hospitals.yaml",
        "tasks": [{"name": "cls", "classes": ["left", "middle", "right"]}],
        "input": sites["east"]["input"], "model": {"backbone": "table_linear", "weights": None},
        "method": {"name": "ridge_probe"}, "evaluate": {"every": 0}, "split": {"train": 0.5, "val": 0.1, "test": 0.4},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(study | more))
    entries = [{"name": name, "cohort": own["cohort"]} for name, own in sites.items()]
    (folder / "hospitals.yaml").write_text(yaml.safe_dump({"name": "hospitals", "sites": entries}))


def test_a_head_on_features_is_trained_and_asked(sites, tmp_path, command):
    write_study(tmp_path, sites)
    code, said, err = command("simulate", tmp_path / "study.yaml", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(said)["status"] == "completed"
    code, _, err = command("predict", tmp_path / "run", tmp_path / "east.npz", "--out", tmp_path / "said")
    assert code == 0, err
    with (tmp_path / "said" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "east.npz") as kept:
        right = [path.split("/")[0] for path in kept["path"].tolist()]
    hits = [float(row[f"cls:{name}"]) > 0.4 for row, name in zip(rows, right, strict=True)]
    assert np.mean(hits) > 0.7


def test_sites_with_another_extractor_stop_it_before_it_begins(sites, tmp_path, command):
    with np.load(tmp_path / "west.npz") as kept:
        arrays = dict(kept)
    made = json.loads(str(arrays["extractor"])) | {"weights": "0" * 64}
    np.savez(tmp_path / "west.npz", **arrays | {"extractor": np.array(json.dumps(made))})
    write_study(tmp_path, sites)
    code, _, err = command("simulate", tmp_path / "study.yaml", "--out", tmp_path / "run")
    assert code == 2
    flat = " ".join(err.split())
    assert "1 of 2 sites cannot take part" in flat
    assert "west.npz: its features were made otherwise than the study asks: weights is '0000" in flat
    assert not (tmp_path / "run").exists()
