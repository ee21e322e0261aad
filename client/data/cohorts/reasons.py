"""Constant words for what was left out of a cohort or is odd in it, sorted by what somebody should do about it."""

from __future__ import annotations

from collections.abc import Mapping

from fedgraft.client.data.cohorts.folders import BROKEN, HIDDEN, NO_RIGHT, SPECIAL, TWICE
from fedgraft.client.data.cohorts.own_splits import WITHOUT_SPLIT
from fedgraft.client.data.tables.csv_tables import LIKE_THOUSANDS
from fedgraft.client.data.tables.patient_ids import ROUNDED
from fedgraft.client.data.tables.table import INCOMPLETE
from fedgraft.client.data.tables.targets import BY_OTHERS

STRANGERS = frozenset({"not_dicom", "not_an_image", "not_nifti", "not_listed", "no_pixels", HIDDEN})
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
    "too_large": "It takes more than `file_gigabytes` of the cohort; have it divided, or allow more",
    "too_slow": "It takes more than `file_seconds` of the cohort; look whether it is damaged, or allow more",
    "unreadable_element": "A number in the header is no number; have the program mended that wrote it",
    "unsupported_syntax": "No decoder is installed for their transfer syntax; export them in another one, for instance "
    "Explicit VR Little Endian",
    "no_dicom_inside": "Their names say DICOM, and their content does not: an export may have failed",
    "image_without_pixels": "",
    "no_right_to_read": "Give this account the right to read them",
    "more_than_three_dimensions": "Save each volume of a series as a file of its own",
    "complex_values": "Save their magnitude, or one component, as numbers",
    "no_orientation": "Their header does not say where the axes lead; have the program mended that wrote them",
    "pages_of_several_sizes": "Save the page that is meant as a file of its own",
}
"""Files that should be images and give none, with what to do if it is not to export them again."""
PASSED_OVER: Mapping[str, str] = {
    NO_RIGHT: "Give this account the right to open them: what is in them is missing.",
    BROKEN: "Mend or remove them: what they pointed at is missing.",
    TWICE: "Nothing is missing: they lead to folders that were read already.",
    SPECIAL: "Nothing is missing: they are no files.",
}
"""Folders and links that were not read, with what to do."""
ODD = frozenset(
    {"no_patient_id", "similar_patient_ids", "no_label_row", "label_without_file"}
    | {"missing_value", "missing_category", "unknown_category"}
    | {"mask_other_size", "mask_unreadable", "mask_without_image", "mask_twice", "mask_of_frames"}
)
"""What has a line of its own in the check: files that were used all the same, rows, masks."""
NOTES: Mapping[str, tuple[str, str]] = {
    "same_uid_other_pixels": (
        "images that share a SOPInstanceUID with other pixels",
        "They are used as different images; have the de-identifier mended that wrote one UID for several.",
    ),
    "window_width_1": (
        "images whose window of width 1 would leave black and white of values from 0 to 1",
        "They are shown from 0 to 1; set `window` of the cohort for another range.",
    ),
    BY_OTHERS: (
        "labels that only the entry `all others` of label_map explains",
        "If a word among them is misspelt in label_map, or missing from it, correct that.",
    ),
    "derived_frames": (
        "files with frames that no scanner took, such as localizers, beside others",
        "Those frames are left out; list their kind as `accept` of the cohort to have them.",
    ),
    "more_pixels_than_said": (
        "files with pixels of more frames than their header says",
        "The first ones are used; have the program mended that lost NumberOfFrames.",
    ),
    LIKE_THOUSANDS: (
        "numbers that all have a point and three digits, as thousands do where decimals have commas",
        "They are read as decimals, 1.234 as one and a bit; if they are thousands, write them without the point.",
    ),
    ROUNDED: (
        "cases with a patient id that a spreadsheet has rounded, as in 1.23457E+11",
        "Several patients may share it: write the ids anew from where they came, into a column of text.",
    ),
    "orientation_not_stated": (
        "volumes whose header does not say where their axes lead",
        "They are taken as NIfTI's default has them; look at some, since left and right may be exchanged.",
    ),
    "spacing_not_stated": (
        "volumes whose header does not say how large a voxel is",
        "Pixels are taken as square; sizes cannot be told.",
    ),
    WITHOUT_SPLIT: (
        "cases to which the cohort's own split gives no part",
        "They are not used; if they should be, say in the split's column or file where they belong.",
    ),
    "volumes_by_slices": (
        "volumes of which some slices are used",
        "Say by `frames` of the cohort which: all, middle or first.",
    ),
    "several_pages": (
        "files with several pages, of which one is used",
        "Say by `frames` of the cohort which: all, middle or first.",
    ),
    INCOMPLETE: (
        "rows left out, in which a value is missing",
        "`complete_cases` of the cohort asks for it; leave it out to use them, with what is missing at the mean.",
    ),
    "twelve_bits_in_16": (
        "files of 16 bits that use the lowest 12 of them, or fewer",
        "They are as dark as a screen shows them; stretch them to 16 bits if other sites' are bright.",
    ),
}
"""What is odd in files and rows that are used all the same: what it is, and what to do."""
