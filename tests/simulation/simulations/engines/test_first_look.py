"""A simulation looks at the data of every hospital before it spends time, and stops where one cannot take part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals, check_hospitals, simulate
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import Scenario
from helpers.tables import sgd, study, tables

CT = "1.2.840.10008.5.1.4.1.1.2"
GRADIENT = {"name": "finetune", "local": sgd()}


def spoilt(root: Path, edit: Callable[[list[str]], list[str]]) -> Hospitals:
    """The three hospitals, and another table at the one called north."""
    hospitals = tables(root)
    table = hospitals.cohorts["north"].root
    table.write_text("\n".join(edit(table.read_text().splitlines())) + "\n")
    return hospitals


def header(old: str, new: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [lines[0].replace(old, new), *lines[1:]]


def cells(column: int, value: str) -> Callable[[list[str]], list[str]]:
    def edit(lines: list[str]) -> list[str]:
        rows = [line.split(",") for line in lines[1:]]
        return [lines[0], *(",".join([*row[:column], value, *row[column + 1 :]]) for row in rows)]

    return edit


MISTAKES = {
    "a missing column": (header("one", "first"), "table.csv: has no column 'one'"),
    "a missing label": (header("cls", "finding"), "table.csv: has no column for the labels of task 'cls'"),
    "no label": (cells(1, ""), r"table.csv, column 'cls': no case has a label: 0 of 60"),
    "one class": (cells(1, "b"), r"table.csv, column 'cls': only one class: b 60, a 0.*label_map"),
    "other words": (cells(1, "benign"), r"table.csv, line 2, column 'cls' is no class.*'benign' 60.*label_map"),
    "one patient": (cells(0, "p1"), r"table.csv: all cases are of one patient"),
    "nobody to test": (lambda lines: lines[:3], r"table.csv: nobody in .*test: train 1 patients"),
    "several at once": (
        lambda lines: ["pid,kind,first,two", *lines[1:]],
        r"patients \('PatientID'\).*north: .*has no column 'one'.*north: .*labels of task 'cls'",
    ),
    "a quote that stays open": (
        lambda lines: [*lines[:5], lines[5].replace(",", ',"', 1), *lines[6:]],
        r"table.csv: what begins on line 6 is no CSV: .*a quote that is never closed",
    ),
    "no rows": (lambda lines: lines[:1], r"table.csv: has no rows"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_stops_before_anything_is_trained(tmp_path, mistake):
    edit, words = MISTAKES[mistake]
    with pytest.raises(DataError, match=rf"(?s)1 of 3 sites cannot take part:\n  - north: .*{words}") as caught:
        simulate(study(GRADIENT), spoilt(tmp_path / "data", edit), tmp_path / "run")
    assert "allow_missing_sites: true" in str(caught.value)
    told = [line.partition(":")[0] for line in str(caught.value).splitlines()[1:-1]]
    assert set(told) == {"  - north"}  # the other two sites are in order
    assert not (tmp_path / "run").exists()


def test_every_site_and_fault_is_told_at_once(tmp_path):
    hospitals = tables(tmp_path / "data")
    cohorts = dict(hospitals.cohorts)
    cohorts["east"] = CohortSpec(kind="table", root=tmp_path / "gone.csv")
    cohorts["west"] = CohortSpec(kind="dicom", root=tmp_path)
    with pytest.raises(DataError) as caught:
        simulate(study(GRADIENT), Hospitals(cohorts), tmp_path / "run")
    said = str(caught.value)
    assert "2 of 3 sites" in said
    assert f"  - east: {tmp_path / 'gone.csv'}: cannot be read: No such file or directory. Check the path" in said
    assert "  - west: its data are of kind dicom, but the study's input is table. Check `kind`" in said


def files_from(folder: Path, study_text: dict, sites: list[dict]) -> Path:
    (folder / "sites.yaml").write_text(yaml.safe_dump({"name": "mine", "sites": sites}))
    (folder / "study.yaml").write_text(yaml.safe_dump(study_text | {"scenario": "sites.yaml"}))
    return folder / "study.yaml"


IMAGES = {
    "name": "tiny",
    "tasks": [{"name": "cls", "classes": ["none", "nodule"]}],
    "input": {"kind": "image", "size": 16},
    "split": {"train": 0.5, "val": 0.25, "test": 0.25},
    "model": {"backbone": "slim_resnet", "weights": None},
    "method": {"name": "fedavg", "rounds": 1, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
}


def picture(path: Path, seed: int, patient: str, **elements: object) -> None:
    """A small CT slice of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CT
    meta.MediaStorageSOPInstanceUID = f"1.{int(patient)}.{seed + 1}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientID = CT, meta.MediaStorageSOPInstanceUID, patient
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.add_new("PixelData", "OB", np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8).tobytes())
    for key, value in elements.items():
        setattr(dataset, key, value)
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def sites(tmp_path) -> list[dict]:
    """Two hospitals of twelve patients; the second one's numbers have lost their zeros in its table."""
    found = []
    for site in ("north", "south"):
        for number in range(12):
            picture(tmp_path / site / f"{number}.dcm", number, f"{number + 1:05d}")
        ids = (f"{number + 1:05d}" if site == "north" else f"{number + 1}" for number in range(12))
        rows = [f"{name},{('None', 'nodule')[at % 2]}" for at, name in enumerate(ids)]
        (tmp_path / f"{site}.csv").write_text("\n".join(["PatientID,cls", *rows]) + "\n")
        cohort = {"kind": "dicom", "root": str(tmp_path / site), "labels": str(tmp_path / f"{site}.csv")}
        found.append({"name": site, "cohort": cohort})
    return found


def test_from_the_command_line_a_site_that_cannot_take_part_ends_it(command, tmp_path, sites):
    file = files_from(tmp_path, IMAGES, sites)
    code, _, err = command("simulate", file, "--out", tmp_path / "run")
    assert code == 2
    assert "1 of 2 sites cannot take part" in err
    assert f"south: {tmp_path / 'south.csv'}" in err
    assert "12 images without a row of the labels table" in err
    assert "the same but for leading zeros (12)" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_what_was_left_out_is_said_before_the_first_round(command, tmp_path, sites):
    picture(tmp_path / "north" / "scout.dcm", 99, "00001", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "north" / "cut.dcm").write_bytes(b"")
    (tmp_path / "north" / "notes.txt").write_text("who is who")
    code, said, _ = command("simulate", files_from(tmp_path, IMAGES, sites), "--out", tmp_path / "run")
    assert code == 2  # the other site's fault; what was left out is said all the same
    assert "north: 1 object that no scanner took left out (localizer 1)" in said
    assert "12 images can be used; 1 other file passed over (not_dicom 1); 1 file cannot be read (empty_file 1)" in said


def test_strangers_among_the_images_are_said_where_all_others_are_well(command, tmp_path, sites):
    (tmp_path / "north" / "export.zip").write_bytes(b"PK")
    sites[0]["cohort"]["label_map"] = {"clss": {"x": "none"}}
    _, said, _ = command("simulate", files_from(tmp_path, IMAGES, sites), "--out", tmp_path / "run")
    assert "north: 12 images can be used; 1 other file passed over (not_dicom 1)" in said
    assert "north: label_map has entries for no task of the study: clss" in said


def test_compare_looks_as_well(command, tmp_path, sites):
    comparison = {"questions": [{"name": "q", "arms": ["fedavg", "local"], "against": "local", "metric": "auroc"}]}
    file = files_from(tmp_path, IMAGES | {"compare": comparison}, sites)
    code, _, err = command("compare", file, "--arm", "fedavg", "--arm", "local", "--out", tmp_path / "out")
    assert (code, "1 of 2 sites cannot take part" in err) == (2, True), err


def test_a_file_of_arrays_is_no_table_whose_column_could_be_named(tmp_path):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(0, 255, (8, 16, 16), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((8, 1), np.int64)
    np.savez(tmp_path / "one_class.npz", **arrays)
    sites = [{"name": name, "cohort": {"kind": "npz", "root": str(tmp_path / "one_class.npz")}} for name in "ab"]
    asked = Study.parse(
        {
            "name": "x",
            "tasks": [{"classes": ["none", "nodule"]}],
            "input": {"kind": "image", "size": 16},
            "model": {"backbone": "slim_resnet", "weights": None},
            "method": "fedavg",
        }
    )
    hospitals = hospitals_of(Scenario.parse({"name": "x", "sites": sites}))
    with pytest.raises(DataError, match=r"a: .*one_class\.npz: .*class.*\n.*b: ") as caught:
        check_hospitals(asked, hospitals, lambda _: None)
    assert "UTF-8" not in str(caught.value)


def test_what_is_to_be_said_of_several_sites_is_said_once(tmp_path):
    """Five generated folders whose images name no patient: one line about all of them, and each its own otherwise."""
    names = ["d", "b", "e", "a", "c"]
    for at, name in enumerate(names):
        for number in range(24):
            path = tmp_path / name / ("none", "nodule")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(24 * at + number).integers(0, 255, (16, 16), np.uint8)).save(path)
    for name in "eb":
        (tmp_path / name / "none" / "notes.txt").write_text("who is who")
    hospitals = {name: CohortSpec(kind="images", root=tmp_path / name) for name in names}

    def said(*sites: str) -> list[str]:
        found: list[str] = []
        check_hospitals(Study.parse(IMAGES), Hospitals({name: hospitals[name] for name in sites}), found.append)
        return found

    own = "every file counts as a patient of its own. Name the column as `patient_column` "
    (alone,) = said("a")
    assert alone.startswith(f"a: {own}")
    assert said("a", "c") == [alone.replace("a: ", "2 sites (a, c): ", 1)]
    everyone = said(*names)
    assert [line for line in everyone if own in line] == [alone.replace("a: ", "5 sites (a, b, c and 2 more): ", 1)]
    others = [line for line in everyone if own not in line]
    assert [line.partition(":")[0] for line in others] == ["2 sites (b, e)"]
    assert "1 other file passed over" in others[0]
