"""Ordinary image files: PNG, JPEG, TIFF, BMP, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fedgraft.client.data.decoding.unusable import UnusableError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_DEPTH = {"1": 1, "L": 255, "RGB": 255, "I;16": 65535, "I;16L": 65535, "I;16B": 65535}


_PHOTOMETRIC = 262


def read_image(path: Path) -> NDArray[np.float32]:
    """An image in [0, 1], (H, W) or (H, W, 3), upright by its EXIF tag. UnusableError says why it cannot be used."""
    try:
        with Image.open(path) as opened:
            # Pillow turns TIFF round whose 0 is white, but only up to 8 bits.
            white_is_zero = opened.mode.startswith("I;16") and opened.getexif().get(_PHOTOMETRIC) == 0
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I":  # Pillow's 32-bit mode, which it also uses for 16-bit PNG
                whole = np.asarray(image, dtype=np.float64)
                if whole.min() < 0 or whole.max() > 65535:
                    raise UnusableError("integers_outside_16_bits")
                return (whole / 65535).astype(np.float32)
            if image.mode == "F":
                values = np.asarray(image, dtype=np.float32)
                if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                    raise UnusableError("float_outside_0_1")
                return values
            if image.mode not in _DEPTH:
                image = image.convert("L" if image.mode == "LA" else "RGB")
            shades = np.asarray(image, dtype=np.float32) / np.float32(_DEPTH[image.mode])
            return 1 - shades if white_is_zero else shades
    except UnidentifiedImageError:
        raise UnusableError("unreadable") from None
    except UnusableError:
        raise
    except Exception as error:  # decoders raise what they like on damaged data
        truncated = "truncated" in str(error).lower()
        raise UnusableError("truncated" if truncated else "unreadable") from None
