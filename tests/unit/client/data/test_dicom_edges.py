"""DICOM that is legal but rare, or wrong in ways that scanners are known for; values worked out here in numpy."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec, Window
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task

RNG = np.random.default_rng(5)
COLOURS = ("Red", "Green", "Blue")
EXACT = {"VOILUTFunction": "LINEAR_EXACT"}


def palette(tables: np.ndarray, first: int, bits: int, big: bool = False) -> dict[str, object]:
    """Elements of a palette (3, entries)."""
    kind = "u1" if bits == 8 else ">u2" if big else "<u2"
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(COLOURS, tables, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [len(table) % 65536, first, bits]
        elements[f"{colour}PaletteColorLookupTableData"] = table.astype(kind).tobytes()
    return elements


def test_palette_of_bytes_with_more_than_256_entries(make_dicom, read):
    """An index of 16 bits into colours of 8 bits must not be cut to 8 bits itself."""
    tables = RNG.integers(0, 256, (3, 1000))
    indices = np.arange(0, 1200, 10, dtype=np.uint16).reshape(12, 10)
    found = read(make_dicom(indices, **palette(tables, 0, 8)))
    wanted = tables[:, np.minimum(indices, 999)].transpose(1, 2, 0) / 255
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_palette_has_the_byte_order_of_its_file(make_dicom, read, syntax):
    tables = RNG.integers(0, 65536, (3, 256))
    indices = np.arange(120, dtype=np.uint8).reshape(12, 10)
    path = make_dicom(indices, syntax=syntax, **palette(tables, 0, 16, big=syntax == ExplicitVRBigEndian))
    np.testing.assert_allclose(read(path), tables[:, indices].transpose(1, 2, 0) / 65535, atol=1e-6)


def test_palette_of_bytes_kept_in_words(make_dicom, read):
    tables = RNG.integers(0, 256, (3, 256))
    elements = palette(tables, 0, 16)
    for colour in COLOURS:
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
    indices = np.arange(120, dtype=np.uint8).reshape(12, 10)
    found = read(make_dicom(indices, **elements))
    np.testing.assert_allclose(found, tables[:, indices].transpose(1, 2, 0) / 255, atol=1e-6)


def test_segmented_palette(make_dicom, read):
    """PS3.3 C.7.9.2: a discrete segment of two entries, then a linear one of four up to 50."""
    elements = palette(np.zeros((3, 6)), 0, 8)
    for colour in COLOURS:
        del elements[f"{colour}PaletteColorLookupTableData"]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = bytes([0, 2, 200, 10, 1, 4, 50, 0])
    indices = np.arange(6, dtype=np.uint8).reshape(2, 3)
    wanted = np.array([200, 10, 20, 30, 40, 50]).reshape(2, 3, 1) / 255
    np.testing.assert_allclose(read(make_dicom(indices, **elements)), wanted.repeat(3, axis=-1), atol=1e-6)


def test_signed_palette_index(make_dicom, read):
    tables = RNG.integers(0, 65536, (3, 100))
    indices = np.arange(-60, 60, dtype=np.int16).reshape(12, 10)
    found = read(make_dicom(indices, **palette(tables, -50, 16)))
    np.testing.assert_allclose(found, tables[:, np.clip(indices + 50, 0, 99)].transpose(1, 2, 0) / 65535, atol=1e-6)


def test_modality_lut_over_the_whole_signed_range(make_dicom, read, item):
    """From -32768: the distance from there to a pixel does not fit the pixels' own type."""
    table = np.linspace(0, 65535, 65536).astype("<u2")
    lut = item(LUTDescriptor=[0, -32768, 16], ModalityLUTType="US", LUTData=table.tobytes())
    values = np.linspace(-32768, 32767, 120).astype(np.int16).reshape(12, 10)
    path = make_dicom(values, ModalityLUTSequence=[lut], WindowCenter="32768", WindowWidth="65536", **EXACT)
    np.testing.assert_allclose(read(path), (values.astype(float) + 32768) / 65536, atol=1e-6)


@pytest.mark.parametrize("broken", [{"LUTDescriptor": [100, 0, 16]}, {"LUTDescriptor": [4, 0, 40]}, {}])
def test_a_broken_lut_is_refused_and_not_guessed(make_dicom, item, broken):
    lut = item(**{"LUTData": [1, 2, 3, 4]} | broken)
    with pytest.raises(UnusableError) as refused:
        read_dicom(make_dicom(np.zeros((4, 4), np.uint8), VOILUTSequence=[lut]), None, "first")
    assert refused.value.reason == "bad_lut"


@pytest.mark.parametrize("compress", [None, RLELossless])
@pytest.mark.parametrize("high", [11, 13, 15])
@pytest.mark.parametrize("signed", [False, True])
def test_pixels_anywhere_in_their_cells(make_dicom, read, compress, high, signed):
    """12 bits at any height of 16, the others noise; in RLE as in plain files, since it packs whole cells."""
    low = -2048 if signed else 0
    values = np.linspace(low, low + 4095, 120).astype(int).reshape(12, 10)
    noise = RNG.integers(0, 65536, values.shape) & ~(0xFFF << (high - 11))
    cells = (((values & 0xFFF) << (high - 11)) | noise).astype(np.uint16)
    window = {"WindowCenter": str(low + 2048), "WindowWidth": "4096"} | EXACT
    bits = {"BitsStored": 12, "HighBit": high, "PixelRepresentation": int(signed)}
    path = make_dicom(cells, **bits, **window)
    if compress is not None:
        dataset = pydicom.dcmread(path)
        dataset.compress(compress, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_allclose(read(path), (values - low) / 4096, atol=1e-6)


def test_padding_that_has_bits_above_the_stored_ones(make_dicom, read):
    """Old CT: 12 bits stored, and -2000 written over all 16 as the padding of a round field of view."""
    values = np.linspace(-1000, 1000, 120).astype(int).reshape(12, 10)
    cells = (values & 0xFFF).astype(np.uint16)
    cells[:, :2] = 63536
    path = make_dicom(cells, BitsStored=12, HighBit=11, PixelRepresentation=1)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "SS", -2000)
    dataset.save_as(path)
    found, inside = read(path), values[:, 2:].astype(float)
    low, high = np.percentile(inside, (0.5, 99.5))
    assert not found[:, :2].any()
    np.testing.assert_allclose(found[:, 2:], np.clip((inside - low) / (high - low), 0, 1), atol=1e-6)


def test_an_image_of_padding_is_black_in_both_polarities(make_dicom, read):
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = make_dicom(np.full((4, 4), 7, np.uint8), PixelPaddingValue=7, PhotometricInterpretation=photometric)
        assert not read(path).any()


def test_window_narrower_than_1_on_small_numbers(make_dicom):
    values = np.arange(120, dtype=np.uint8).reshape(12, 10)
    path = make_dicom(values, RescaleSlope="0.01", RescaleIntercept="0", WindowCenter="0.6", WindowWidth="0.8")
    wanted = np.clip((values * 0.01 - 0.6) / 0.8 + 0.5, 0, 1)
    np.testing.assert_allclose(read_dicom(path, None, "first").frames[0], wanted, atol=1e-6)
    own = read_dicom(path, Window(center=0.3, width=0.2), "first").frames[0]
    np.testing.assert_allclose(own, np.clip((values * 0.01 - 0.3) / 0.2 + 0.5, 0, 1), atol=1e-6)


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV"])
def test_colour_spaces_that_nobody_converts_are_refused(make_dicom, photometric):
    pixels = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)
    with pytest.raises(UnusableError) as refused:
        read_dicom(make_dicom(pixels, colour=True, PhotometricInterpretation=photometric), None, "first")
    assert refused.value.reason == "unknown_photometric"


def test_patients_whose_id_is_not_ascii_are_joined(make_dicom, tmp_path):
    for charset, name in (("ISO_IR 100", "Müller-7"), ("ISO_IR 192", "患者-7")):
        make_dicom(np.arange(16, dtype=np.uint8).reshape(4, 4), f"dicom/{charset}.dcm",
                   SpecificCharacterSet=charset, PatientID=name, SOPInstanceUID=f"1.{len(charset + name)}")  # fmt: skip
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,cls\nMüller-7,yes\n患者-7,no\n", encoding="utf-8")
    wanted = CohortRequest([Task(name="cls", classes=("no", "yes"))], ImageInput(size=16), SplitSpec(), 0)
    spec = CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=labels)
    cohort = load_cohort("n", spec, wanted, Place(tmp_path / "s", tmp_path / "c", b"k"))
    assert sorted(cohort.targets["cls"].tolist()) == [0, 1]
    assert not cohort.problems
