"""docs/how_to/deidentification.md says what is read of a DICOM file, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom

from fedgraft.client.data.decoding.dicom import read_tags
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.pacs.store import UID_TAGS
from helpers.site_home import Hospital

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs" / "how_to" / "deidentification.md").read_text(encoding="utf-8")
LISTS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
IMAGE, SEGMENTATION = ([name.strip() for name in block.split(",")] for block in LISTS)


def test_the_page_lists_what_is_read() -> None:
    assert sorted(IMAGE) == sorted(read_tags.IMAGE)
    assert sorted(SEGMENTATION) == sorted(read_tags.SEGMENTATION)


def test_whatever_reads_a_file_of_a_cohort_says_what_it_reads() -> None:
    calls = [
        call
        for path in (ROOT / "client" / "data").rglob("*.py")
        for call in re.findall(r"dcmread\(.*\)", path.read_text(encoding="utf-8"))
    ]
    assert len(calls) >= 4
    assert [call for call in calls if not re.search("specific_tags=(IMAGE|SEGMENTATION|UID)_TAGS", call)] == []
    assert UID_TAGS == ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]  # "looks at their UIDs alone"
    assert "looks at their UIDs alone" in PAGE


def test_an_image_without_all_else_is_the_same_image(hospital: Hospital) -> None:
    path = hospital.files()[0]
    hospital.edit(path, PatientName="DOE^JANE", PatientBirthDate="19500101", StudyDescription="seen by Dr Doe")
    before = read_dicom(path, None, "middle")
    dataset = pydicom.dcmread(path)
    for element in list(dataset):
        if element.keyword not in IMAGE:
            del dataset[element.tag]
    assert not {"PatientName", "PatientBirthDate", "StudyDescription"} & {element.keyword for element in dataset}
    dataset.save_as(path)
    after = read_dicom(path, None, "middle")
    assert all(np.array_equal(one, other) for one, other in zip(before.frames, after.frames, strict=True))
    assert (before.keys, before.facts, before.width_mm) == (after.keys, after.facts, after.width_mm)
    assert "DOE" not in str((before.keys, before.facts, before.notes))
