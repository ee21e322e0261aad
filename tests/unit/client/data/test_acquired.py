"""Only pictures that a scanner took of a patient become cases; what was made of them is left out, and counted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset, FileMetaDataset

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.cohorts.reasons import NOTES, ODD, SEPARATE, STRANGERS, UNREADABLE
from fedgraft.client.data.decoding.dicom import acquired
from fedgraft.client.data.decoding.dicom.acquired import not_acquired
from fedgraft.client.data.decoding.dicom.dicom_file import MORE_PIXELS, read_dicom
from fedgraft.client.data.decoding.dicom.dicom_image import DERIVED_FRAMES
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.readers.dicom import NO_DICOM_INSIDE
from fedgraft.client.data.spec import DERIVED, CohortSpec
from fedgraft.client.data.tables.targets import BY_OTHERS
from fedgraft.client.inference.cases import Reading, read_cases
from fedgraft.client.preflight.report import Level
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task
from helpers.site_home import Hospital

CT, SC, SEG, DOSE = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2", "7", "66.4", "481.2"))
AXIAL = ["ORIGINAL", "PRIMARY", "AXIAL"]
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def load(tmp_path: Path, **settings: object) -> Cohort:
    spec = CohortSpec.model_validate({"kind": "dicom", "root": tmp_path / "dicom"} | settings)
    wanted = CohortRequest([Task(classes=("none", "nodule"))], ImageInput(size=16), SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(tmp_path / "state", tmp_path / "cache", b"secret"))


@pytest.fixture
def export(make_dicom, tmp_path):
    """What an archive gives for four patients: two slices, a scout, a report of the dose, and the finding outlined."""
    for patient in range(4):
        ids = {"PatientID": f"p{patient}"}
        for name, storage, kind, frames in (
            ("ct0", CT, AXIAL, None),
            ("ct1", CT, ["DERIVED", "PRIMARY", "AXIAL"], None),
            ("scout", CT, ["ORIGINAL", "PRIMARY", "LOCALIZER"], None),
            ("report", SC, ["DERIVED", "SECONDARY", "SCREEN SAVE"], None),
            ("seg", SEG, ["DERIVED", "PRIMARY"], 3),
            ("dose", DOSE, None, 2),
        ):
            pixels = GREY + patient if frames is None else np.stack([GREY] * frames)
            more = ids | {"SOPClassUID": storage, "SOPInstanceUID": f"1.{patient}.{len(name)}.{ord(name[-1])}"}
            make_dicom(pixels, f"dicom/p{patient}/{name}.dcm", **more, **({"ImageType": kind} if kind else {}))
    return tmp_path


def test_what_was_made_of_pictures_is_left_out_by_its_kind(export):
    """Twelve of twenty-eight files of a real patient were slices; all were trained on, the answer among them."""
    cohort = load(export)
    assert len(cohort.inputs) == 8
    left_out = {problem.reason: problem.count for problem in cohort.problems}
    assert left_out == {"localizer": 4, "rt_dose": 4, "secondary_capture": 4, "segmentation": 4}
    listed = (export / "state" / "left_out.csv").read_text()
    assert '"p0/seg.dcm",segmentation' in listed


def test_a_cohort_may_list_what_it_wants(export):
    assert len(load(export, accept=["localizer", "secondary_capture"]).inputs) == 16
    for settings in ({"accept": ["anything"]}, {"kind": "images", "accept": ["localizer"]}):
        with pytest.raises(ValidationError, match="accept"):
            CohortSpec.model_validate({"kind": "dicom", "root": "x"} | settings)


def test_a_folder_of_nothing_else_says_so(make_dicom, tmp_path):
    make_dicom(GREY, "dicom/a.dcm", SOPClassUID=SC)
    with pytest.raises(DataError, match=r"nothing .* can be used \(secondary_capture 1\).*`accept`"):
        load(tmp_path)


def test_a_failed_export_is_no_stranger(make_dicom, tmp_path):
    """Pages of a web server, and images without pixels, once lay among files that were never meant to be images."""
    for number in range(4):
        make_dicom(GREY + number, f"dicom/{number}.dcm", PatientID=f"p{number}", SOPInstanceUID=f"1.{number + 1}")
    for name in ("a.dcm", "b.DCM", "c.html"):
        (tmp_path / "dicom" / name).write_text("<html>Please log in</html>" * 20)
    make_dicom(None, "dicom/d.dcm")
    (tmp_path / "dicom" / "e.dcm").write_bytes(make_dicom(GREY, "dicom/e.dcm").read_bytes()[:200])
    cohort = load(tmp_path)
    assert {problem.reason: problem.count for problem in cohort.problems} == {
        "no_dicom_inside": 2,
        "not_dicom": 1,
        "image_without_pixels": 2,
    }


def test_a_prediction_is_not_made_of_them_either(export):
    found = read_cases(export / "dicom", ImageInput(size=16), Reading()).all
    assert len([one for one in found if one.stored is not None]) == 8
    assert {one.problem for one in found} == {"", "localizer", "rt_dose", "secondary_capture", "segmentation"}
    asked = read_cases(export / "dicom", ImageInput(size=16), Reading(keys={"accept": ["localizer"]})).all
    assert len([one for one in asked if one.stored is not None]) == 12


def test_the_check_counts_them_apart_from_files_that_cannot_be_read(hospital: Hospital) -> None:
    for file, kind in zip(hospital.files()[:3], (SC, SEG, SC), strict=True):
        hospital.edit(file, SOPClassUID=kind)
    lines = hospital.lines("data")
    assert lines["acquired"].level is Level.NOTE
    assert lines["acquired"].figures == {"left_out": {"secondary_capture": 2, "segmentation": 1}}
    assert "`accept`" in lines["acquired"].fix
    assert lines["readable"].level is Level.FINE
    assert lines["readable"].figures == {"images": 61, "unreadable": {}, "other_files": 0}


def described(storage: str, modality: str, image_type: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    if storage:
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{storage}"
    dataset.Modality = modality
    if image_type:
        dataset.ImageType = image_type.split("\\")
    return dataset


@pytest.mark.parametrize(
    ("storage", "modality", "image_type", "kind"),
    [
        ("2", "CT", "", None),
        ("", "", "", None),
        ("2", "CT", r"ORIGINAL\PRIMARY\AXIAL\HELIX", None),
        ("4", "MR", r"ORIGINAL\PRIMARY\M\ND\NORM", None),
        ("4", "MR", r"DERIVED\PRIMARY\DIFFUSION\ADC", None),
        ("1.1", "DX", r"DERIVED\PRIMARY\\", None),
        ("1.2", "MG", r"DERIVED\PRIMARY", None),
        ("13.1.3", "MG", r"DERIVED\PRIMARY\TOMOSYNTHESIS\NONE", None),
        ("481.1", "RTIMAGE", r"ORIGINAL\PRIMARY\PORTAL", None),
        ("6.1", "US", r"ORIGINAL\PRIMARY\ABDOMINAL", None),
        ("77.1.6", "SM", r"ORIGINAL\PRIMARY\VOLUME\NONE", None),
        ("77.1.6", "SM", r"ORIGINAL\PRIMARY\LABEL\NONE", "slide_label"),
        ("2", "CT", r"original\primary\localizer", "localizer"),
        ("2.1", "CT", r"ORIGINAL\PRIMARY\LOCALIZER\NONE", "localizer"),
        ("2", "CT", r"DERIVED\SECONDARY\REFORMATTED\AVERAGE", "derived_image"),
        ("2", "CT", r"ORIGINAL\SECONDARY\AXIAL", "derived_image"),
        ("2", "CT", r"DERIVED\PRIMARY\PROJECTION IMAGE", "derived_image"),
        ("4", "MR", r"DERIVED\SECONDARY\MPR\CSA MPR", "derived_image"),
        ("2", "CT", r"DERIVED\PRIMARY\AXIAL\CT_SOM5 MIP", "derived_image"),
        ("2", "CT", r"DERIVED\PRIMARY\MIP_THIN", "derived_image"),
        ("2", "CT", r"DERIVED\PRIMARY\THICK SLAB MINIP", "derived_image"),
        ("2.1", "CT", r"DERIVED\PRIMARY\VOLUME\MAX_IP", "derived_image"),
        ("2.1", "CT", r"DERIVED\PRIMARY\VOLUME\MAXIMUM", None),
        ("4", "MR", r"DERIVED\PRIMARY\VOLUME_RENDERED", "derived_image"),
        ("4", "MR", r"DERIVED\PRIMARY\MIPPED", None),
        ("4", "MR", r"DERIVED\PRIMARY\TUMIP", None),
        ("4", "MR", r"ORIGINAL\PRIMARY\SURVEY", "localizer"),
        ("2", "CT", r"ORIGINAL\PRIMARY\CT_TOPO", "localizer"),
        ("2", "CT", r"ORIGINAL\PRIMARY\AXIAL\DOSE", "dose_report"),
        ("2", "CT", r"DERIVED\SECONDARY\SCREEN_SAVE", "secondary_capture"),
        ("2", "CT", r"DERIVED\SECONDARY\OTHER\CT_SOM5 PROT", "dose_report"),
        ("2", "CT", r"DERIVED\SECONDARY\DOSE_INFO", "dose_report"),
        ("7", "OT", r"DERIVED\SECONDARY", "secondary_capture"),
        ("7.2", "CT", "", "secondary_capture"),
        ("11.1", "PR", "", "presentation_state"),
        ("88.67", "SR", "", "report"),
        ("104.1", "DOC", "", "report"),
        ("66.7", "SEG", r"DERIVED\PRIMARY", "segmentation"),
        ("30", "MR", r"DERIVED\PRIMARY\PERFUSION", "parametric_map"),
        ("481.3", "RTSTRUCT", "", "other_object"),
        ("66.1", "REG", "", "other_object"),
        ("", "SEG", "", "segmentation"),
        ("", "RTDOSE", "", "rt_dose"),
    ],
)
def test_kinds(storage, modality, image_type, kind):
    assert not_acquired(described(storage, modality, image_type)) == kind
    assert not_acquired(described(storage, modality, image_type), DERIVED) is None


def typed(*image_type: str) -> Dataset:
    group, inner = Dataset(), Dataset()
    inner.FrameType = list(image_type)
    group.CTImageFrameTypeSequence = [inner]
    return group


LOCALIZER, VOLUME, MIP = (
    ("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"),
    ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"),
    ("DERIVED", "PRIMARY", "VOLUME", "MAX_IP"),
)


def test_frames_of_a_mixed_file_count_one_by_one(make_dicom):
    """An enhanced file may hold a localizer, slices and a projection; of its image type it says MIXED."""
    kinds = (LOCALIZER, VOLUME, VOLUME, VOLUME, MIP)
    frames = np.stack([np.full((8, 8), value, np.uint8) for value in (0, 50, 100, 150, 250)])
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    path = make_dicom(
        frames,
        ImageType=["MIXED", "PRIMARY", "VOLUME", "NONE"],
        PerFrameFunctionalGroupsSequence=[typed(*kind) for kind in kinds],
        **window,
    )

    def shown(frames: str, *accept: str) -> tuple[list[int], tuple[str, ...]]:
        image = read_dicom(path, None, frames, accept)
        return [round(float(frame.mean() * 255)) for frame in image.frames], image.notes

    assert shown("all") == ([50, 100, 150], ("derived_frames",))
    assert shown("middle") == ([100], ("derived_frames",))
    assert shown("first", "localizer") == ([0], ("derived_frames",))
    assert shown("all", "localizer", "derived_image") == ([0, 50, 100, 150, 250], ())


def test_a_file_of_such_frames_alone_is_left_out(make_dicom):
    path = make_dicom(np.stack([GREY] * 3), SharedFunctionalGroupsSequence=[typed(*LOCALIZER)])
    with pytest.raises(UnusableError, match="localizer"):
        read_dicom(path, None, "middle")


def test_the_class_in_the_files_head_counts_where_the_data_say_none():
    dataset = described("", "OT", "")
    dataset.file_meta.MediaStorageSOPClassUID = SEG
    assert not_acquired(dataset) == "segmentation"


def test_every_kind_that_can_be_found_can_be_listed():
    found = {*acquired._CLASSES, *acquired._MODALITIES.values(), "localizer", "dose_report", "slide_label"}
    assert found | {"derived_image"} == set(DERIVED)


def test_every_reason_for_leaving_a_file_out_has_its_place():
    sources = (Path(acquired.__file__).parent.glob("*.py"), Path(acquired.__file__).parents[1].rglob("scan*.py"))
    text = "".join(path.read_text() for some in sources for path in some)
    reasons = set(re.findall(r'(?:UnusableError\(|_leave_out\(scan, at, )"(\w+)"', text))
    reasons |= {NO_DICOM_INSIDE, DERIVED_FRAMES, MORE_PIXELS, BY_OTHERS}
    reasons |= {word for pair in re.findall(r'UnusableError\("(\w+)" if .* else "(\w+)"\)', text) for word in pair}
    assert len(reasons) > 10
    assert reasons <= STRANGERS | SEPARATE | UNREADABLE.keys() | ODD | NOTES.keys()
