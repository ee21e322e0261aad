"""Somebody points `fedgraft init` at a folder, and simulates what it wrote, as it is."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import Command, write_images
from fedgraft.simulations.api.simulate import choose, set_up
from helpers.simulated import resume
from helpers.site_home import generate

RNG = np.random.default_rng(0)


def folders_by_class(root: Path) -> None:
    write_images(root, 1, 30)
    (root / "images.csv").unlink()
    (root / "notes.txt").write_text("x")


def images_and_a_table(root: Path) -> None:
    (root / "png").mkdir(parents=True)
    rows = ["file,subject,Finding Labels,age"]
    for at in range(30):
        (root / "png" / f"w{at % 2}").mkdir(exist_ok=True)  # paths in the table count from the folder png
        Image.fromarray(RNG.integers(0, 255, (40, 40), np.uint8)).save(root / "png" / f"w{at % 2}" / f"{at}.png")
        rows.append(f"w{at % 2}/{at}.png,S{at // 2},{('Mass|Edema', 'No Finding', 'Mass')[at // 2 % 3]},{at}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def a_table_with_hospitals(root: Path) -> None:
    root.mkdir()
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "hospital", "age", "sex", "comment", "outcome"])
        for at in range(90):
            place, outcome = ("St. Mary", "North", "West")[at % 3], ("dead", "alive")[at // 3 % 2]
            writer.writerow([f"P{at}", place, at, "fm"[at % 2], f"text {at}", outcome])


def tables_alike(root: Path) -> None:
    for name in ("clinic a", "north"):
        root.mkdir(exist_ok=True)
        rows = [f"P{at},{at % 7},{at % 2 * (1 + at % 3)},{('no', 'yes')[at % 2]}" for at in range(40)]
        (root / f"{name}.csv").write_text("\n".join(["subject,age,severity,disease", *rows]) + "\n")


def hospitals_in_folders(root: Path) -> None:
    for number, name in enumerate(("east", "north")):
        write_images(root / name, number, 24)


def dicom(root: Path) -> None:
    north = generate(root.parent / "h", patients=24)
    root.mkdir()
    shutil.copytree(north / "dicom", root / "dicom")
    shutil.copy(north / "patients.csv", root)


def nifti(root: Path) -> None:
    for at in range(24):
        path = root / ("nodule", "none")[at % 2] / f"{at}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(RNG.integers(0, 999, (12, 12, 4)).astype(np.int16), np.eye(4)), path)


def benchmark(root: Path) -> None:
    root.mkdir()
    arrays = {}
    for split, count in {"train": 60, "val": 20, "test": 30}.items():
        arrays[f"{split}_images"] = RNG.integers(0, 255, (count, 32, 32), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(root / "mnist.npz", **arrays)


LAYOUTS: dict[Callable[[Path], None], tuple[str, ...]] = {
    folders_by_class: (
        "left out: 1 files of kind .txt",
        "labels are the names of sub-folders: left, middle, right",
        "images are brought to 32 x 32 pixels, grey",
        "three are made up",
    ),
    images_and_a_table: ("joined by path in column 'file'", "several labels a case: Edema, Mass"),
    a_table_with_hospitals: (
        "classes: alive, dead",
        "1 columns are numbers, 1 are words",
        "the model is a logistic regression from sums",
        "left out: the columns comment",
        "hospitals are the values of column 'hospital'",
    ),
    tables_alike: (
        "2 hospitals: clinic_a, north",
        "the label is column 'disease'",
        "columns severity, each of which gives",
    ),
    hospitals_in_folders: ("2 hospitals: east, north", "east: labels are in images.csv"),
    dicom: ("joined by patient in column 'PatientID'",),
    nifti: ("classes: nodule, none", "begins from random entries"),
    benchmark: ("2 classes, whose names the file does not say", "the data bring their own split"),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_what_it_writes_runs(make, command: Command, tmp_path: Path) -> None:
    make(tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    code, said, err = command("init", tmp_path / "data", "--out", tmp_path / "first")
    assert code == 0, err
    flat = " ".join(said.split())
    for line in LAYOUTS[make]:
        assert line in flat
    assert sorted((tmp_path / "data").rglob("*")) == before
    study = tmp_path / "first" / "study.yaml"
    few = ("method.rounds=1", "method.local.epochs=1", "model.weights=null", "model.heads=fresh")
    if make is folders_by_class:
        sets = [word for one in few for word in ("--set", one)]
        code, _, err = command("simulate", study, "--out", tmp_path / "run", *sets)
        assert code == 0, err
    else:  # the same without the page at its end
        resume(set_up(choose(study, few, None), tmp_path / "run", lambda _: None))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    sites = json.loads((tmp_path / "run" / "sites" / "index.json").read_text())
    assert len(sites) == (2 if make in {hospitals_in_folders, tables_alike} else 3)


def test_what_gives_the_answer_away_is_no_input(command: Command, tmp_path: Path) -> None:
    tables_alike(tmp_path / "data")
    assert command("init", tmp_path / "data", "--out", tmp_path)[0] == 0
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["input"] == {"kind": "table", "numeric": ["age"]}


def test_nothing_is_overwritten(command: Command, tmp_path: Path) -> None:
    folders_by_class(tmp_path / "data")
    (tmp_path / "hospitals.yaml").write_text("mine")
    code, _, err = command("init", tmp_path / "data")
    assert (code, "hospitals.yaml: exists, and is not overwritten" in " ".join(err.split())) == (2, True)
    assert (tmp_path / "hospitals.yaml").read_text() == "mine"
    assert not (tmp_path / "study.yaml").exists()


def test_the_files_can_be_moved_with_the_data(command: Command, tmp_path: Path) -> None:
    hospitals_in_folders(tmp_path / "all" / "data")
    assert command("init", tmp_path / "all" / "data", "--out", tmp_path / "all")[0] == 0
    entries = yaml.safe_load((tmp_path / "all" / "hospitals.yaml").read_text())["sites"]
    assert [entry["cohort"]["root"] for entry in entries] == ["data/east", "data/north"]
    first = (tmp_path / "all" / "study.yaml").read_text().splitlines()[0]
    assert first == "# A first study, as it was guessed from what is there:"


def one_image(root: Path) -> None:
    root.mkdir()
    Image.new("L", (9, 9)).save(root / "a.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "holds no DICOM, NIfTI, image, .npz or .csv files"),
        (one_image, "Nothing was found that could be a label"),
        (lambda root: None, "does not exist"),
    ],
)
def test_where_nothing_can_be_begun_it_says_so(make, says, command: Command, tmp_path: Path) -> None:
    make(tmp_path / "data")
    code, _, err = command("init", tmp_path / "data", "--out", tmp_path / "first")
    assert (code, says in " ".join(err.split())) == (2, True)
    assert not (tmp_path / "first").exists()
