"""Ordinary image files: PNG, JPEG, TIFF, BMP, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from client.data.dicom import UnusableError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_DEPTH = {"1": 1, "L": 255, "RGB": 255, "I;16": 65535, "I;16L": 65535, "I;16B": 65535}


def read_image(path: Path) -> NDArray[np.float32]:
    """An image in [0, 1], (H, W) or (H, W, 3), upright by its EXIF tag. UnusableError says why it cannot be used."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I":  # Pillow's 32-bit mode, which it also uses for 16-bit PNG
                return (np.clip(np.asarray(image, dtype=np.float64), 0, 65535) / 65535).astype(np.float32)
            if image.mode == "F":
                values = np.asarray(image, dtype=np.float32)
                if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                    raise UnusableError("float_outside_0_1")
                return values
            if image.mode not in _DEPTH:
                image = image.convert("L" if image.mode == "LA" else "RGB")
            return np.asarray(image, dtype=np.float32) / np.float32(_DEPTH[image.mode])
    except UnidentifiedImageError:
        raise UnusableError("unreadable") from None
    except UnusableError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        truncated = "truncated" in str(error).lower()
        raise UnusableError("truncated" if truncated else "unreadable") from None
