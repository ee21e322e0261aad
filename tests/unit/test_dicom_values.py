"""The values that come out of a DICOM file, against the standard's formulas worked out here in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.data.batches import fit
from client.data.dicom import read_dicom
from client.data.spec import Window
from common.inputs import ImageInput

RNG = np.random.default_rng(0)
CT = RNG.integers(-1024, 2000, (12, 10)).astype(np.int16)
BYTES = np.arange(120, dtype=np.uint8).reshape(12, 10) * 2
CLOSE = 2e-6


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1 as it is printed."""
    values = np.asarray(values, dtype=np.float64)
    y = (values - (center - 0.5)) / (width - 1) + 0.5
    return np.where(
        values <= center - 0.5 - (width - 1) / 2, 0, np.where(values > center - 0.5 + (width - 1) / 2, 1, y)
    )


def stretched(values, among=None):
    low, high = np.percentile(values if among is None else among, (0.5, 99.5))
    return np.clip((values - low) / (high - low), 0, 1)


def same(found, wanted, atol=CLOSE):
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)


def test_white_is_high_in_both_polarities(make_dicom, read):
    window = {"WindowCenter": 128, "WindowWidth": 256}
    same(read(make_dicom(BYTES, **window)), linear(BYTES, 128, 256))
    inverted = make_dicom(BYTES, PhotometricInterpretation="MONOCHROME1", **window)
    same(read(inverted), 1 - linear(BYTES, 128, 256))


def test_window_counts_in_rescaled_units(make_dicom, read):
    path = make_dicom(CT, RescaleSlope="0.5", RescaleIntercept="-100.25", WindowCenter="40", WindowWidth="400")
    same(read(path), linear(CT * 0.5 - 100.25, 40, 400))


def test_unsigned_ct_with_intercept(make_dicom, read):
    stored = (CT + 1024).astype(np.uint16)
    path = make_dicom(stored, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")
    same(read(path), linear(CT, 40, 400))


def test_negative_slope_turns_values_round(make_dicom, read):
    path = make_dicom(BYTES, RescaleSlope="-1", RescaleIntercept="10", WindowCenter="-50", WindowWidth="100")
    same(read(path), linear(10.0 - BYTES, -50, 100))


def test_without_window_robust_percentiles(make_dicom, read):
    same(read(make_dicom(CT)), stretched(CT.astype(float)))
    for nothing in ({"WindowCenter": 40, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": ""}):
        same(read(make_dicom(CT, **nothing)), stretched(CT.astype(float)))


def test_constant_image_is_black_and_sparse_one_is_not(make_dicom, read):
    assert not read(make_dicom(np.full((8, 8), 7, np.uint8))).any()
    sparse = np.zeros((64, 64), np.uint16)
    sparse[3, 4] = 900
    found = read(make_dicom(sparse))
    assert found[3, 4] == 1
    assert found.sum() == 1


def test_first_of_several_windows(make_dicom, read):
    path = make_dicom(CT, WindowCenter=["40", "-600"], WindowWidth=["400", "1500"])
    same(read(path), linear(CT, 40, 400))


def test_narrowest_window_is_a_threshold(make_dicom, read):
    same(read(make_dicom(BYTES, WindowCenter="100", WindowWidth="1")), (BYTES > 99.5).astype(float))


def test_exact_and_sigmoid_windows(make_dicom, read):
    window = {"WindowCenter": "40", "WindowWidth": "400"}
    exact = read(make_dicom(CT, VOILUTFunction="LINEAR_EXACT", **window))
    same(exact, np.clip((CT - 40.0) / 400 + 0.5, 0, 1))
    sigmoid = read(make_dicom(CT, VOILUTFunction="SIGMOID", **window))
    same(sigmoid, 1 / (1 + np.exp(-4 * (CT - 40.0) / 400)))
    fraction = read(
        make_dicom(
            BYTES,
            RescaleSlope="0.001",
            VOILUTFunction="LINEAR_EXACT",
            RescaleIntercept="0",
            WindowCenter="0.1",
            WindowWidth="0.2",
        )
    )
    same(fraction, np.clip((BYTES * 0.001 - 0.1) / 0.2 + 0.5, 0, 1))


def test_site_window_wins(make_dicom):
    path = make_dicom(CT, RescaleSlope="1", RescaleIntercept="-24", WindowCenter="40", WindowWidth="400")
    found = read_dicom(path, Window(center=-600, width=1500), "middle").frames[0]
    same(found, linear(CT - 24.0, -600, 1500))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_modality_lut(make_dicom, read, item, bits):
    table = RNG.integers(0, 2**bits, 100)
    lut = item(LUTDescriptor=[100, 50, bits], ModalityLUTType="US", LUTData=table.tolist())
    path = make_dicom(BYTES, ModalityLUTSequence=[lut], WindowCenter=str(2 ** (bits - 1)), WindowWidth=str(2**bits))
    same(read(path), linear(table[np.clip(BYTES.astype(int) - 50, 0, 99)], 2 ** (bits - 1), 2**bits))


@pytest.mark.parametrize("bits", [8, 10, 16])
def test_voi_lut_replaces_the_window(make_dicom, read, item, bits):
    table = RNG.integers(0, 2**bits, 64)
    lut = item(LUTDescriptor=[64, 100, bits], LUTData=table.tolist())
    path = make_dicom(BYTES, VOILUTSequence=[lut], WindowCenter="1", WindowWidth="2")
    same(read(path), table[np.clip(BYTES.astype(int) - 100, 0, 63)] / (2**bits - 1))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
def test_voi_lut_from_a_negative_value(make_dicom, read, item, syntax):
    table = np.linspace(0, 65535, 2048).astype(int)
    lut = item(LUTDescriptor=[2048, -1000, 16], LUTData=table.tolist())
    path = make_dicom(CT, syntax=syntax, VOILUTSequence=[lut])
    same(read(path), table[np.clip(CT.astype(int) + 1000, 0, 2047)] / 65535)


def test_voi_lut_on_rescaled_values_that_start_below_zero(make_dicom, read, item):
    """Unsigned pixels: the descriptor's -1000 is written as 64536, and no pixel need be negative for it."""
    table = np.linspace(0, 65535, 2048).astype(int)
    lut = item(LUTDescriptor=[2048, 64536, 16], LUTData=table.tolist())
    for lowest in (-500, 20):
        values = np.linspace(lowest, 1000, 120).astype(int).reshape(12, 10)
        path = make_dicom(
            (values + 1024).astype(np.uint16), RescaleSlope="1", RescaleIntercept="-1024", VOILUTSequence=[lut]
        )
        same(read(path), table[np.clip(values + 1000, 0, 2047)] / 65535)


def test_voi_lut_that_starts_high_stays_unsigned(make_dicom, read, item):
    stored = np.linspace(30000, 60000, 120).astype(np.uint16).reshape(12, 10)
    table = np.linspace(0, 255, 1000).astype(int)
    path = make_dicom(stored, VOILUTSequence=[item(LUTDescriptor=[1000, 40000, 8], LUTData=table.tolist())])
    same(read(path), table[np.clip(stored.astype(int) - 40000, 0, 999)] / 255)


def test_voi_lut_of_bytes(make_dicom, read, item):
    """Tables of 8 bits may be packed two to a word, and a table with 65536 entries says 0."""
    table = RNG.integers(0, 256, 256).astype(np.uint8)
    lut = item(LUTDescriptor=[256, 0, 8])
    lut.add_new("LUTData", "OW", table.tobytes())
    same(read(make_dicom(BYTES, VOILUTSequence=[lut])), table[BYTES] / 255)
    whole = RNG.integers(0, 65536, 65536).astype("<u2")
    lut = item(LUTDescriptor=[0, 0, 16])
    lut.add_new("LUTData", "OW", whole.tobytes())
    stored = (BYTES.astype(np.uint16) * 270).astype(np.uint16)
    same(read(make_dicom(stored, VOILUTSequence=[lut])), whole[stored] / 65535)


def test_monochrome1_turns_after_the_lut(make_dicom, read, item):
    table = RNG.integers(0, 256, 256)
    lut = item(LUTDescriptor=[256, 0, 8], LUTData=table.tolist())
    path = make_dicom(BYTES, VOILUTSequence=[lut], PhotometricInterpretation="MONOCHROME1")
    same(read(path), 1 - table[BYTES] / 255)


def test_sign_of_12_bits_in_16(make_dicom, read):
    """Negative numbers whose upper four bits are zero, as some scanners write them."""
    values = np.linspace(-2048, 2047, 120).astype(int).reshape(12, 10)
    stored = (values & 0xFFF).astype(np.uint16)
    path = make_dicom(stored, BitsStored=12, HighBit=11, PixelRepresentation=1, WindowCenter="0", WindowWidth="4096")
    same(read(path), linear(values, 0, 4096))


def test_overlay_bits_are_not_part_of_the_pixel(make_dicom, read):
    values = np.linspace(0, 4095, 120).astype(int).reshape(12, 10)
    overlay = RNG.integers(0, 16, values.shape) << 12
    path = make_dicom(
        (values | overlay).astype(np.uint16), BitsStored=12, HighBit=11, WindowCenter="2048", WindowWidth="4096"
    )
    same(read(path), linear(values, 2048, 4096))


def test_overlay_bits_above_signed_pixels(make_dicom, read):
    values = np.linspace(-512, 511, 120).astype(int).reshape(12, 10)
    stored = ((values & 0x3FF) | (RNG.integers(0, 64, values.shape) << 10)).astype(np.uint16)
    path = make_dicom(stored, BitsStored=10, HighBit=9, PixelRepresentation=1, WindowCenter="0", WindowWidth="1024")
    same(read(path), linear(values, 0, 1024))


def test_high_bit_at_the_top(make_dicom, read):
    values = np.linspace(0, 4095, 120).astype(int).reshape(12, 10)
    stored = ((values << 4) | RNG.integers(0, 16, values.shape)).astype(np.uint16)
    path = make_dicom(stored, BitsStored=12, HighBit=15, WindowCenter="2048", WindowWidth="4096")
    same(read(path), linear(values, 2048, 4096))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(make_dicom, read, photometric):
    padded = CT.copy()
    padded[:, :3] = -2000
    path = make_dicom(padded, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    found = read(path)
    assert not found[:, :3].any()
    wanted = stretched(CT[:, 3:].astype(float))
    same(found[:, 3:], 1 - wanted if photometric == "MONOCHROME1" else wanted)


def test_padding_range(make_dicom, read):
    padded = CT.copy()
    padded[0], padded[1] = -1900, -2000
    found = read(make_dicom(padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1900))
    assert not found[:2].any()
    same(found[2:], stretched(CT[2:].astype(float)))


def test_padding_written_without_its_sign(make_dicom, read):
    """Files often give the value as unsigned though the pixels are signed."""
    padded = CT.copy()
    padded[:, :3] = -2000
    path = make_dicom(padded)
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    found = read(path)
    assert not found[:, :3].any()
    same(found[:, 3:], stretched(CT[:, 3:].astype(float)))


def test_padding_is_black_in_a_window_too(make_dicom, read):
    padded = BYTES.copy()
    padded[0] = 255
    found = read(make_dicom(padded, PixelPaddingValue=255, WindowCenter="128", WindowWidth="256"))
    assert not found[0].any()
    same(found[1:], linear(BYTES[1:], 128, 256))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floating_point_pixels(make_dicom, read, kind):
    values = RNG.normal(0, 3, (12, 10)).astype(kind)
    same(read(make_dicom(values, WindowCenter="0", WindowWidth="6")), linear(values, 0, 6))
    same(read(make_dicom(values)), stretched(values.astype(float)))


def test_not_a_number_is_black(make_dicom, read):
    values = RNG.normal(0, 3, (12, 10)).astype(np.float32)
    values[0, :5], values[1, 0] = np.nan, np.inf
    found = read(make_dicom(values))
    assert np.isfinite(found).all()
    assert not found[0, :5].any()
    rest = np.isfinite(values)
    same(found[rest], stretched(values.astype(float), values[rest])[rest])


def test_floating_point_padding(make_dicom, read):
    values = RNG.normal(0, 3, (12, 10)).astype(np.float32)
    values[0] = -1e6
    found = read(make_dicom(values, FloatPixelPaddingValue=-1e6))
    assert not found[0].any()
    same(found[1:], stretched(values[1:].astype(float)))


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
