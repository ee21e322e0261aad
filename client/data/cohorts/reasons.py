"""Constant words for what was left out of a cohort or is odd in it, sorted by what somebody should do about it."""

from __future__ import annotations

from collections.abc import Mapping

STRANGERS = frozenset({"not_dicom", "not_an_image", "no_pixels"})
"""Files that were never meant to be images of the cohort."""
SEPARATE = frozenset({"burned_in_annotation", "duplicate"})
"""Files left out for a reason that has a line of its own in the check."""
UNREADABLE: Mapping[str, str] = {
    "empty_file": "",
    "truncated": "",
    "unreadable": "",
    "undecodable": "",
    "missing_elements": "",
    "bad_lut": "",
    "unknown_photometric": "",
    "unsupported_palette": "",
    "integers_outside_16_bits": "Save them with 8 or 16 bits",
    "float_outside_0_1": "Save them with values from 0 to 1",
    "too_large": "",
}
"""Files that should be images and give none, with what to do if it is not to export them again."""
ODD = frozenset(
    {"no_patient_id", "similar_patient_ids", "no_label_row", "label_without_file"}
    | {"missing_value", "missing_category", "unknown_category"}
    | {"mask_other_size", "mask_unreadable", "mask_without_image"}
)
"""What was used all the same, or is no file."""
