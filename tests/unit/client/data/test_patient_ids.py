"""One patient whose id is written in several ways would lie in several splits: every kind of cohort looks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.patient_ids import similar
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task

ONE_PATIENT = ("7", "0007", "7.0")
IDS = (*ONE_PATIENT, "8", "70")


@pytest.mark.parametrize(
    "ids",
    [
        ("7", "0007", "7.0", "7,0", " 7"),
        ("P-7", "p_07", "P 7", "p7", "P.007"),
        ("MRN/0012/A", "mrn 12 a", "MRN12A"),
        ("M\u00fcller", "Mu\u0308ller", "M\u00dcLLER"),
    ],
)
def test_ways_to_write_one_id(ids):
    assert similar([*ids, *ids, "another"]) == len(ids)


@pytest.mark.parametrize(
    "ids", [("7", "70", "17"), ("1-23", "12-3", "123"), ("7.5", "7", "75"), ("A1", "B1"), ("0", "-")]
)
def test_ids_of_different_patients(ids):
    assert similar(ids) == 0


def load(spec: CohortSpec, tmp_path: Path) -> Cohort:
    size = TableInput(numeric=("a",)) if spec.kind == "table" else ImageInput(size=16)
    place = Place(tmp_path / "state", tmp_path / "cache", b"secret")
    return load_cohort("north", spec, CohortRequest([Task(classes=("none", "nodule"))], size, SplitSpec(), 0), place)


def dicom(tmp_path: Path, make_dicom) -> CohortSpec:
    for number, name in enumerate(IDS):
        pixels = np.full((16, 16), number, np.uint8)
        make_dicom(pixels, f"dicom/{number}.dcm", PatientID=name, SOPInstanceUID=f"1.{number + 1}")
    return CohortSpec(kind="dicom", root=tmp_path / "dicom")


def images(tmp_path: Path, make_dicom) -> CohortSpec:
    (tmp_path / "images").mkdir()
    for number in range(len(IDS)):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    rows = [f"{number}.png,{name},none" for number, name in enumerate(IDS)]
    (tmp_path / "images.csv").write_text("\n".join(["path,pid,cls", *rows]) + "\n")
    return CohortSpec(kind="images", root=tmp_path / "images", labels=tmp_path / "images.csv", patient_column="pid")


def table(tmp_path: Path, make_dicom) -> CohortSpec:
    rows = [f"{number},{name},none" for number, name in enumerate(IDS)]
    (tmp_path / "t.csv").write_text("\n".join(["a,id,cls", *rows]) + "\n")
    return CohortSpec(kind="table", root=tmp_path / "t.csv", patient_column="id")


@pytest.mark.parametrize("kind", [dicom, images, table])
def test_every_kind_of_cohort_counts_them(tmp_path, make_dicom, kind):
    cohort = load(kind(tmp_path, make_dicom), tmp_path)
    assert {problem.reason: problem.count for problem in cohort.problems} == {"similar_patient_ids": 3}


def test_where_nobody_says_whose_a_file_is_names_are_no_ids(tmp_path):
    (tmp_path / "images" / "none").mkdir(parents=True)
    for name in ONE_PATIENT:
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "images" / "none" / f"{name}.png")
    assert not load(CohortSpec(kind="images", root=tmp_path / "images"), tmp_path).problems


NOBODY = ("NA", "none", "-", "", "p1", "p2")


@pytest.mark.parametrize("kind", [dicom, images, table])
def test_a_word_for_missing_is_nobodys_id(tmp_path, make_dicom, monkeypatch, kind):
    """Cells `NA` once were a patient of that name, and nobody was told."""
    monkeypatch.setattr(f"{__name__}.IDS", NOBODY)
    cohort = load(kind(tmp_path, make_dicom), tmp_path)
    assert {problem.reason: problem.count for problem in cohort.problems} == {"no_patient_id": 4}
    assert len(set(cohort.patients)) == 3


ROUNDED = ("1.23457E+11", "1.23457E+11", "1,5e+12", "123457000000", "1.2", "E+11")


@pytest.mark.parametrize("kind", [dicom, images, table])
def test_ids_that_a_spreadsheet_has_rounded_are_told(tmp_path, make_dicom, monkeypatch, kind):
    """Two patients are one by such an id, and their other images may go by another."""
    monkeypatch.setattr(f"{__name__}.IDS", tuple(f'"{name}"' if kind is not dicom else name for name in ROUNDED))
    cohort = load(kind(tmp_path, make_dicom), tmp_path)
    assert {problem.reason: problem.count for problem in cohort.problems} == {"rounded_patient_ids": 3}
