"""Ordinary image files: PNG, JPEG, TIFF, BMP, 8 or 16 bits, of one page or several."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fedgraft.client.data.decoding.shades import Floats, Picture, image, shades
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.decoding.wall import wall

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
SEVERAL_PAGES, TWELVE_BITS = "several_pages", "twelve_bits_in_16"

_DEPTH = {"1": 1, "L": 255, "RGB": 255, "I;16": 65535, "I;16L": 65535, "I;16B": 65535}
_PHOTOMETRIC, _SUBFILE, _SAMPLE_FORMAT = 262, 254, 339
_NO_PAGE = 1 | 4
"""Of a TIFF's kind of page: a smaller copy, a mask."""
_SIGNED = 2
_LARGEST_OF_12_BITS = 4095


@dataclass(frozen=True)
class ImageFile:
    """Pages (H, W) or (H, W, 3) in [0, 1], and constant words for what is odd in a file that is used all the same."""

    frames: list[NDArray[np.float32]]
    notes: tuple[str, ...] = ()


def read_images(path: Path, frames: Literal["all", "middle", "first"]) -> ImageFile:
    """The pages of a file that `frames` asks for, upright by their EXIF tags. UnusableError says why there are none."""
    notes, pages = read_pages(path, frames)
    return ImageFile([image(page) for page in pages], notes)


def read_pages(path: Path, frames: Literal["all", "middle", "first"]) -> tuple[tuple[str, ...], list[Picture]]:
    """As `read_images`: the notes, and the pages as they are stored, with what stored values look like."""
    notes = Counter[str]()
    with wall("unreadable"):
        try:
            if path.stat().st_size == 0:
                raise UnusableError("empty_file")
            # Not by its name: Pillow would map the file, and mix up rows of a TIFF that is to be turned by 90 degrees.
            with path.open("rb") as file, Image.open(file) as opened:
                pages = _pages(opened)
                if len(pages) > 1 and frames != "all":
                    notes[SEVERAL_PAGES] += 1
                chosen = {"all": pages, "middle": [pages[len(pages) // 2]], "first": pages[:1]}[frames]
                found = [_page(opened, page, notes) for page in chosen]
            with Image.open(path) as again:  # checksums of PNG, by which decoding does not go
                again.verify()
            return tuple(notes), found
        except UnidentifiedImageError:
            raise UnusableError("unreadable") from None
        except PermissionError:
            raise UnusableError("no_right_to_read") from None
        except Image.DecompressionBombError:
            raise UnusableError("too_large") from None
        except (OSError, SyntaxError, ValueError) as error:
            truncated = "truncated" in str(error).lower()
            raise UnusableError("truncated" if truncated else "unreadable") from None


def _pages(opened: Image.Image) -> list[int]:
    """The numbers of the pages that are images of their own, not smaller copies or masks of another.

    UnusableError: `pages_of_several_sizes`, since nobody can say which of them is meant.
    """
    count = getattr(opened, "n_frames", 1)
    if count == 1 or opened.format == "MPO":  # a photograph with its preview
        return [0]
    sizes: dict[int, tuple[int, int]] = {}
    for page in range(count):
        opened.seek(page)
        tags: Any = getattr(opened, "tag_v2", {})
        if not int(tags.get(_SUBFILE, 0)) & _NO_PAGE:
            sizes[page] = opened.size
    if len(set(sizes.values())) > 1:
        raise UnusableError("pages_of_several_sizes")
    return list(sizes) or [0]


def _page(opened: Image.Image, page: int, notes: Counter[str]) -> Picture:
    if getattr(opened, "n_frames", 1) > 1:
        opened.seek(page)
    tags: Any = getattr(opened, "tag_v2", {})
    # Pillow turns TIFF round whose 0 is white, but only up to 8 bits.
    white_is_zero = opened.mode.startswith(("I;16", "F")) and tags.get(_PHOTOMETRIC) == 0
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    deep = ";16" in str(
        getattr(opened, "tile", "")
    )  # of which Pillow keeps the upper 8 bits where there are several channels
    upright = ImageOps.exif_transpose(opened)
    if upright.mode == "I":  # Pillow's 32-bit mode, which it also uses for 16-bit PNG
        whole = np.asarray(upright)
        if whole.min() < 0 or whole.max() > 65535:
            raise UnusableError("integers_outside_16_bits")
        _note_depth(whole, notes)
        return shades(whole, lambda values: (values.astype(np.float64) / 65535).astype(np.float32))
    if upright.mode == "F":
        values = np.asarray(upright, dtype=np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise UnusableError("float_outside_0_1")
        return 1 - values if white_is_zero else values
    if upright.mode not in _DEPTH:
        upright = upright.convert("L" if upright.mode == "LA" else "RGB")
    stored = np.asarray(upright)
    if upright.mode.startswith("I;16"):
        _note_depth(stored, notes)
    elif signed and upright.mode == "L" and stored.max() > 127:  # Pillow takes -1 for 255
        raise UnusableError("integers_outside_16_bits")
    elif deep:
        _note_depth(stored.astype(np.uint16) << 8, notes)
    depth = np.float32(_DEPTH[upright.mode])

    def shown(values: NDArray[Any]) -> Floats:
        unit = values.astype(np.float32) / depth
        return 1 - unit if white_is_zero else unit

    return shades(stored, shown)


def _note_depth(values: NDArray[Any], notes: Counter[str]) -> None:
    """Scanners' 12 bits in a file of 16: the image is nearly black, as a screen would show it."""
    if 0 < values.max() <= _LARGEST_OF_12_BITS:
        notes[TWELVE_BITS] += 1
