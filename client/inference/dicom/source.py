"""The DICOM file that an answer is about, and its header: patient, study and series of what is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from fedgraft.client.data.decoding.dicom.dicom_file import quiet
from fedgraft.client.inference.cases import InputCase
from fedgraft.common.base.errors import ENDS, InputError

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_OF_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_OF_STUDY = ("StudyID", "AccessionNumber", "StudyDate", "StudyTime", "ReferringPhysicianName")
"""Type 2 of every object's patient and study: there, and empty where nobody knows. De-identifiers remove some."""


def demand_dicom(usable: Sequence[InputCase]) -> None:
    """InputError unless each image is of a DICOM file all of whose frames are used: others have nothing to refer to."""
    for one in usable:
        if one.source is None:
            raise InputError(
                f"{one.file}: is no DICOM file, and a DICOM object must refer to one.",
                fix="Give DICOM files, or leave --dicom out: predictions.csv has the same answers.",
            )
        if one.source.derived_frames:
            raise InputError(
                f"{one.file}: no scanner took some of its frames, so that objects cannot refer to all of them.",
                fix="Leave this file or --dicom out, or list the frames' kind with --accept.",
            )


def read_source(path: Path, name: str) -> Dataset:
    """The header of a file, called `name` in errors. InputError if it lacks what objects refer to it by."""
    with quiet():
        try:
            dataset: Dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            lacking = [key for key in _NEEDED if not str(dataset.get(key) or "").strip("\0 ")]
        except ENDS:
            raise
        except BaseException:
            raise InputError(f"{name}: its header cannot be read.", fix="Leave this file or --dicom out.") from None
    if lacking:
        raise InputError(
            f"{name}: has no {lacking[0]}, so that no object can refer to it.", fix="Leave this file or --dicom out."
        )
    for key in (*_OF_PATIENT, *_OF_STUDY):
        if key not in dataset:
            setattr(dataset, key, "")
    return dataset
