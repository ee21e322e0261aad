"""Every way of storing an image, read back through pydicom, against numbers worked out by hand."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from fedgraft.simulations.phantoms.dicom import DicomWriter, Shot
from fedgraft.simulations.phantoms.scanners import (
    Scanner,
    acquire,
    mark,
    store,
)

SHOT = Shot("P0007", age=61, sex="F", number=2, origin="seed 1")
RAMP = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
"""Grey values: black at the first pixel, white at the last."""


def written(grey, modality="xr", **keys):
    """The dataset that pydicom reads from the bytes of a file."""
    scanner = Scanner(matrix=32, **keys)
    pixels = store(grey[None], scanner, modality)[0]
    return dcmread(BytesIO(DicomWriter(scanner, modality, "north").file(pixels, SHOT)))


def shown(ds):
    """Grey values as a viewer shows them: rescale, window or LUT, polarity; the window scaled to 0..1 by hand."""
    values = apply_modality_lut(ds.pixel_array, ds)
    if "VOILUTSequence" in ds:
        grey = apply_voi_lut(values, ds) / 65535
    else:
        # the formula of PS3.3 C.11.2.1.2.1, with y from 0 to 1
        centre, width = float(np.ravel(ds.WindowCenter)[0]), float(np.ravel(ds.WindowWidth)[0])
        grey = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return 1 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey


@pytest.mark.parametrize(
    ("bits", "signed", "first", "last", "kind"),
    [
        (8, False, 0, 255, "uint8"),
        (8, True, -128, 127, "int8"),
        (10, False, 0, 1023, "uint16"),
        (12, False, 0, 4095, "uint16"),
        (12, True, -2048, 2047, "int16"),
        (15, False, 0, 32767, "uint16"),
        (16, False, 0, 65535, "uint16"),
        (16, True, -32768, 32767, "int16"),
    ],
)
def test_bits_and_sign(bits, signed, first, last, kind):
    ds = written(RAMP, bits_stored=bits, signed=signed)
    pixels = ds.pixel_array
    assert (pixels[0, 0], pixels[-1, -1], pixels.dtype) == (first, last, kind)
    assert (ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (bits, bits - 1, int(signed))
    assert ds.BitsAllocated == (8 if bits == 8 else 16)
    assert "RescaleSlope" not in ds
    assert np.abs(shown(ds) - RAMP).max() < 0.51 / (last - first) + 1e-6


def test_monochrome1_stores_the_negative_and_says_so():
    ds = written(RAMP, polarity="MONOCHROME1", bits_stored=12)
    assert ds.PhotometricInterpretation == "MONOCHROME1"
    assert (ds.pixel_array[0, 0], ds.pixel_array[-1, -1]) == (4095, 0)
    assert np.abs(shown(ds) - RAMP).max() < 0.001


def test_an_inverting_gain_stores_the_negative_and_no_tag_says_so():
    scanner = Scanner(matrix=32, gain=-1, offset=1, noise=0)
    grey = acquire(RAMP[None], scanner, "xr", [0])[0]
    ds = written(grey, gain=-1, offset=1)
    assert ds.PhotometricInterpretation == "MONOCHROME2"
    assert np.abs(shown(ds) - (1 - RAMP)).max() < 0.001


def test_ct_is_in_hounsfield_units_through_its_rescale_tags():
    ds = written(RAMP, "ct")
    assert (ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType) == (1, -1024, "HU")
    assert (ds.pixel_array[0, 0], ds.pixel_array[-1, -1]) == (24, 2024)  # -1000 and 1000 HU
    assert (ds.WindowCenter, ds.WindowWidth) == (0.5, 2001)
    assert (ds.Modality, ds.SOPClassUID.name) == ("CT", "CT Image Storage")


def test_signed_ct_with_a_slope_of_its_own():
    ds = written(RAMP, "ct", signed=True, slope=0.5, intercept=0)
    assert (ds.pixel_array[0, 0], ds.pixel_array[-1, -1]) == (-2000, 2000)  # x 0.5 = -1000 and 1000 HU
    assert np.abs(shown(ds) - RAMP).max() < 0.001


def test_values_may_use_a_part_of_the_bits_and_the_window_says_which():
    ds = written(RAMP, values=(200, 3600), bits_stored=12)
    assert (ds.pixel_array.min(), ds.pixel_array.max()) == (200, 3600)
    assert (ds.WindowCenter, ds.WindowWidth) == (1900.5, 3401)
    assert np.abs(shown(ds) - RAMP).max() < 0.001


def test_of_several_windows_the_first_is_the_right_one():
    ds = written(RAMP, window="several", bits_stored=10)
    assert list(ds.WindowCenter) == [512, 384]
    assert list(ds.WindowWidth) == [1024, 512]


def test_without_a_window_there_are_no_window_tags():
    ds = written(RAMP, window="none")
    assert "WindowCenter" not in ds
    assert "VOILUTSequence" not in ds


@pytest.mark.parametrize("syntax", ["explicit_little", "explicit_big", "implicit_little"])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_the_voi_lut_undoes_what_the_stored_pixels_have(syntax, polarity):
    ds = written(RAMP, window="voi_lut_sequence", bits_stored=10, syntax=syntax, polarity=polarity)
    middle = int(ds.pixel_array[16, 0])  # grey 512/1023, negative or not, squared: about a quarter of 1023
    assert abs(middle - 256) <= 2
    assert "WindowCenter" not in ds
    assert np.abs(shown(ds) - RAMP).max() < 0.03  # a square root is steep near 0: sqrt(0.5 / 1023) = 0.022


@pytest.mark.parametrize(
    ("syntax", "uid"),
    [
        ("implicit_little", "1.2.840.10008.1.2"),
        ("explicit_little", "1.2.840.10008.1.2.1"),
        ("deflated", "1.2.840.10008.1.2.1.99"),
        ("explicit_big", "1.2.840.10008.1.2.2"),
        ("rle", "1.2.840.10008.1.2.5"),
        ("jpeg2000", "1.2.840.10008.1.2.4.90"),
    ],
)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (15, False), (16, False)])
def test_every_transfer_syntax_keeps_every_pixel(syntax, uid, bits, signed):
    plain = written(RAMP, bits_stored=bits, signed=signed).pixel_array
    ds = written(RAMP, bits_stored=bits, signed=signed, syntax=syntax)
    assert ds.file_meta.TransferSyntaxUID == uid
    assert np.array_equal(ds.pixel_array, plain)


@pytest.mark.parametrize("syntax", ["explicit_little", "rle"])
def test_a_writer_leaves_no_trace_of_one_file_in_the_next(syntax):
    scanner = Scanner(matrix=32, syntax=syntax)
    pixels = store(np.stack([RAMP, 1 - RAMP]), scanner, "mr")
    writer = DicomWriter(scanner, "mr", "north")
    writer.file(pixels[0], SHOT)
    other = Shot("P0008", age=4, sex="M", number=1, origin="seed 1")
    again = writer.file(pixels[1], other)
    assert again == DicomWriter(scanner, "mr", "north").file(pixels[1], other)
    assert dcmread(BytesIO(again)).PatientAge == "004Y"


def test_tags_can_be_missing_and_uids_follow_from_the_seed():
    missing = ("PixelSpacing", "BodyPartExamined", "PatientAge", "PatientSex", "StudyDate", "Manufacturer")
    ds = written(RAMP, missing_tags=missing)
    assert [tag for tag in missing if tag in ds] == []
    full = written(RAMP)
    assert [tag for tag in missing if tag not in full] == []
    assert full.PixelSpacing == [4, 4]
    assert ds.SOPInstanceUID == full.SOPInstanceUID == full.file_meta.MediaStorageSOPInstanceUID
    other = Shot("P0007", age=61, sex="F", number=3, origin="seed 1")
    assert (other.uid("study"), other.uid("series")) == (full.StudyInstanceUID, full.SeriesInstanceUID)
    assert other.uid("image") != full.SOPInstanceUID
    assert Shot("P0007", 61, "F", 2, "seed 2").uid("study") != full.StudyInstanceUID


def test_the_characteristic_curve_is_grey_to_the_gamma_times_gain_plus_offset():
    image = np.full((1, 32, 32), 0.25, dtype=np.float32)
    taken = acquire(image, Scanner(matrix=32, gamma=0.5, gain=0.6, offset=0.1, noise=0), "xr", [0])
    assert taken == pytest.approx(0.5 * 0.6 + 0.1)
    assert (image == 0.25).all()


@pytest.mark.parametrize("modality", ["xr", "mr"])
def test_noise_has_the_deviation_asked_for_and_is_rician_in_mr(modality):
    flat, dark = np.full((1, 128, 128), 0.5, np.float32), np.zeros((1, 128, 128), np.float32)
    scanner = Scanner(matrix=128, noise=0.05)
    assert acquire(flat, scanner, modality, [3]).std() == pytest.approx(0.05, rel=0.05)
    background = acquire(dark, scanner, modality, [3]).mean()
    # Rayleigh: sigma sqrt(pi / 2); Gaussian, cut off at 0: sigma / sqrt(2 pi)
    assert background == pytest.approx(0.05 * (1.2533 if modality == "mr" else 0.3989), rel=0.05)


def test_each_image_has_its_own_noise_and_bias():
    flat = np.full((2, 64, 64), 0.5, np.float32)
    scanner = Scanner(noise=0.05, bias=0.4)
    one, two = acquire(flat, scanner, "xr", [3, 4])
    assert not np.array_equal(one, two)
    assert np.array_equal(acquire(flat[:1], scanner, "xr", [4])[0], two)
    smooth = acquire(flat[:1], Scanner(noise=0, bias=0.4), "xr", [3])[0]
    assert 0.02 < smooth.std() < 0.3
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.02


def test_blur_collimation_and_looks_do_what_they_say():
    edge = np.full((1, 64, 64), 0.3, np.float32)
    edge[:, :, 32:] = 0.7
    plain = Scanner(noise=0)

    def taken(**keys):
        return acquire(edge, plain.model_copy(update=keys), "xr", [0])[0]

    def step(image):
        return image[32, 32] - image[32, 31]

    assert step(taken()) == pytest.approx(0.4)
    assert step(taken(blur_mm=8.0)) < 0.1
    assert step(taken(look="unsharp")) > 0.5
    assert taken(look="sigmoid")[32, 0] < 0.25
    assert taken(look="sigmoid")[32, 63] > 0.75
    dark = taken(collimation=0.125)
    assert not dark[:8].any()
    assert not dark[:, 56:].any()
    assert (dark[8:56, 8:56] > 0).all()


@pytest.mark.parametrize(("where", "marked"), [("none", [0, 0]), ("all", [1, 1]), ("findings", [0, 1])])
def test_the_letter_is_burnt_into_the_images_that_get_one(where, marked):
    images = np.zeros((2, 64, 64), np.float32)
    mark(images, np.array([False, True]), Scanner(marker=where))
    assert [int(image.max()) for image in images] == marked
    assert not images[:, 16:].any()
