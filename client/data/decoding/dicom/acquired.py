"""Is a DICOM object a picture of the patient? Told by its SOP class, modality and image type (PS3.3 C.7.6.1.1.2).

What was made from pictures, or says something about them, gives answers away (a segmentation is the finding itself) or
shows no patient at all (a dose report). It is left out by a reason of its own, unless the cohort lists it in `accept`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pydicom.dataset import Dataset

from fedgraft.client.data.decoding.dicom.grey import functional_group
from fedgraft.client.data.spec import DERIVED


def _any_of(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Z0-9])(?:{'|'.join(words)})(?![A-Z0-9])")


_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    "segmentation": ("66.4", "66.5", "66.7", "66.8"),
    "parametric_map": ("30",),
    "rt_dose": ("481.2",),
    "presentation_state": ("11",),
    "secondary_capture": ("7",),
    "report": ("88", "104", "79", "78"),
    "other_object": (
        "66",
        "67",
        "481.3",
        "481.4",
        "481.5",
        "481.6",
        "481.7",
        "481.8",
        "481.9",
        "9",
        "4.2",
        "200",
        "90",
    ),
}
"""Kinds by what follows in the storage class, or how it begins; a longer beginning counts before a shorter one."""
_PREFIXES = sorted(((start, kind) for kind, all_ in _CLASSES.items() for start in all_), key=lambda at: -len(at[0]))
_MODALITIES = {
    "SEG": "segmentation",
    "RTDOSE": "rt_dose",
    "PR": "presentation_state",
    "SR": "report",
    "DOC": "report",
    "KO": "other_object",
    "REG": "other_object",
    "RTSTRUCT": "other_object",
    "RTPLAN": "other_object",
}
_LOCALIZERS = _any_of("LOCALIZER", "LOCALISER", "SCOUT", "TOPO", "TOPOGRAM", "SCANOGRAM", "SURVEY", "SURVIEW")
_SCREENS = _any_of("SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN SHOT", "SCREEN CAPTURE")
_DOSES = _any_of("PROT", "PATIENT PROTOCOL", "DOSE", "DOSE REPORT", "DOSEREPORT")
_REFORMATTED = _any_of(
    *("PROJECTION IMAGE", "MIP", "MINIP", "MAXIP", "MAX IP", "MIN IP", "MPR", "CPR", "REFORMATTED"),
    *("VRT", "VOLUME RENDER", "VOLUME RENDERED", "VOLUME RENDERING", "VOLREN", "CSA 3D EDITOR", "CSA RESAMPLED"),
)
"""Words that say what an image type is, wherever they stand: CT_SOM5 MIP, MIP_THIN, MAX_IP."""
_FRAME_TYPES = {
    "MR": "MRImageFrameTypeSequence",
    "CT": "CTImageFrameTypeSequence",
    "PT": "PETFrameTypeSequence",
}
_SLIDE = "77.1.6"
_AROUND_A_SLIDE = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL"})


def not_acquired(dataset: Dataset, accept: Collection[str] = ()) -> str | None:
    """The kind of `DERIVED` that an object is, if it is none that a scanner took, or that the cohort accepts."""
    by_class = _by_class(dataset)
    if by_class is not None and by_class not in accept:
        return by_class
    # What is accepted by its class is what its image type says all the same: DERIVED, SECONDARY.
    kind = _by_image_type(_words(dataset, "ImageType"), dataset, DERIVED if by_class is None else DERIVED[:2])
    return None if kind in accept else kind


def frame_not_acquired(dataset: Dataset, index: int, accept: Collection[str] = ()) -> str | None:
    """As `not_acquired`, of one frame of an enhanced image: the file may be MIXED."""
    name = _FRAME_TYPES.get(_text(dataset, "Modality").upper())
    for sequence in _FRAME_TYPES.values() if name is None else (name,):
        if (group := functional_group(dataset, index, sequence)) is not None:
            kind = _by_image_type(_words(group, "FrameType"), dataset, DERIVED)
            return None if kind in accept else kind
    return None


def _by_class(dataset: Dataset) -> str | None:
    storage = _text(dataset, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID") or "").strip("\0 ")
    if storage.startswith(_STORAGE):
        rest = storage.removeprefix(_STORAGE)
        kind = next((kind for start, kind in _PREFIXES if rest == start or rest.startswith(f"{start}.")), None)
        if kind is not None:
            return kind
    return _MODALITIES.get(_text(dataset, "Modality").upper())


def _by_image_type(words: Sequence[str], dataset: Dataset, among: Collection[str]) -> str | None:
    later = "\\".join(words[2:]).replace("_", " ")
    found = {
        "localizer": _LOCALIZERS.search(later) is not None,
        "dose_report": _DOSES.search(later) is not None,
        "secondary_capture": _SCREENS.search(later) is not None,
        "slide_label": _SLIDE in _text(dataset, "SOPClassUID") and not _AROUND_A_SLIDE.isdisjoint(words[2:]),
        "derived_image": words[1:2] == ["SECONDARY"]
        or (words[:1] == ["DERIVED"] and _REFORMATTED.search(later) is not None),
    }
    return next((kind for kind, is_one in found.items() if is_one and kind in among), None)


def _words(dataset: Dataset, name: str) -> list[str]:
    value = dataset.get(name)
    values = [value] if isinstance(value, str) else list(value or ())
    return [str(word).strip("\0 ").upper() for word in values]


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip("\0 ")
