"""Frames, colours, palettes and pixel shapes of DICOM files, and how images are fitted to their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.cohorts.batches import fit
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.common.study.inputs import ImageInput
from helpers.grey import BYTES, CT, RNG, linear, same


def test_frames(make_dicom, read):
    stack = np.stack([BYTES, BYTES // 2, BYTES // 4, BYTES // 8])
    path = make_dicom(stack, WindowCenter="128", WindowWidth="256")
    wanted = [linear(frame, 128, 256) for frame in stack]
    same(read(path, "first"), wanted[0])
    same(read(path, "middle"), wanted[2])
    found = read_dicom(path, None, "all").frames
    same(np.stack(found), np.stack(wanted))


@pytest.mark.parametrize("shared", [True, False])
def test_functional_groups(make_dicom, item, shared):
    """Enhanced images say rescale, window and spacing in groups: for all frames, or each its own."""
    stack = np.stack([CT, CT // 2])

    def group(slope, intercept, center, width):
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept)],
            FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=width, VOILUTFunction="LINEAR_EXACT")],
            PixelMeasuresSequence=[item(PixelSpacing=["2", "1"])],
        )

    groups = [group("2", "-100", "40", "400"), group("0.5", "30", "10", "90")]
    sequences = (
        {"SharedFunctionalGroupsSequence": groups[:1], "PerFrameFunctionalGroupsSequence": [item(), item()]}
        if shared
        else {"SharedFunctionalGroupsSequence": [item()], "PerFrameFunctionalGroupsSequence": groups}
    )
    read = read_dicom(make_dicom(stack, **sequences), None, "all")
    assert read.pixel_aspect == 2
    same(read.frames[0], np.clip((stack[0] * 2.0 - 100 - 40) / 400 + 0.5, 0, 1))
    second = (stack[1] * 2.0 - 100 - 40) / 400 if shared else (stack[1] * 0.5 + 30 - 10) / 90
    same(read.frames[1], np.clip(second + 0.5, 0, 1))


COLOURS = RNG.integers(0, 256, (12, 10, 3)).astype(np.uint8)


def test_colour_by_pixel_and_by_plane(make_dicom, read):
    same(read(make_dicom(COLOURS, colour=True)), COLOURS / 255)
    planes = np.ascontiguousarray(COLOURS.transpose(2, 0, 1))
    same(read(make_dicom(COLOURS, colour=True, PlanarConfiguration=1, PixelData=planes.tobytes())), COLOURS / 255)


def test_colour_of_16_bits(make_dicom, read):
    same(read(make_dicom(COLOURS.astype(np.uint16) * 257, colour=True)), COLOURS / 255)
    small = make_dicom(COLOURS.astype(np.uint16) * 8, colour=True, BitsStored=12, HighBit=11)
    same(read(small), COLOURS.astype(int) * 8 / 4095)


def test_ybr_becomes_rgb(make_dicom, read):
    y, cb, cr = COLOURS.astype(float).transpose(2, 0, 1)
    rgb = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    found = read(make_dicom(COLOURS, colour=True, PhotometricInterpretation="YBR_FULL"))
    same(found, np.clip(np.stack(rgb, axis=-1), 0, 255) / 255, atol=1.01 / 255)


def test_colour_spaces_that_are_not_known_are_refused(make_dicom, read):
    with pytest.raises(Exception, match="unknown_photometric"):
        read(make_dicom(COLOURS, colour=True, PhotometricInterpretation="HSV"))
    with pytest.raises(Exception, match="unknown_photometric"):
        read(make_dicom(BYTES, PhotometricInterpretation="WHATEVER"))


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(make_dicom, read, bits):
    tables = RNG.integers(0, 2**bits, (3, 200)).astype(f"<u{bits // 8}")
    elements = {}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [200, 20, bits]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    found = read(make_dicom(BYTES, PhotometricInterpretation="PALETTE COLOR", **elements))
    same(found, tables[:, np.clip(BYTES.astype(int) - 20, 0, 199)].transpose(1, 2, 0) / (2**bits - 1))


SPACINGS = [
    ({"PixelSpacing": ["2.0", "1.0"]}, 2.0),
    ({"PixelSpacing": ["0.5", "1.0"]}, 0.5),
    ({"ImagerPixelSpacing": ["0.2", "0.1"]}, 2.0),
    ({"PixelAspectRatio": ["4", "2"]}, 2.0),
    ({"PixelAspectRatio": ["1", "2"], "PixelSpacing": ["3", "1"]}, 3.0),
    ({"PixelSpacing": ["0", "1"]}, 1.0),
    ({}, 1.0),
]


@pytest.mark.parametrize(("elements", "aspect"), SPACINGS)
def test_pixel_aspect(make_dicom, elements, aspect):
    assert read_dicom(make_dicom(BYTES, **elements), None, "middle").pixel_aspect == aspect


def test_a_circle_stays_a_circle(make_dicom):
    """Rows twice as far apart as columns: 20 rows of 40 columns are a square field of view."""
    down, across = np.mgrid[0:20, 0:40]
    disc = (((down - 9.5) * 2) ** 2 + (across - 19.5) ** 2 < 15**2).astype(np.uint8) * 255
    image = read_dicom(make_dicom(disc, PixelSpacing=["2", "1"]), None, "middle")
    stored = fit(image.frames[0], image.pixel_aspect, ImageInput(size=40))[0].astype(int) + 32768
    bright = stored > 32768
    assert abs(int(bright.any(1).sum()) - int(bright.any(0).sum())) <= 2
    assert abs(int(bright.any(1).sum()) - 30) <= 2
    np.testing.assert_array_equal(bright, bright[::-1])


def test_fit_pads_with_black_and_keeps_values():
    image = np.full((10, 20), 0.25, np.float32)
    stored = fit(image, 1.0, ImageInput(size=20)).astype(int) + 32768
    assert stored.shape == (1, 20, 20)
    assert (stored[0, 5:15] == round(0.25 * 65535)).all()
    assert not stored[0, :5].any()
    assert not stored[0, 15:].any()


def test_fit_between_colour_and_grey():
    red = np.zeros((20, 20, 3), np.float32)
    red[..., 0] = 1
    assert (fit(red, 1.0, ImageInput(size=20))[0].astype(int) + 32768 == round(0.299 * 65535)).all()
    three = fit(red, 1.0, ImageInput(size=20, channels=3)).astype(int) + 32768
    assert (three == np.array([65535, 0, 0])[:, None, None]).all()
    grey = fit(red[..., 0] * 0.5, 1.0, ImageInput(size=20, channels=3))
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()


def test_whole_image_survives_the_path(tmp_path: Path, make_dicom, read):
    """A ramp of 16 bits keeps at least 15 of them from file to store."""
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = read(make_dicom(ramp, WindowCenter="32768", WindowWidth="65536"))
    stored = fit(image, 1.0, ImageInput(size=64))[0].astype(int) + 32768
    assert np.abs(stored - ramp.astype(int)).max() <= 1
