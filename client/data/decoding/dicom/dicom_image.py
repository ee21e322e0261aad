"""What is read of a DICOM file, as a value: files are read in a process of their own, and who asks needs no pydicom."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedgraft.client.data.decoding.shades import Floats

DERIVED_FRAMES = "derived_frames"
NOT_STATED, OTHER = "not stated", "other"
_OLDEST = 90

BY_PATIENT = ("modality", "vendor", "spacing", "sex", "age")
"""The facts that are kept for each case, so that patients can be counted by them."""


@dataclass(frozen=True)
class DicomImage:
    """Frames (H, W) or (H, W, 3) in [0, 1], height over width of a pixel, keys for joining, facts without identity.

    `width_mm` is the width of a pixel, 0 where the file does not say it; `tags` are those of sex, age and vendor.
    """

    frames: list[Floats]
    pixel_aspect: float
    keys: dict[str, str] = field(repr=False)
    facts: dict[str, str]
    width_mm: float = 0.0
    tags: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    """Constant words for what is odd in a file that is used all the same."""


def decade(years: float) -> str:
    """`40 to 49 years`; from 90 on people are few, and go together."""
    low = int(years // 10) * 10
    return f"{low} to {low + 9} years" if low < _OLDEST else f"{_OLDEST} years and over"
