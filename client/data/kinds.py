"""The kinds of data that a cohort can be of: a line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedgraft.common.base.errors import InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.plugins import registry
from fedgraft.common.plugins.plugin import Plugin

Join = Literal["patient", "study", "series", "sop", "path"]
"""What a row of a labels table can be about."""

JOIN_KEYS: Mapping[Join, tuple[str, ...]] = {
    "patient": ("PatientID", "patient_id", "patient", "subject"),
    "study": ("StudyInstanceUID", "study_uid", "study"),
    "series": ("SeriesInstanceUID", "series_uid", "series"),
    "sop": ("SOPInstanceUID", "sop_uid", "sop"),
    "path": ("path", "file", "filename", "image"),
}
"""Usual names of the column that a labels table is joined by."""

_READERS = "fedgraft.client.data.readers"
_SUBGROUPS = frozenset({"subgroup_columns", "subgroup_map"})
_OF_IMAGES = frozenset({"labels", "cases", "mask_images", "frames", "split_column", "split_file"}) | _SUBGROUPS


@dataclass(frozen=True)
class DataKind:
    """What is to be known of a kind of data before any of it is read.

    `reader` is what reads it (see `fedgraft.client.data.readers.reader`): a class, or "module:class", which is imported
    when a cohort is read. `inputs` are the kinds of a study's input that it can give. `keys` are the keys of a cohort
    that apply to it and not to every kind.
    """

    reader: str | Callable[..., Any]
    inputs: tuple[str, ...] = ("image",)
    keys: frozenset[str] = _OF_IMAGES | {"patient_column"}
    joins: tuple[Join, ...] = ("path",)
    """What a row of the labels table can be about; the first if the cohort says another."""
    one_file: bool = False
    """Whether `root` is a file that holds all cases, and no folder."""
    names_patients: bool = False
    """Whether the files say whose they are."""
    folder_labels: bool = False
    """Whether the name of the sub-folder is the class where no table has the labels."""
    mask_suffixes: tuple[str, ...] = (".png",)
    """How the names of masks end, which lie in a folder of their own."""
    cached: bool = True
    """Whether what was read is kept, since to read it again takes long."""

    @property
    def case(self) -> str:
        """What one case is, in a word."""
        return "image" if "image" in self.inputs else "row"


KINDS: dict[str, DataKind] = {
    "dicom": DataKind(
        f"{_READERS}.dicom:DicomReader",
        keys=_OF_IMAGES | {"window", "accept", "mask_segmentations", "segment_labels", "subgroup_tags"},
        joins=("patient", "study", "series", "sop", "path"),
        names_patients=True,
    ),
    "images": DataKind(f"{_READERS}.images:ImageReader", folder_labels=True),
    "nifti": DataKind(
        f"{_READERS}.nifti:NiftiReader",
        keys=_OF_IMAGES | {"patient_column", "window", "plane"},
        folder_labels=True,
        mask_suffixes=(".nii.gz", ".nii"),
    ),
    "table": DataKind(
        f"{_READERS}.tables:TableReader",
        inputs=("table",),
        keys=frozenset({"patient_column", "split_column", "complete_cases"}) | _SUBGROUPS,
        one_file=True,
        cached=False,
    ),
    "features": DataKind(
        f"{_READERS}.features:FeatureReader",
        inputs=("features",),
        keys=frozenset({"labels", "cases", "patient_column", "split_column", "split_file", "columns", "extractor"})
        | _SUBGROUPS,
        joins=("patient", "study", "series", "sop", "path"),
        one_file=True,
        folder_labels=True,
    ),
    "npz": DataKind(
        f"{_READERS}.npz:NpzReader", keys=frozenset({"patient_column", "frames"}), one_file=True, cached=True
    ),
}
"""All kinds by the name that `kind` of a cohort gives."""


def reader_plugin(name: str) -> Plugin | None:
    """Whose code reads data of this kind, None for fedgraft's own; nothing of it is imported. ValueError for no kind.

    InputError if two plug-ins have a kind of this name.
    """
    if name in KINDS:
        return None
    if (found := registry.source(registry.Kind.READERS, name)) is None:
        known = [*KINDS, *registry.names(registry.Kind.READERS)]
        raise ValueError(f"there is no kind {name!r}{instead(name, known)}; if a plug-in reads it, install or load it")
    return found.plugin


def kind_named(name: str) -> DataKind:
    """The kind of this name: fedgraft's, or of a plug-in (`fedgraft.readers`, a `DataKind`). Else InputError."""
    try:
        plugin = reader_plugin(name)
    except ValueError as error:
        raise InputError(f"Data: {error}.") from None
    if plugin is None:
        return KINDS[name]
    found = registry.load(registry.Kind.READERS, name)
    if not isinstance(found, DataKind):
        raise InputError(f"The reader {name!r} of {plugin} is no fedgraft.client.data.kinds.DataKind.")
    return found


def kinds_with(key: str) -> list[str]:
    """The names of all kinds to which a key of a cohort applies."""
    return sorted(name for name, kind in KINDS.items() if key in kind.keys)
