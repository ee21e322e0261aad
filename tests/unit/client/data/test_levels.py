"""Values are worked out once for each stored value and not for every pixel; no bit of any image may change by that."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, RLELossless

from fedgraft.client.data.decoding import decoder
from fedgraft.client.data.decoding.dicom import grey
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom, read_pictures
from fedgraft.client.data.decoding.dicom.windows import window_table
from fedgraft.client.data.decoding.shades import Shades, levels
from fedgraft.client.data.spec import Window

ROWS, COLUMNS = np.mgrid[:96, :80]
PATTERN = (ROWS * 37 + COLUMNS * 101 + ROWS * COLUMNS * 7) % 4096
SIGNED = (PATTERN - 1500).astype(np.int16)
UNSIGNED = PATTERN.astype(np.uint16)
WIDE = (PATTERN * 16 + 11).astype(np.uint16)
BYTES = (PATTERN % 256).astype(np.uint8)
CT = {"RescaleSlope": "1.5", "RescaleIntercept": "-1024.25"}
SHOWN = {"WindowCenter": "40", "WindowWidth": "400"}


def lut(count: int, first: int, bits: int = 16) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [count, first, bits]
    item.add_new("LUTData", "US", [(n * n) % (1 << bits) for n in range(count)])
    return item


def palette() -> dict:
    found: dict = {"PhotometricInterpretation": "PALETTE COLOR"}
    for at, colour in enumerate(("Red", "Green", "Blue")):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        entries = ((np.arange(256) * (at + 3) * 83) % 65536).astype("<u2")
        found[f"{colour}PaletteColorLookupTableData"] = entries.tobytes()
    return found


COLOURS = np.stack([BYTES, 255 - BYTES, BYTES // 2], axis=-1)
FILES = {
    "window": (SIGNED, {**CT, **SHOWN}),
    "unsigned": (UNSIGNED, {**CT, **SHOWN, "BitsStored": 12, "HighBit": 11}),
    "inverted": (BYTES, {"PhotometricInterpretation": "MONOCHROME1", **SHOWN}),
    "percentiles": (SIGNED, {}),
    "percentiles and padding": (SIGNED, {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -1200}),
    "sixteen bits": (WIDE, {}),
    "exact": (UNSIGNED, {**SHOWN, "VOILUTFunction": "LINEAR_EXACT"}),
    "falling": (UNSIGNED, {"RescaleSlope": "-.25", "RescaleIntercept": "3"}),
    "narrow": (BYTES, {"RescaleSlope": "0.003", "RescaleIntercept": "0", "WindowCenter": "0.5", "WindowWidth": "1"}),
    "modality lut": (BYTES, {"ModalityLUTSequence": [lut(200, 20)]}),
    "voi lut": (UNSIGNED, {"VOILUTSequence": [lut(2000, 100, 12)]}),
    "overlay above": (UNSIGNED | 0xF000, {**SHOWN, "BitsStored": 12, "HighBit": 11}),
    "all padding": (np.full((8, 8), 7, np.uint8), {"PixelPaddingValue": 7}),
    "one value": (np.full((8, 8), 7, np.uint8), {}),
    "few pixels": (WIDE[:5, :5], {}),
    "frames": (np.stack([SIGNED, SIGNED // 2, -SIGNED]), {}),
    "colours": (COLOURS, {"colour": True}),
    "palette": (BYTES, palette()),
    "rle": (SIGNED, {**CT, "syntax": RLELossless}),
    "big end": (SIGNED, {**CT, "syntax": ExplicitVRBigEndian}),
    "jpeg 2000": (UNSIGNED, {"syntax": JPEG2000Lossless}),
    "floats": ((PATTERN / 4096).astype(np.float32), {}),
}
WANTED = {
    "window": ("6d8977e14ce56b51", "a78e091b520bccaa"),
    "unsigned": ("7dfa0a29fbadef78", "0f4af0f90bc6f603"),
    "inverted": ("bff0311e9b075897", "40bfe0a748fc24df"),
    "percentiles": ("ea67b9b34f79f514", "375699d903a90079"),
    "percentiles and padding": ("d810cb0691e7e8ec", "375699d903a90079"),
    "sixteen bits": ("ea67b9b34f79f514", "abefbf2fbce6410b"),
    "exact": ("35d91dbcd13223ec", "740eaf5e1195baa8"),
    "falling": ("57285524931411e8", "b72e093bfccb641c"),
    "narrow": ("c96dffb036762404", "2f5c4dc51e01435d"),
    "modality lut": ("5947932b661629ab", "a3cd93533cd6c80d"),
    "voi lut": ("84eecd884a935511", "740eaf5e1195baa8"),
    "overlay above": ("4bdef41b00f5e408", "740eaf5e1195baa8"),
    "all padding": ("a97a4d1d85d61378", "a97a4d1d85d61378"),
    "one value": ("a97a4d1d85d61378", "52d55985c0011797"),
    "few pixels": ("a86e7e387effeb34", "b05fb24824e4dbb9"),
    "frames": ("2730bfae837f7b93", "7f17da585c6d7877"),
    "colours": ("545a3ce3174bddfb", "545a3ce3174bddfb"),
    "palette": ("75324c990cb890cd", "75324c990cb890cd"),
    "rle": ("ea67b9b34f79f514", "a78e091b520bccaa"),
    "big end": ("ea67b9b34f79f514", "a78e091b520bccaa"),
    "jpeg 2000": ("ea67b9b34f79f514", "740eaf5e1195baa8"),
    "floats": ("ea67b9b34f79f514", "a30999f8ad75df96"),
}
"""Beginnings of SHA-256 of the images by the file's own window, and by another, as when every pixel was worked out."""


def digest(frames) -> str:
    found = hashlib.sha256()
    for frame in frames:
        assert frame.dtype == np.float32
        found.update(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", FILES)
def test_images_have_the_bits_that_they_had(make_dicom, name):
    pixels, elements = FILES[name]
    path = make_dicom(pixels, **elements)
    found = [read_dicom(path, window, "all") for window in (None, Window(center=100, width=500))]
    assert tuple(digest(image.frames) for image in found) == WANTED[name]
    through = decoder.read_dicom(path, None, "all")
    assert digest(through.frames) == WANTED[name][0], "another image comes out of the process that decodes"
    assert (through.keys, through.facts, through.notes) == (found[0].keys, found[0].facts, found[0].notes)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"colours", "palette", "floats", "few pixels", "sixteen bits"}))
def test_levels_look_as_their_pixels_would(make_dicom, monkeypatch, name):
    pixels, elements = FILES[name]
    path = make_dicom(pixels, **{"VOILUTFunction": "SIGMOID", **elements})
    quick = read_dicom(path, None, "all").frames
    made = []
    monkeypatch.setattr(grey, "levels", lambda stored: made.append(levels(stored)))
    assert digest(read_dicom(path, None, "all").frames) == digest(quick)
    assert None not in made, "no level was found, so that nothing was compared"


@given(
    st.lists(st.integers(-9, 9), min_size=1, max_size=40),
    st.sampled_from([np.int8, np.int16, np.int32, np.uint8, np.uint16]),
    st.integers(0, 30000),
)
@settings(deadline=None)
def test_levels_are_the_pixels(values, kind, further):
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    stored = np.array([min(max(value + further, low), high) for value in values], dtype=np.int64).astype(kind)
    if (found := levels(stored)) is None:
        assert int(stored.max()) - int(stored.min()) + 1 > len(stored)
        return
    assert (found.values[found.entries] == stored).all()
    assert found.values.dtype == kind
    assert dict(zip(found.values.tolist(), found.counts().tolist(), strict=True)) | Counter(stored.tolist()) == {
        **dict.fromkeys(found.values.tolist(), 0), **Counter(stored.tolist()),
    }  # fmt: skip


def test_levels_of_all_that_a_type_holds():
    stored = np.arange(-32768, 32768).astype(np.int16)[::-1].copy()
    found = levels(stored)
    assert found is not None
    assert (found.values[found.entries] == stored).all()


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(1, 400)), min_size=1, max_size=30))
@settings(deadline=None)
def test_percentiles_of_counted_values_are_those_of_numpy(counted):
    values, counts = np.array([value for value, _ in counted]), np.array([count for _, count in counted])
    wanted = np.percentile(np.repeat(values, counts), (0.5, 99.5))
    assert grey.percentiles(values, counts) == tuple(wanted.tolist())


@pytest.mark.parametrize(("pixels", "name"), [(BYTES, "a.png"), (COLOURS, "b.png"), (WIDE, "c.png"), (WIDE, "d.tif")])
def test_pictures_are_their_values_over_the_largest(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name)
    (found,) = decoder.read_images(tmp_path / name, "all").frames
    wanted = (pixels / (255 if pixels.dtype == np.uint8 else 65535)).astype(np.float32)
    assert found.dtype == np.float32
    assert (found == wanted).all()


def test_what_travels_is_what_is_stored(make_dicom):
    (picture,) = read_pictures(make_dicom(UNSIGNED, **SHOWN), None, "all")[1]
    assert isinstance(picture, Shades)
    assert (picture.entries.dtype, len(picture.table)) == (np.uint16, 4096)
    assert picture.image().shape == UNSIGNED.shape


def test_levels_between_two_values_that_are_there_do_not_count(make_dicom):
    stored = (PATTERN % 2 * 2).astype(np.uint8)
    window = {"WindowCenter": "0.5", "WindowWidth": "1", "RescaleIntercept": "0"}
    image = read_dicom(make_dicom(stored, RescaleSlope="0.5", **window), None, "middle")
    assert image.notes == (), "of halves, which nothing in the image has, the window would be too narrow"
    assert (image.frames[0] == stored / 2).all()


def test_percentiles_between_values_are_rounded_as_those_of_numpy():
    draw = np.random.default_rng(0)
    for _ in range(300):
        size = int(draw.integers(20, 300))
        values, counts = draw.normal(size=size) * 1000, draw.integers(1, 3, size)
        wanted = np.percentile(np.repeat(values, counts), (0.5, 99.5))
        assert grey.percentiles(values, counts) == tuple(wanted.tolist())


def test_files_of_a_series_look_as_each_would_alone(make_dicom):
    """Their window's table is kept from file to file, and goes as far as the values of all of them."""
    draw = np.random.default_rng(0)
    series = {
        "kept": (SIGNED, {}),
        "further down": ((SIGNED - 900).astype(np.int16), {}),
        "padding": (SIGNED, {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -100}),
        "all padding": (np.full((8, 8), -1024, np.int16), {"PixelPaddingValue": -1024}),
        "further up": ((SIGNED + 900).astype(np.int16), {}),
        "small": (draw.integers(-9, 9, (40, 40)).astype(np.int16), {}),
        "unsigned": (UNSIGNED, {}),
        "lowest": ((SIGNED - 31000).clip(-32768, None).astype(np.int16), {}),
        "highest": ((SIGNED.astype(np.int32) + 30000).clip(None, 32767).astype(np.int16), {}),
        "white is zero": (UNSIGNED, {"PhotometricInterpretation": "MONOCHROME1"}),
        "narrower": (SIGNED, {"WindowWidth": "80"}),
        "kept again": (SIGNED, {}),
    }
    paths = {name: make_dicom(own, f"{name}.dcm", **{**CT, **SHOWN, **more}) for name, (own, more) in series.items()}

    def alone(name):
        window_table.cache_clear()
        return digest(read_dicom(paths[name], None, "all").frames)

    wanted = {name: alone(name) for name in paths}
    assert wanted["kept"] == WANTED["window"][0]
    for order in (list(paths), list(paths)[::-1], *(draw.permutation(list(paths)).tolist() for _ in range(5))):
        window_table.cache_clear()
        found = {name: digest(read_dicom(paths[name], None, "all").frames) for name in order}
        assert found == wanted, order
    assert window_table.cache_info().hits, "nothing was kept, so that nothing was compared"
