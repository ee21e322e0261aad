"""Data of every kind that a cohort can be of: what `predict` says of a site's files gives the figures of its run.

Each site reads its data by settings that change what the model sees; `predict` takes them from the site's folder.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedgraft as fg
from conftest import CLASSES, Command, write_images
from fedgraft.client.data.kinds import KINDS, DataKind
from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.files import read_json
from fedgraft.common.metrics.sums.task_metrics import sums_of
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Hospitals, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario
from helpers.simulated import simulate

CASES, SEED = 30, 3
EXTRACTOR = {"name": "net", "weights": "a" * 64, "preprocessing": "none"}
Make = Callable[[Path], dict[str, object]]


def shades(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Labels and images in [0, 1], as the PNG files of other tests have them."""
    write_images(folder / "png", SEED, CASES)
    found = sorted((folder / "png").rglob("*.png"), key=lambda path: path.name)
    return [(path.parent.name, np.asarray(Image.open(path), np.float32) / 255) for path in found]


def by_class(folder: Path, suffix: str, save: Callable[[Path, np.ndarray], None]) -> Path:
    """A file for each image, in a folder for each class."""
    for at, (label, image) in enumerate(shades(folder)):
        path = folder / "d" / label / f"{at:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, image)
    return folder / "d"


def images(folder: Path) -> dict[str, object]:
    def pages(path: Path, image: np.ndarray) -> None:
        first, *more = (Image.fromarray(np.uint8(page * 255)) for page in (image, 1 - image, image))
        first.save(path, save_all=True, append_images=more)

    return {"kind": "images", "root": by_class(folder, ".tiff", pages), "frames": "middle"}


def volumes(folder: Path) -> dict[str, object]:
    nib = pytest.importorskip("nibabel")

    def save(path: Path, image: np.ndarray) -> None:
        values = np.stack([image * 100, image * 80 + 10, image * 60], axis=1).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 1.5, 1.0])), path)

    root = by_class(folder, ".nii.gz", save)
    window = {"center": 40, "width": 90}
    return {"kind": "nifti", "root": root, "plane": "coronal", "frames": "middle", "window": window}


def arrays(folder: Path) -> dict[str, object]:
    own = shades(folder)
    parts = {"train": slice(0, 12), "val": slice(12, 15), "test": slice(15, None)}
    found = {f"{split}_images": np.stack([np.stack([i, 1 - i]) for _, i in own[at]]) for split, at in parts.items()}
    found |= {
        f"{split}_labels": np.array([CLASSES.index(label) for label, _ in own[at]]) for split, at in parts.items()
    }
    np.savez(folder / "all.npz", **found)
    return {"kind": "npz", "root": folder / "all.npz", "frames": "first"}


def features(folder: Path) -> dict[str, object]:
    rng = np.random.default_rng(SEED)
    rows = ["path,cls,f0,f1"] + [f"{i}.png,{'ab'[i % 2]},{rng.normal(i % 2):.5f},{rng.normal():.5f}" for i in range(40)]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return {"kind": "features", "root": folder / "table.csv", "columns": "f*", "extractor": EXTRACTOR, "join": "path"}


def table(folder: Path) -> dict[str, object]:
    rng = np.random.default_rng(SEED)
    one = [f"{rng.normal(i % 2):.4f}" if rng.random() > 0.3 else "-99" for i in range(40)]
    rows = ["id,cls,one,two"] + [f"p{i},{'ab'[i % 2]},{one[i]},{rng.normal():.4f}" for i in range(40)]
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    missing = {"one": ["-99"], "cls": ["x"]}
    return {"kind": "table", "root": folder / "table.csv", "patient_column": "id", "missing_values": missing}


def dicom(folder: Path) -> dict[str, object]:
    site = {"name": "here", "phantom": {"modality": ["ct"], "patients": CASES, "images_per_patient": [1, 1]}}
    scenario = Scenario.model_validate({"name": "one", "seed": SEED, "sites": [site]})
    own = make_hospitals(scenario, folder / "phantoms")["here"]
    return own.model_dump(exclude_unset=True) | {"window": {"center": 0, "width": 300}}


class Halved:
    """A file has two images, of which the site's `frames` says which."""

    def __init__(self, spec: CohortSpec, tasks: object, wanted: object) -> None:
        self._which = spec.frames

    def read(self, path: Path, name: str) -> Contents:
        both = np.load(path)
        return Contents([Case(one) for one in (both if self._which == "all" else both[:1])], len(both) > 1)

    def finish(self) -> Counter[str]:
        return Counter()


def halves(folder: Path) -> dict[str, object]:
    root = by_class(folder, ".npy", lambda path, image: np.save(path, np.stack([image, image / 2])))
    return {"kind": "halves", "root": root, "frames": "first"}


INPUTS = {
    "features": {"kind": "features", "count": 2, "extractor": EXTRACTOR},
    "table": {"kind": "table", "numeric": ["one", "two"]},
}
NAMES = {"features": ["a", "b"], "table": ["a", "b"], "dicom": ["none", "smooth", "spiculated", "ring"]}


def asked(kind: str) -> Study:
    raw: dict[str, Any] = {
        "name": "kinds", "tasks": [{"name": "cls", "classes": NAMES.get(kind, list(CLASSES))}],
        "input": INPUTS.get(kind, {"kind": "image", "size": 32}),
        "model": {"backbone": "table_linear" if kind in INPUTS else "slim_resnet", "weights": None},
        "split": {"train": 0.4, "val": 0.2, "test": 0.4}, "evaluate": {"every": 0, "floor": 1},
        "method": {"name": "fedavg", "rounds": 1, "local": {"steps": 3, "batch_size": 8, "lr": 0.01}},
    }  # fmt: skip
    raw["method"]["name"] = "fedbn" if kind == "halves" else "fedavg"
    return parse_study(raw, "kinds")


MADE: dict[str, Make] = {
    "images": images,
    "nifti": volumes,
    "npz": arrays,
    "features": features,
    "table": table,
    "dicom": dicom,
    "halves": halves,
}


def test_every_kind_is_here() -> None:
    assert MADE.keys() == {*KINDS, "halves"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_what_predict_says_gives_the_figures_of_the_run(
    kind: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fg.register_reader("halves", DataKind(Halved, folder_labels=True))
    cohorts = {}
    for site in ("east", "west"):
        (tmp_path / site).mkdir()
        cohorts[site] = CohortSpec.model_validate(MADE[kind](tmp_path / site))
    study = asked(kind)
    run = simulate(study, Hospitals(cohorts), tmp_path / "run")
    reported = read_json(run / "result.json")["metrics"]["cls"]["sites"]["east"]
    cohort = simulated_cohort(study, run, "east")
    own = run / "sites" / "east"
    site = ("--site", own) if kind == "halves" else ()  # whose norm layers are its own
    code, _, err = command("predict", run, cohorts["east"].root, "--out", tmp_path / "said", "--cohort", own, *site)
    assert code == 0, err
    with (tmp_path / "said" / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("problem")]
    names = study.tasks[0].names
    shares = np.array([[float(row[f"cls:{name}"]) for name in names] for row in rows])
    test = cohort.splits["test"].numpy()
    assert len(rows) == len(cohort.inputs)
    again = sums_of(study.tasks[0], np.log(shares[test]), cohort.targets["cls"].numpy()[test]).values()
    for metric, value in reported.items():
        assert again[metric] == (None if value is None else pytest.approx(value, abs=1e-6)), metric
    model = fg.load_run(run).model("east" if site else None)
    said_here = model.predict(cohorts["east"].root, own)
    np.testing.assert_allclose(said_here.answers["cls"], shares, atol=1e-6)
    assert list(said_here.names) == [row.get("line") or row["file"] for row in rows]
    if kind != "features":  # whose extractor only the site tells
        keys = {"kind": kind} if kind == "halves" else None
        other = model.predict(cohorts["east"].root, keys).answers["cls"]
        assert other.shape != shares.shape or np.abs(other - shares).max() > 1e-4, "the site's settings count"
    if site:
        code, said, _ = command("predict", run, cohorts["east"].root, "--out", "plain", "--kind", kind, *site)
        assert (code, "reads its own data by frames of its cohort" in " ".join(said.split())) == (0, True), said
        code, _, err = command(
            "predict", run, cohorts["east"].root, "--out", "wrong", "--kind", kind, "--set", "labels=x"
        )
        assert (code, "labels: changes nothing of what a model sees" in err) == (2, True), err
