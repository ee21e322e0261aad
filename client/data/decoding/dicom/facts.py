"""What a DICOM file says of itself in words that everybody may read: from fixed lists, and never free text."""

from __future__ import annotations

import math

from pydicom.dataset import Dataset

from fedgraft.client.data.decoding.dicom.dicom_image import NOT_STATED, OTHER, decade
from fedgraft.client.data.decoding.dicom.grey import functional_group, stated_window, voi_lut
from fedgraft.client.data.decoding.dicom.numbers import pair
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.common.study.subgroups import TAGS

MODALITIES = frozenset(
    {"AR", "BI", "CR", "CT", "DX", "ECG", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR", "NM", "OCT", "OP", "OPT"}
    | {"OT", "PT", "PX", "RF", "RG", "SC", "SM", "TG", "US", "XA", "XC"}
)
_PHOTOMETRIC = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)
_VENDORS = {
    "agfa": "Agfa",
    "bruker": "Bruker",
    "canon": "Canon",
    "toshiba": "Canon",
    "carestream": "Carestream",
    "kodak": "Carestream",
    "esaote": "Esaote",
    "fuji": "Fujifilm",
    "hitachi": "Fujifilm",
    "general electric": "GE",
    "ge ": "GE",
    "gems": "GE",
    "hologic": "Hologic",
    "lorad": "Hologic",
    "konica": "Konica Minolta",
    "mindray": "Mindray",
    "neusoft": "Neusoft",
    "philips": "Philips",
    "samsung": "Samsung",
    "medison": "Samsung",
    "shimadzu": "Shimadzu",
    "siemens": "Siemens",
    "united imaging": "United Imaging",
    "uih": "United Imaging",
    "fedgraft phantom": "fedgraft phantom",
}
"""How names of manufacturers begin, or a word of them, and whose they are today. What is not listed is "other"."""

_AGE_DIGITS = 3


def facts(dataset: Dataset, index: int) -> dict[str, str]:
    """Modality, vendor, photometric interpretation, bits, pixel spacing, window, burned-in flag, sex and age of a file.

    `index` is the frame that is used. Every value is of a fixed list, a number, "not stated" or "other".
    """
    return {
        "modality": _listed(dataset, "Modality", MODALITIES),
        "vendor": _vendor(_text(dataset, "Manufacturer")),
        "photometric": _listed(dataset, "PhotometricInterpretation", _PHOTOMETRIC),
        "bits": _listed(dataset, "BitsStored", frozenset(str(bits) for bits in range(1, 65))),
        "spacing": _spacing(dataset, index),
        "window": _window(dataset, index),
        "burned_in": _listed(dataset, "BurnedInAnnotation", frozenset({"YES", "NO"})),
        "sex": _listed(dataset, "PatientSex", frozenset({"F", "M", "O"})),
        "age": _age(_text(dataset, "PatientAge")),
    }


def subgroup_tags(dataset: Dataset) -> dict[str, str]:
    """What can say to which subgroup a case belongs: sex and age as they stand there, the vendor as `facts` has it."""
    said = {tag: _text(dataset, tag) for tag in TAGS}
    vendor = _vendor(said["Manufacturer"])
    return said | {"Manufacturer": "" if vendor == NOT_STATED else vendor}


def _text(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip("\0 ")


def _listed(dataset: Dataset, name: str, known: frozenset[str]) -> str:
    text = _text(dataset, name).upper()
    if not text:
        return NOT_STATED
    return text if text in known else OTHER


def _vendor(text: str) -> str:
    if not text:
        return NOT_STATED
    low = f"{text.lower()} "
    return next((vendor for word, vendor in _VENDORS.items() if low.startswith(word) or f" {word}" in low), OTHER)


def _spacing(dataset: Dataset, index: int) -> str:
    """Distance of rows in mm, to two digits: enough to see that two scanners differ."""
    for source, name in (
        (functional_group(dataset, index, "PixelMeasuresSequence"), "PixelSpacing"),
        (dataset, "PixelSpacing"),
        (dataset, "ImagerPixelSpacing"),
    ):
        if (size := pair(source, name)) is None:
            continue
        rows, columns = size
        if 0 < rows < math.inf and 0 < columns < math.inf:
            return f"{rows:.2g} mm"
    return NOT_STATED


def _age(text: str) -> str:
    """The decade of life; of months, weeks and days the first one."""
    if not text:
        return NOT_STATED
    number, unit = text[:-1], text[-1:].upper()
    if unit not in "DWMY" or not (number.isascii() and number.isdigit()) or len(number) > _AGE_DIGITS:
        return OTHER
    return decade(int(number) if unit == "Y" else 0)


def _window(dataset: Dataset, index: int) -> str:
    if voi_lut(dataset) is not None:
        return "look-up table"
    try:
        return "window" if stated_window(dataset, index) is not None else NOT_STATED
    except UnusableError:  # it could not be read, and was not needed: the site has a window of its own
        return OTHER
