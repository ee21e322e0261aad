"""Encodings, damaged files and files of other kinds: right values, or a constant reason."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import DERIVED

ROOT = Path(pydicom.__file__).parent / "data" / "test_files"
RNG = np.random.default_rng(1)
SIGNED = RNG.integers(-2048, 2048, (2, 20, 16)).astype(np.int16)
EXACT = {"WindowCenter": "0", "WindowWidth": "4096", "VOILUTFunction": "LINEAR_EXACT"}
BYTE = {"WindowCenter": "127.5", "WindowWidth": "255", "VOILUTFunction": "LINEAR_EXACT"}
RAMP = np.add.outer(np.arange(32), 6 * np.arange(32)).astype(np.uint8)


def reason(path: Path, frames: str = "all") -> str:
    with pytest.raises(UnusableError) as refused:
        read_dicom(path, None, frames)
    return refused.value.reason


def first(path: Path) -> np.ndarray:
    """The first frame; what kind of object it is of, `test_acquired` looks at."""
    return read_dicom(path, None, "first", DERIVED).frames[0]


def lossless_jpeg(image: np.ndarray, precision: int) -> bytes:
    """ITU-T T.81 annex H with the left neighbour as predictor; all categories get codes of five bits."""
    plain, bits = image.astype(int) & ((1 << precision) - 1), []
    for y, x in np.ndindex(plain.shape):
        predicted = plain[y, x - 1] if x else plain[y - 1, 0] if y else 1 << (precision - 1)
        difference = int(plain[y, x] - predicted + 32767) % 65536 - 32767
        size = abs(difference).bit_length() if difference < 32768 else 16
        bits.append(f"{size:05b}")
        if 0 < size < 16 or (size == 16 and difference < 32768):
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    tables = bytes([0xFF, 0xC4, 0, 36, 0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    height, width = plain.shape
    frame = bytes([0xFF, 0xC3, 0, 11, precision, 0, height, 0, width, 1, 1, 0x11, 0])
    return b"\xff\xd8" + frame + tables + bytes([0xFF, 0xDA, 0, 8, 1, 1, 0, 1, 0, 0]) + scan + b"\xff\xd9"


PLAIN = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
ENCODINGS = [*PLAIN, RLELossless, JPEG2000Lossless, JPEGLosslessSV1]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", ENCODINGS)
def test_lossless_encodings_keep_every_value(make_dicom, syntax, signed, bits):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = f"{'i' if signed else 'u'}{1 if bits == 8 else 2}"
    values = RNG.integers(low, high, (2, 41, 35)).astype(kind)
    values[0, 0, :2] = low, high - 1
    window = EXACT | {"WindowCenter": str((low + high) / 2), "WindowWidth": str(high - low)}
    encoded = [lossless_jpeg(frame, bits) for frame in values] if syntax == JPEGLosslessSV1 else None
    path = make_dicom(values, syntax=syntax, encoded=encoded, BitsStored=bits, HighBit=bits - 1, **window)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    found = read_dicom(path, None, "all").frames
    np.testing.assert_allclose(found, (values.astype(float) - low) / (high - low), atol=1e-6)


TWINS = ["bigendian", "expb", "implicit", "RLE", "jp2klossless", "jpeg_ls_lossless", "padded"]


@pytest.mark.parametrize("twin", TWINS)
def test_one_scan_written_by_others_in_many_encodings(twin):
    np.testing.assert_array_equal(first(ROOT / f"MR_small_{twin}.dcm"), first(ROOT / "MR_small.dcm"))


def test_lossy_jpeg_is_close(make_dicom):
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "jpeg", quality=95)
    path = make_dicom(RAMP, syntax=JPEGBaseline8Bit, encoded=[file.getvalue()], **BYTE)
    assert np.abs(first(path) - RAMP / 255).max() < 5 / 255


BARS = np.array(
    [[255, 0, 0], [255, 128, 128], [0, 255, 0], [128, 255, 128], [0, 0, 255], [128, 128, 255], [0, 0, 0],
     [64, 64, 64], [192, 192, 192], [255, 255, 255]]
)  # fmt: skip
COLOURED = [
    "SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+n1", "SC_rgb_dcmtk_+eb+cy+n2", "SC_rgb_dcmtk_+eb+cy+np",
    "SC_rgb_dcmtk_+eb+cy+s2", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_gdcm_KY", "SC_rgb_jls_lossy_line",
    "SC_rgb_jls_lossy_sample", "SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "SC_rgb_rle",
    "SC_rgb_rle_16bit", "SC_rgb_rle_32bit", "SC_ybr_full_422_uncompressed",
]  # fmt: skip


@pytest.mark.parametrize("name", COLOURED)
def test_ten_colour_bars_in_many_encodings(name):
    np.testing.assert_allclose(first(ROOT / f"{name}.dcm")[5::10, 50], BARS / 255, atol=6 / 255)


def test_all_of_a_known_collection_is_read_or_refused_with_a_reason():
    """Whatever is in pydicom's own files: finite values in [0, 1], or one of these reasons; nothing else is raised."""
    refused: dict[str, set[str]] = {}
    wrong = []
    for path in sorted(path for path in ROOT.parent.rglob("*") if path.is_file()):
        name, start = path.relative_to(ROOT.parent).as_posix(), time.process_time()
        try:
            frames = read_dicom(path, None, "all", DERIVED).frames
        except UnusableError as unusable:
            refused.setdefault(unusable.reason, set()).add(path.name)
        else:
            if not all(np.isfinite(frame).all() and frame.min() >= 0 and frame.max() <= 1 for frame in frames):
                wrong.append(name)
        if time.process_time() - start > 5:
            wrong.append(f"{name} takes long")
    assert not wrong
    reasons = {"no_pixels", "not_dicom", "not_an_image", "undecodable", "truncated", "unreadable", "missing_elements"}
    assert refused.keys() <= reasons | {"unreadable_element", "image_without_pixels"}, refused
    assert refused["unreadable_element"] == {"badVR.dcm"}  # which says that it has 1A frames
    assert "MR_truncated.dcm" in refused["truncated"], refused
    bad = {"JPEG-lossy.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}
    broken = {"badVR.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm"}
    assert bad <= refused["undecodable"] <= bad | broken, refused
    assert refused.get("unreadable", set()) | refused.get("missing_elements", set()) <= broken, refused
    assert all("DICOMDIR" in name for name in refused["not_an_image"]), refused


def test_burned_in_names_are_refused(make_dicom):
    assert reason(make_dicom(RAMP, BurnedInAnnotation="YES")) == "burned_in_annotation"
    assert first(make_dicom(RAMP, BurnedInAnnotation="NO")).shape == RAMP.shape


def test_objects_without_pixels(make_dicom):
    assert reason(make_dicom(None, Modality="SR")) == "report"
    assert reason(make_dicom(None, Modality="CT")) == "image_without_pixels"
    assert reason(make_dicom(None, SOPClassUID="1.2.840.10008.5.1.4.38.1")) == "no_pixels"  # how screens are hung
    assert reason(make_dicom(None, SOPClassUID="1.3.12.2.1107.5.9.1")) == "no_pixels"  # a vendor's own
    assert reason(make_dicom(RAMP, PixelData=None)) in {"no_pixels", "truncated"}


def test_files_that_are_none(tmp_path):
    for name, content, wanted in (
        ("empty.dcm", b"", "empty_file"),
        ("text.dcm", b"patient,label\nDOE^JANE,1\n" * 40, "not_dicom"),
        ("random.dcm", RNG.bytes(5000), "not_dicom"),
        ("zeros.dcm", bytes(5000), "not_dicom"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert reason(path) == wanted
    assert reason(tmp_path / "absent.dcm") == "unreadable"


def test_cut_anywhere(make_dicom, tmp_path):
    whole = make_dicom(SIGNED, **EXACT).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(1, len(whole), 17):
        cut.write_bytes(whole[:length])
        assert reason(cut) in {"not_dicom", "image_without_pixels", "truncated", "unreadable", "missing_elements"}
    cut.write_bytes(whole[:-200])
    assert reason(cut) == "truncated"


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLosslessSV1, DeflatedExplicitVRLittleEndian])
def test_cut_in_compressed_pixels(make_dicom, tmp_path, syntax):
    noise = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
    encoded = [lossless_jpeg(noise, 8)] if syntax == JPEGLosslessSV1 else None
    path = make_dicom(noise, syntax=syntax, encoded=encoded)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 2000])
    assert reason(path) in {"truncated", "undecodable", "unreadable", "no_pixels"}


def test_any_damage_gives_a_reason(make_dicom):
    """Random bytes overwritten in the header: read or refused, but no other exception."""
    path = make_dicom(SIGNED, RescaleSlope="1", RescaleIntercept="-5", PixelSpacing=["1", "2"], **EXACT)
    whole = path.read_bytes()
    header = len(whole) - SIGNED.nbytes
    for _ in range(200):
        damaged = bytearray(whole)
        for at in RNG.integers(132, header, 3):
            damaged[at] = RNG.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            found = first(path)
        except UnusableError:
            continue
        assert np.isfinite(found).all()


def test_without_preamble_or_meta(make_dicom, tmp_path):
    whole = make_dicom(SIGNED[0], **EXACT)
    dataset = pydicom.dcmread(whole)
    bare = tmp_path / "bare.dcm"
    for implicit in (True, False):
        pydicom.dcmwrite(
            bare, pydicom.Dataset(dataset), implicit_vr=implicit, little_endian=True, enforce_file_format=False
        )
        np.testing.assert_array_equal(first(bare), first(whole))


def test_meta_without_transfer_syntax(make_dicom):
    path = make_dicom(SIGNED[0], syntax=ImplicitVRLittleEndian, **EXACT)
    wanted = first(path)
    raw = path.read_bytes()
    at = raw.index(b"\x02\x00\x10\x00UI")
    size = int.from_bytes(raw[at + 6 : at + 8], "little") + 8
    group = int.from_bytes(raw[140:144], "little") - size
    path.write_bytes(raw[:140] + group.to_bytes(4, "little") + raw[144:at] + raw[at + size :])
    np.testing.assert_array_equal(first(path), wanted)


def test_directory():
    for name in ("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit"):
        assert reason(ROOT / "dicomdirtests" / name) == "not_an_image"


def test_absurd_frame_counts(make_dicom):
    for frames in ("all", "middle"):
        assert reason(make_dicom(SIGNED[0], NumberOfFrames=2**31 - 1), frames) == "truncated"
    assert first(make_dicom(SIGNED[0], NumberOfFrames="")).shape == (20, 16)


def test_slope_of_zero_never_erases_the_image(make_dicom):
    path = make_dicom(RAMP, RescaleSlope="0", **BYTE)
    try:
        found = first(path)
    except UnusableError:
        return
    np.testing.assert_array_equal(found, first(make_dicom(RAMP, **BYTE)))


def test_keys_and_facts(make_dicom):
    image = read_dicom(make_dicom(RAMP, PatientID=" MRN-1 ", Modality="CT", Manufacturer="ACME"), None, "all")
    assert image.keys["patient"] == "MRN-1"
    assert image.keys["study"] == image.keys["series"] == "1.2.3"
    assert (image.facts["modality"], image.facts["photometric"], image.facts["bits"]) == ("CT", "MONOCHROME2", "8")
