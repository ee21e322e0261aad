"""Ordinary images have the values that a person would work out by hand, or are refused: none of it may be another."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.decoding.images import read_images
from fedgraft.client.data.decoding.unusable import UnusableError

RAMP = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def tiff(array: np.ndarray, kind: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one page without compression, by hand; `kind` is its sample format: 1 whole, 2 signed, 3 floating."""
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    height, width = array.shape
    tags = {256: width, 257: height, 258: 8 * array.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in (tags | {279: len(data), 339: kind}).items()]
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(array: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits, by hand; `colour` is its colour type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reason(path: Path) -> str:
    with pytest.raises(UnusableError) as refused:
        read_images(path, "middle")
    return refused.value.reason


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: np.rot90,
}
"""What the tag "orientation" of EXIF and TIFF means."""


@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".tif", ".lzw.tif", ".png"])
def test_an_image_is_upright_by_its_tags(tmp_path, turned, bits, suffix):
    """Rows of a TIFF without compression that was to be turned by 90 degrees once came out mixed up."""
    stored, path = RAMP if bits == 16 else (RAMP >> 8).astype(np.uint8), tmp_path / f"a{suffix}"
    if suffix == ".png":
        exif = Image.Exif()
        exif[0x112] = turned
        Image.fromarray(stored).save(path, exif=exif)
    else:
        options = {"compression": "tiff_lzw"} if suffix == ".lzw.tif" else {}
        Image.fromarray(stored).save(path, tiffinfo={0x112: turned}, **options)
    (found,) = read_images(path, "middle").frames
    np.testing.assert_allclose(found, TURNED[turned](stored) / (2**bits - 1), atol=1e-6)


def test_so_are_all_pages_of_a_stack(tmp_path):
    pages = [Image.fromarray((RAMP >> 8).astype(np.uint8) // number) for number in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo={0x112: 6})
    found = read_images(tmp_path / "a.tif", "all").frames
    for page, image in zip(pages, found, strict=True):
        np.testing.assert_allclose(image, np.rot90(np.asarray(page), -1) / 255, atol=1e-6)


def test_a_png_whose_end_was_lost_to_zeros_is_refused(tmp_path):
    """As on a full disk. Its size and its head are right, and decoding goes to the end."""
    noise = np.random.default_rng(0).integers(20000, 40000, (64, 64)).astype(np.uint16)
    content = png(noise, 0)
    for share in (0.3, 0.5, 0.8, 0.99):
        kept = int(share * len(content))
        assert reason(written(tmp_path / "a.png", content[:kept].ljust(len(content), b"\0"))) in (
            "unreadable",
            "truncated",
        )
    assert read_images(written(tmp_path / "a.png", content), "middle").frames[0].shape == (64, 64)


def test_an_empty_file_is_called_empty(tmp_path):
    assert reason(written(tmp_path / "a.png", b"")) == "empty_file"


ALPHA = np.full_like(RAMP, 65535)
SEVERAL = {"RGB": (2, COLOURS), "grey with alpha": (4, np.stack([RAMP, ALPHA], -1)),
           "RGBA": (6, np.concatenate([COLOURS, ALPHA[..., None]], -1))}  # fmt: skip


@pytest.mark.parametrize("channels", SEVERAL)
def test_twelve_bits_are_noted_in_several_channels_too(tmp_path, channels):
    colour, stored = SEVERAL[channels]
    full = read_images(written(tmp_path / "a.png", png(stored, colour)), "middle")
    assert full.notes == ()
    shown = COLOURS if colour != 4 else np.stack([RAMP] * 3, -1)
    np.testing.assert_allclose(full.frames[0], shown / 65535, atol=1 / 255)
    lowest = stored.copy()
    lowest[..., : 1 if colour == 4 else 3] >>= 4
    dark = read_images(written(tmp_path / "a.png", png(lowest, colour)), "middle")
    assert dark.notes == ("twelve_bits_in_16",)


@pytest.mark.parametrize("kind", ["whole", "floating"])
def test_zero_is_white_where_a_tiff_says_so(tmp_path, kind):
    shares = (RAMP / 65535).astype(np.float32)
    content = tiff(RAMP, photometric=0) if kind == "whole" else tiff(shares, 3, photometric=0)
    (found,) = read_images(written(tmp_path / "a.tif", content), "middle").frames
    np.testing.assert_allclose(found, 1 - shares, atol=1e-6)


@pytest.mark.parametrize("width", [np.int8, np.int16])
def test_negative_values_are_not_taken_for_large_ones(tmp_path, width):
    whole = (np.arange(48).reshape(6, 8) * (2 if width == np.int8 else 600)).astype(width)
    assert reason(written(tmp_path / "a.tif", tiff(whole - 50, 2))) == "integers_outside_16_bits"
    (found,) = read_images(written(tmp_path / "a.tif", tiff(whole, 2)), "middle").frames
    np.testing.assert_allclose(found, whole / (255 if width == np.int8 else 65535), atol=1e-6)


def test_a_mask_of_the_page_before_is_no_page(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (90, 255)]
    pages[1].encoderinfo = {"tiffinfo": {254: 4}}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    found = read_images(tmp_path / "a.tif", "middle")
    assert (round(float(found.frames[0].mean() * 255)), found.notes) == (90, ())
