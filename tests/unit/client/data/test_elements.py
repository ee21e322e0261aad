"""An element that is there and cannot be read is not one that is absent; and what a file says oddly is counted."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.images import read_images
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec, Window
from fedgraft.client.preflight.report import Level
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task
from helpers.site_home import Hospital

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
HALF = {"RescaleSlope": "0.5000", "RescaleIntercept": "-10.24", "WindowCenter": "50.25", "WindowWidth": "120.75"}


def written(path: Path, old: str, new: str) -> Path:
    """The file with another text, of equal length, in an element."""
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))
    return path


def reason(path: Path, window: Window | None = None) -> str:
    with pytest.raises(UnusableError) as refused:
        read_dicom(path, window, "middle")
    return refused.value.reason


def load(spec: CohortSpec, tmp_path: Path) -> Cohort:
    wanted = CohortRequest([Task(classes=("none", "nodule"))], ImageInput(size=16), SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(tmp_path / "state", tmp_path / "cache", b"secret"))


def problems(cohort: Cohort) -> dict[str, int]:
    return {problem.reason: problem.count for problem in cohort.problems}


def test_a_comma_is_read_as_a_point(make_dicom, read):
    plain = read(make_dicom(RAMP, "point.dcm", **HALF))
    path = make_dicom(RAMP, "comma.dcm", **HALF)
    for text in HALF.values():
        written(path, text, text.replace(".", ","))
    np.testing.assert_array_equal(read(path), plain)
    assert 0.1 < plain.mean() < 0.9


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5000", "O.5000"),
        ("0.5000", "0,5,00"),
        ("0.5000", "nan   "),
        ("0.5000", "12,345"),
        ("-10.24", "-1O24 "),
        ("-10.24", "1e9999"),
        ("50.25", "5O.25"),
        ("120.75", "12O.75"),
    ],
)
def test_what_is_no_number_refuses_the_file(make_dicom, old, new):
    """A slope that could not be read once counted as 1: another picture, and no word about it."""
    assert reason(written(make_dicom(RAMP, **HALF), old, new)) == "unreadable_element"


def test_so_do_the_number_of_frames_and_the_size_of_a_pixel(make_dicom):
    many = np.stack([RAMP] * 12)
    assert reason(written(make_dicom(many, NumberOfFrames="12"), "\x02\x0012", "\x02\x001O")) == "unreadable_element"
    path = make_dicom(RAMP, PixelSpacing=["0.7425", "0.7425"])
    assert reason(written(path, "0.7425\\0.7425", "0.7425\\O.7425")) == "unreadable_element"
    commas = written(make_dicom(RAMP, PixelSpacing=["0.5000", "0.2500"]), "0.5000\\0.2500", "0,5000\\0,2500")
    image = read_dicom(commas, None, "middle")
    assert (image.pixel_aspect, image.width_mm, image.facts["spacing"]) == (2.0, 0.25, "0.5 mm")


def test_an_absent_or_empty_element_has_its_usual_value(make_dicom, read):
    plain = read(make_dicom(RAMP))
    for empty in ("", None):
        elements = {"RescaleSlope": "", "RescaleIntercept": ""} if empty == "" else {}
        np.testing.assert_array_equal(read(make_dicom(RAMP, **elements)), plain)


def test_a_window_that_is_not_used_need_not_be_read(make_dicom):
    path = written(make_dicom(RAMP, **HALF), "50.25", "5O.25")
    assert read_dicom(path, Window(center=50, width=100), "middle").facts["window"] == "other"


def test_two_slopes_are_none(make_dicom, read):
    """One of them was taken without a word."""
    path = make_dicom(RAMP, RescaleSlope=["0.5", "0.7"])
    assert reason(path) == "unreadable_element"
    once = read(make_dicom(RAMP, "once.dcm", RescaleSlope="0.5"))
    np.testing.assert_array_equal(read(make_dicom(RAMP, RescaleSlope=["0.5", "0.50"])), once)


@pytest.mark.parametrize("function", ["LOGARITHMIC", "LINEAREXACT", "SIGM0ID"])
def test_a_function_that_the_standard_does_not_know_is_not_guessed(make_dicom, function):
    path = make_dicom(RAMP, **HALF, VOILUTFunction=function)
    assert reason(path) == "unreadable_element"
    assert read_dicom(path, Window(center=50, width=100), "middle").frames[0].mean() > 0.1


def test_of_several_functions_the_first_goes_with_the_first_window(make_dicom, read):
    windows = {"WindowCenter": ["50", "90"], "WindowWidth": ["100", "30"]}
    both = read(make_dicom(RAMP, "a.dcm", **windows, VOILUTFunction=["SIGMOID", "LINEAR"]))
    np.testing.assert_allclose(both, 1 / (1 + np.exp(-4 * (RAMP - 50.0) / 100)), atol=1e-6)


def test_pixels_of_frames_that_nobody_counts_are_noted(make_dicom):
    frames = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    image = read_dicom(make_dicom(frames, NumberOfFrames=None), None, "all")
    assert (len(image.frames), image.notes) == (1, ("more_pixels_than_said",))
    assert read_dicom(make_dicom(frames), None, "all").notes == ()


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless])
def test_a_compressed_stream_without_its_end_is_truncated(make_dicom, syntax):
    """Its decoder fills it up with grey, or with less detail; the file around it may be whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    stream = io.BytesIO()
    kind, options = ("JPEG", {}) if syntax == JPEGBaseline8Bit else ("JPEG2000", {"no_jp2": True})
    Image.fromarray(pixels).save(stream, kind, **options)
    whole = stream.getvalue()
    for padding in (b"", b"\0", b"\xff"):
        (found,) = read_dicom(make_dicom(pixels, syntax=syntax, encoded=[whole + padding]), None, "middle").frames
        assert found.std() > 0.2
    for kept in (0.5, 0.9, 0.99):
        cut = whole[: int(kept * len(whole))]
        for lost in (cut, cut.ljust(len(whole), b"\0")):
            assert reason(make_dicom(pixels, syntax=syntax, encoded=[lost])) == "truncated"


EMPTY = [{}, {"LUTDescriptor": None, "LUTData": None}, {"LUTDescriptor": [256, 0, 8], "LUTData": b""}]


@pytest.mark.parametrize("elements", EMPTY)
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_without_entries_is_none(make_dicom, read, item, sequence, elements):
    plain = read(make_dicom(RAMP, "plain.dcm", **HALF))
    empty = item(**elements)
    np.testing.assert_array_equal(read(make_dicom(RAMP, **HALF, **{sequence: [empty]})), plain)


def test_the_first_table_with_entries_counts(make_dicom, read, item):
    table = item(LUTDescriptor=[256, 0, 8], LUTData=list(range(255, -1, -1)))
    alone = read(make_dicom(RAMP, "one.dcm", VOILUTSequence=[table]))
    np.testing.assert_array_equal(read(make_dicom(RAMP, VOILUTSequence=[item(), table])), alone)


def shared_uid(make_dicom, patients: int) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).permutation(RAMP.reshape(-1)).reshape(16, 16)
        make_dicom(pixels, f"dicom/{number}.dcm", SOPInstanceUID="1.2", PatientID=f"p{number % patients}")


@pytest.mark.parametrize("patients", [1, 2, 6])
def test_other_pixels_under_one_uid_are_other_images(make_dicom, tmp_path, patients):
    shared_uid(make_dicom, patients)
    shutil.copy(tmp_path / "dicom" / "0.dcm", tmp_path / "dicom" / "copy.dcm")
    cohort = load(CohortSpec(kind="dicom", root=tmp_path / "dicom"), tmp_path)
    assert len(cohort.inputs) == 6
    assert problems(cohort) == {"duplicate": 1, "same_uid_other_pixels": 6}


def test_labels_do_not_go_by_a_uid_that_several_images_have(make_dicom, tmp_path):
    shared_uid(make_dicom, 6)
    (tmp_path / "labels.csv").write_text("sop,cls\n1.2,nodule\n")
    spec = CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=tmp_path / "labels.csv", join="sop")
    with pytest.raises(DataError, match="6 images with other pixels share a SOPInstanceUID"):
        load(spec, tmp_path)


@pytest.mark.parametrize("stored", ["floats", "slope"])
def test_a_window_of_width_1_shows_values_from_0_to_1_in_full(make_dicom, stored):
    share = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    window = {"WindowCenter": "0.5", "WindowWidth": "1"}
    if stored == "floats":
        path = make_dicom(share, **window)
    else:
        path = make_dicom((share * 4095).round().astype(np.uint16), RescaleSlope=str(1 / 4095), **window)
    image = read_dicom(path, None, "middle")
    np.testing.assert_allclose(image.frames[0], share, atol=2e-4)
    assert image.notes == ("window_width_1",)


def test_a_window_of_width_1_on_whole_numbers_stays_as_it_is(make_dicom):
    image = read_dicom(make_dicom(RAMP, WindowCenter="100", WindowWidth="1"), None, "middle")
    np.testing.assert_array_equal(image.frames[0], RAMP > 99)
    assert image.notes == ()


UNKNOWN_SYNTAXES = ["1.2.840.10008.1.2.4.102", "1.2.840.113619.5.2", "1.2.840.10008.1.2.4.999"]


@pytest.mark.parametrize("syntax", UNKNOWN_SYNTAXES)
def test_a_syntax_that_nobody_decodes_has_a_reason_of_its_own(make_dicom, tmp_path, syntax):
    path = make_dicom(RAMP)
    raw = path.read_bytes()
    plain, other = (f"{UID(uid)}\0"[: len(uid) + len(uid) % 2].encode() for uid in (ExplicitVRLittleEndian, syntax))
    head = b"\x02\x00\x10\x00UI"
    at = raw.index(head)
    grown = int.from_bytes(raw[140:144], "little") + len(other) - len(plain)
    rest = raw[at + 8 + len(plain) :]
    path.write_bytes(
        raw[:140] + grown.to_bytes(4, "little") + raw[144:at] + head + len(other).to_bytes(2, "little") + other + rest
    )
    assert reason(path) == "unsupported_syntax"


def stack(path: Path, *values: int, sizes: tuple[int, ...] = (8,), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.full((sizes[n % len(sizes)],) * 2, v, np.uint8)) for n, v in enumerate(values)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_frames_says_which_page_of_several(tmp_path, name):
    path = stack(tmp_path / name, 10, 120, 250)
    shown = {frames: [round(float(page.mean() * 255)) for page in read_images(path, frames).frames]
             for frames in ("all", "middle", "first")}  # fmt: skip
    assert shown == {"all": [10, 120, 250], "middle": [120], "first": [10]}
    assert read_images(path, "middle").notes == ("several_pages",)
    assert read_images(path, "all").notes == ()


def test_all_pages_become_cases_of_one_patient(tmp_path):
    stack(tmp_path / "images" / "none" / "a.tif", 10, 120, 250)
    stack(tmp_path / "images" / "nodule" / "b.tif", 5)
    cohort = load(CohortSpec(kind="images", root=tmp_path / "images", frames="all"), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 0, 0, 0]
    assert len(set(cohort.patients)) == 2
    again = CohortSpec(kind="images", root=tmp_path / "images")
    assert problems(load(again, tmp_path / "other")) == {"several_pages": 1}


def test_pages_that_are_smaller_copies_do_not_count_and_other_sizes_are_refused(tmp_path):
    with pytest.raises(UnusableError, match="pages_of_several_sizes"):
        read_images(stack(tmp_path / "a.tif", 10, 120, 250, sizes=(8, 4)), "middle")
    pages = [Image.fromarray(np.full((size, size), 90, np.uint8)) for size in (8, 4)]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    found = read_images(tmp_path / "b.tif", "middle")
    assert (found.frames[0].shape, found.notes) == ((8, 8), ())


def test_frames_on_a_table_are_refused():
    with pytest.raises(ValidationError, match="frames does not apply to a cohort of kind table"):
        CohortSpec.model_validate({"kind": "table", "root": "t.csv", "frames": "all"})


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_twelve_bits_in_a_file_of_sixteen_are_noted(tmp_path, name):
    for largest, notes in ((4095, ("twelve_bits_in_16",)), (65535, ()), (0, ())):
        Image.fromarray(np.linspace(0, largest, 64).reshape(8, 8).astype(np.uint16)).save(tmp_path / name)
        assert read_images(tmp_path / name, "middle").notes == notes


def test_the_check_has_a_line_for_what_is_odd_and_used_all_the_same(hospital: Hospital) -> None:
    for file in hospital.files()[:2]:
        hospital.edit(file, SOPInstanceUID="1.2")
    lines = hospital.lines("data")
    assert lines["notes_same_uid_other_pixels"].level is Level.NOTE
    assert lines["notes_same_uid_other_pixels"].figures == {"files": 2}
    assert lines["readable"].level is lines["duplicates"].level is Level.FINE
