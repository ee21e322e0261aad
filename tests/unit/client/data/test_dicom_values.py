"""The values that come out of a DICOM file, against the standard's formulas worked out here in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.spec import Window
from helpers.grey import BYTES, CT, RNG, linear, same, stretched


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


@pytest.mark.parametrize(("kind", "key"), [(np.float32, "Float"), (np.float64, "DoubleFloat")])
def test_floating_point_padding(kind, key, make_dicom, read):
    values = RNG.normal(0, 3, (12, 10)).astype(kind)
    values[0] = -1e6
    found = read(make_dicom(values, **{f"{key}PixelPaddingValue": -1e6}))
    assert not found[0].any()
    same(found[1:], stretched(values[1:].astype(float)))
