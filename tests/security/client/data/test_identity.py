"""Nothing that names a patient leaves the hospital's own files: not into caches, splits, errors, warnings or logs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task

SECRETS = ("DOE", "JANE", "MRN-4711", "19700101", "1.2.3.4711", "Dr Who", "St Elsewhere", "scan_of")
WANTED = CohortRequest([Task(classes=("no", "yes"))], ImageInput(size=16), SplitSpec(), 0)


def write(path: Path, number: int = 1, **elements) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.4711.3.{number}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "DOE^JANE", "MRN-4711", "19700101"
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4711.1", "1.2.3.4711.2"
    dataset.ReferringPhysicianName, dataset.InstitutionName = "Dr Who", "St Elsewhere"
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CT", "MONOCHROME2", 1
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.add_new("PixelData", "OB", np.arange(256, dtype=np.uint8).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in elements.items():
            setattr(dataset, key, value)
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path / "state", tmp_path / "cache", b"key of the hospital")


def reveals(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def test_what_is_kept_names_nobody(tmp_path, place, caplog):
    root = tmp_path / "dicom"
    write(root / "scan_of_DOE.dcm")
    (root / "scan_of_JANE_cut.dcm").write_bytes((root / "scan_of_DOE.dcm").read_bytes()[:-50])
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        cohort = load_cohort("north", CohortSpec(kind="dicom", root=root), WANTED, place)
    kept = [file for folder in (place.cache, place.state) for file in folder.rglob("*") if file.is_file()]
    assert {file.name.split(".")[-1] for file in kept} == {"npy", "json", "csv"}
    for file in kept:
        if file.name != "left_out.csv":
            assert not reveals(file.read_bytes().decode("latin-1")), file
        assert not reveals(file.name)
    for text in (repr(cohort), repr(cohort.summary()), repr(cohort.problems), repr(cohort.patients), caplog.text):
        assert not reveals(text)
    assert not [str(warning.message) for warning in warned if reveals(str(warning.message))]
    left_out = place.state / "left_out.csv"
    assert left_out.read_text() == 'file,reason\n"scan_of_JANE_cut.dcm",truncated\n'
    assert left_out.stat().st_mode & 0o777 == 0o600
    assert (place.state / "splits.csv").stat().st_mode & 0o777 == 0o600


def test_patients_have_another_name_at_each_hospital(tmp_path, place):
    root = tmp_path / "dicom"
    write(root / "a.dcm")
    first = load_cohort("north", CohortSpec(kind="dicom", root=root), WANTED, place)
    other = Place(tmp_path / "b", tmp_path / "c", b"another key")
    second = load_cohort("south", CohortSpec(kind="dicom", root=root), WANTED, other)
    assert first.patients != second.patients
    assert len(first.patients[0]) == 32


BAD = [
    {"RescaleSlope": "1"},
    {"PatientID": "MRN-4711" * 20, "StudyInstanceUID": "1.2.3.4711.DOE"},
    {"Rows": 400},
    {"PhotometricInterpretation": "DOE"},
    {"BurnedInAnnotation": "YES"},
    {"BitsAllocated": 13},
]


@pytest.mark.parametrize("elements", BAD)
def test_errors_warnings_and_logs_name_nobody(tmp_path, caplog, elements):
    path = write(tmp_path / "scan_of_DOE.dcm", **elements)
    damaged = path.read_bytes().replace(b"DOE^JANE", b"DOE\xff\xfeJAN").replace(b"CS\x02\x00CT", b"IS\x02\x00CT")
    path.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        try:
            text = repr(read_dicom(path, None, "all").facts)
        except UnusableError as error:
            text = repr(error) + str(error) + str(error.__cause__)
    assert not reveals(text)
    assert not reveals(caplog.text)
    assert not warned


def test_repr_of_an_image_keeps_its_keys_to_itself(tmp_path):
    assert not reveals(repr(read_dicom(write(tmp_path / "scan_of_DOE.dcm"), None, "all")))


def test_no_name_of_a_file_or_folder_in_errors_about_folders(tmp_path, place):
    folder = tmp_path / "images" / "DOE"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "scan_of_DOE.png")
    with pytest.raises(DataError, match="sub-folder") as error:
        load_cohort("north", CohortSpec(kind="images", root=tmp_path / "images"), WANTED, place)
    assert not reveals(str(error.value) + repr(error.value))


def test_nothing_usable_names_no_file(tmp_path, place):
    write(tmp_path / "dicom" / "scan_of_DOE.dcm", BurnedInAnnotation="YES")
    with pytest.raises(DataError) as error:
        load_cohort("north", CohortSpec(kind="dicom", root=tmp_path / "dicom"), WANTED, place)
    assert not reveals(str(error.value))
