"""Hospitals on disk: what is in the folder, that it is whole or absent, and that names never occur."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from fedgraft.common.base.errors import InputError
from fedgraft.simulations.phantoms import hospitals
from fedgraft.simulations.phantoms.dicom import DicomWriter
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario

SITE = {"patients": 12, "images_per_patient": [1, 3]}
PREVALENCE = {"none": 0.25, "smooth": 0.25, "spiculated": 0.25, "ring": 0.25}


def scenario(seed: int = 3, **sites: dict[str, object]) -> Scenario:
    entries = [{"name": name, "phantom": SITE | phantom} for name, phantom in (sites or {"north": {}}).items()]
    return Scenario.model_validate({"name": "small", "seed": seed, "sites": entries})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_files_and_masks_say_the_same(tmp_path):
    cohort = make_hospitals(scenario(north={"modality": ["ct", "mr"]}), tmp_path / "out")["north"]
    site = tmp_path / "out" / "north"
    assert (cohort.kind, cohort.root, cohort.labels) == ("dicom", site / "dicom", site / "patients.csv")
    patients = {row["PatientID"]: row for row in rows(site / "patients.csv")}
    images = rows(site / "images.csv")
    assert sorted(patients) == [f"P{number:04d}" for number in range(1, 13)]
    assert {row["PatientID"] for row in images} == set(patients)
    assert {row["file"] for row in images} == {f"dicom/{path.name}" for path in (site / "dicom").iterdir()}
    for row in images:
        ds = dcmread(site / row["file"])
        patient = patients[row["PatientID"]]
        assert (ds.SOPInstanceUID, ds.StudyInstanceUID) == (row["sop_uid"], row["study_uid"])
        assert (ds.PatientID, ds.PatientSex) == (row["PatientID"], patient["sex"])
        assert int(ds.PatientAge[:-1]) == int(patient["age"])
        assert patient["organ"] == {"CT": "thorax_ct", "MR": "brain_mr"}[ds.Modality]
        assert patient["diagnosis"] == row["finding"]
        area = np.asarray(Image.open(site / row["mask"])).sum()
        diameter = 2 * np.sqrt(area / np.pi) * float(ds.PixelSpacing[0])
        assert abs(diameter - float(row["diameter_mm"])) < float(ds.PixelSpacing[0])
        assert abs(float(patient["size_mm"]) - float(row["diameter_mm"])) <= 0.031 * float(row["diameter_mm"]) + 0.05
        assert (float(row["diameter_mm"]) == 0) == (row["finding"] == "none")
        assert ds.pixel_array.shape == (64, 64)


def test_images_of_a_patient_are_one_study_and_different_images(tmp_path):
    make_hospitals(scenario(), tmp_path / "out")
    images = rows(tmp_path / "out" / "north" / "images.csv")
    counts = [sum(row["PatientID"] == patient for row in images) for patient in {row["PatientID"] for row in images}]
    assert min(counts) >= 1
    assert max(counts) > 1
    assert len({row["study_uid"] for row in images}) == len(counts)
    assert len({row["sop_uid"] for row in images}) == len(images)
    pixels = {dcmread(tmp_path / "out" / "north" / row["file"]).PixelData for row in images}
    assert len(pixels) == len(images)


def test_no_patient_has_a_name_or_a_birth_date(tmp_path):
    make_hospitals(scenario(), tmp_path / "out")
    for path in (tmp_path / "out" / "north" / "dicom").iterdir():
        ds = dcmread(path)
        assert re.fullmatch(r"P\d{4,}", ds.PatientID)
        assert not ds.PatientName
        assert not ds.PatientBirthDate
        assert not [element for element in ds if element.VR == "PN" and element.value]


def test_the_same_scenario_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_hospitals(scenario(seed), tmp_path / name)
    first, second, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert first == second
    pixels = [name for name in first if name.endswith(".dcm") and name in other]
    assert pixels
    assert not [name for name in pixels if first[name] == other[name]]


def test_more_patients_and_more_sites_change_no_file_of_the_others(tmp_path):
    make_hospitals(scenario(), tmp_path / "few")
    make_hospitals(scenario(south={}, north={"patients": 30}), tmp_path / "many")
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    shared = [name for name in few if name.endswith((".dcm", ".png"))]
    assert shared
    assert [name for name in shared if few[name] != many[name]] == []
    here, there = (dcmread(tmp_path / "many" / site / "dicom" / "P0001_1.dcm") for site in ("north", "south"))
    assert here.PixelData != there.PixelData
    assert here.StudyInstanceUID != there.StudyInstanceUID


def test_prevalences_of_the_shipped_hospitals_are_met(tmp_path):
    xray5 = load_scenario("xray5")
    small = xray5.model_copy(
        update={"sites": tuple(site for site in xray5.sites if site.name in ("harbour", "hilltop"))}
    )
    make_hospitals(small, tmp_path / "out")
    for site in small.sites:
        told = [row["diagnosis"] for row in rows(tmp_path / "out" / site.name / "patients.csv")]
        assert len(told) == site.phantom.patients
        for finding, share in site.phantom.prevalence.items():
            assert abs(told.count(finding) - share * len(told)) <= 2


def test_labels_that_are_missing_are_empty_cells_and_the_truth_stays(tmp_path):
    make_hospitals(scenario(north={"unlabelled": True}), tmp_path / "out")
    site = tmp_path / "out" / "north"
    assert {(row["diagnosis"], row["size_mm"]) for row in rows(site / "patients.csv")} == {("", "")}
    assert {row["finding"] for row in rows(site / "images.csv")} == set(PREVALENCE)


def test_an_existing_folder_of_the_same_scenario_is_used_as_it_is(tmp_path):
    first = make_hospitals(scenario(), tmp_path / "out")
    kept = tmp_path / "out" / "north" / "kept.txt"
    kept.write_text("still here")
    assert make_hospitals(scenario(), tmp_path / "out") == first
    assert kept.exists()


def test_a_folder_of_another_scenario_or_of_something_else_is_refused_and_left_alone(tmp_path):
    make_hospitals(scenario(), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="another scenario"):
        make_hospitals(scenario(seed=4), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="in use"):
        make_hospitals(scenario(), tmp_path / "thesis")
    assert contents(tmp_path / "thesis") == {"chapter.txt": b"years of work"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_run_that_dies_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    real, calls = DicomWriter.file, []

    def dies(self, pixels, shot):
        calls.append(shot)
        if len(calls) == 9:
            raise error
        return real(self, pixels, shot)

    monkeypatch.setattr(DicomWriter, "file", dies)
    with pytest.raises((KeyboardInterrupt, InputError)):
        make_hospitals(scenario(), tmp_path / "out")
    assert len(calls) == 9
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    make_hospitals(scenario(), tmp_path / "out")
    assert len(list((tmp_path / "out" / "north" / "dicom").iterdir())) >= 12


def test_an_empty_folder_is_filled_and_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    make_hospitals(scenario(), tmp_path / "empty")
    assert (tmp_path / "empty" / "north" / "patients.csv").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        make_hospitals(scenario(), tmp_path / "file")


def test_who_is_slower_uses_the_folder_of_the_quicker_process(tmp_path, monkeypatch):
    real = hospitals.write_json

    def overtaken(path, content):
        real(path, content)
        monkeypatch.setattr(hospitals, "write_json", real)
        make_hospitals(scenario(), tmp_path / "out")

    monkeypatch.setattr(hospitals, "write_json", overtaken)
    make_hospitals(scenario(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_table_sites_hold_the_real_patients_with_their_diagnoses(tmp_path):
    cohorts = make_hospitals(load_scenario("breast_cancer"), tmp_path / "out")
    table = rows(tmp_path / "out" / "clinic" / "table.csv")
    assert (cohorts["clinic"].kind, cohorts["clinic"].root) == ("table", tmp_path / "out" / "clinic" / "table.csv")
    assert [row["diagnosis"] for row in table].count("malignant") == 23
    assert len(table[0]) == 32
    by_id = {row["PatientID"]: row for name in cohorts for row in rows(tmp_path / "out" / name / "table.csv")}
    # the first two patients of the table that are used, as scikit-learn's documentation has them
    known = {"P0001": "17.99", "P0002": "20.57", "P0003": "19.69", "P0020": "13.54"}
    found = {number: by_id[number]["mean radius"] for number in known if number in by_id}
    assert found
    assert found == {number: known[number] for number in found}


def test_cohorts_of_the_user_are_passed_on_and_nothing_is_written(tmp_path):
    cohorts = make_hospitals(load_scenario("folders"), tmp_path / "out")
    assert sorted(cohorts) == ["clinic_a", "clinic_b", "clinic_c"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dicom", "patients.csv"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_generated_data_that_are_not_what_they_were_are_named_and_not_used(tmp_path, name: str, how: str):
    """They lie in a cache between runs, and one flipped bit is another picture."""
    make_hospitals(scenario(), tmp_path / "out")
    path = tmp_path / "out" / "north" / name
    path = sorted(path.iterdir())[3] if path.is_dir() else path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[:-30])
    with pytest.raises(InputError, match=f"{path}: is not as it was generated. Remove .*out, and"):
        make_hospitals(scenario(), tmp_path / "out")
