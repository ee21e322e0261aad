"""What a site says about its own data: where they are, and how labels and patients are found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedgraft.client.data.kinds import KINDS, DataKind, Join, kind_named, kinds_with, reader_plugin
from fedgraft.common.base.errors import DataError
from fedgraft.common.base.value import Value
from fedgraft.common.study.inputs import Extractor
from fedgraft.common.study.subgroups import Tag

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""What stands for a missing value, in any case, unless the site lists other words."""

Derived = Literal[
    "localizer",
    "dose_report",
    "secondary_capture",
    "slide_label",
    "derived_image",
    "segmentation",
    "parametric_map",
    "rt_dose",
    "presentation_state",
    "report",
    "other_object",
]
DERIVED: tuple[str, ...] = get_args(Derived)
"""Kinds of DICOM objects that are no acquired images (see `decoding.acquired`)."""


class Window(Value):
    """A display window in the images' own units (Hounsfield units for CT), used in place of what the files say."""

    center: float
    """The value that becomes middle grey."""
    width: Annotated[float, Field(gt=0)]
    """How many units lie between black and white."""


class CohortSpec(Value):
    """One site's data. `root` is a folder, or for a table the CSV file itself.

    DICOM: `labels` is a CSV with a row per patient, study, series, image or file; `join` says which, and `key_column`
    where the key stands. Images: without `labels` the class is the name of the sub-folder; with it the CSV is joined by
    path, relative to `root`. Labels not listed in `label_map` must be class names; empty cells are "not known".
    """

    # YAML reads the 0 and 1 of a label column as numbers.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: str
    """What the data are: one of `fedgraft.client.data.kinds`."""
    root: Path
    labels: Path | None = None
    join: Join = "patient"
    key_column: str | None = None
    """Column of `labels` with the key; by default the first of the usual names that is there."""
    cases: Literal["all", "listed"] = "all"
    """`all`: every file is a case, with or without a row in `labels`; `listed`: only those that `labels` lists, and the
    rest of the folder, which others may share, is passed over and counted."""
    mask_images: Path | None = None
    """Folder with masks of findings as PNG, named as their images are (see `fedgraft.client.data.cohorts.masks`)."""
    mask_segmentations: Path | None = None
    """DICOM: folder with masks as DICOM segmentations (SEG), joined by the SOP instance UIDs that they refer to."""
    segment_labels: dict[str, str] = Field(default={})
    """DICOM: task to the label of the segment that is its mask; by default the task's own name."""
    label_columns: dict[str, str] = Field(default={})
    """Task to column; by default the task's own name, `diagnosis` or `label`. Of several labels TASK.LABEL to column;
    by default the label's own name."""
    label_separator: Annotated[str, Field(min_length=1, max_length=3)] = "|"
    """Stands between the labels of a case where one column has all of them: `label_columns: {TASK: COLUMN}`."""
    label_map: dict[str, dict[str, str]] = Field(default={})
    """Task (or TASK.LABEL) to {value in the table: class name, yes or no, or number; '' for "not known"}. The entry
    `all others` stands for every word that is not listed, is no name and does not mean "missing"."""
    missing: tuple[str, ...] = MISSING
    """Words that mean "not known", in any case and in all columns. A class or category of that name is meant first."""
    missing_values: dict[str, tuple[str, ...]] = Field(default={})
    """Column to the words or numbers that mean "not known" in it alone, such as -9."""
    complete_cases: bool = False
    """Tables: leave out, and count, the rows in which a column of the study has no value."""
    patient_column: str | None = None
    """Images and tables: column that says whose case a row is; without it every row or file is its own patient."""
    split_column: str | None = None
    """Column that says of each case whether it trains, validates or tests: of the table itself, of `labels`, or of
    `split_file`. The split is then used as it is."""
    split_file: Path | None = None
    """A table with the split of every patient, or of every file, where it stands in a file of its own."""
    subgroup_columns: dict[str, str] = Field(default={})
    """Attribute of the study's subgroups to the column of `labels`, or of the table, that says it; by default as the
    study calls it."""
    subgroup_tags: dict[str, Tag] = Field(default={})
    """DICOM: attribute to the tag that says it: PatientSex, PatientAge (in years) or Manufacturer."""
    subgroup_map: dict[str, dict[str, str]] = Field(default={})
    """Attribute to {what the column or the tag says: a value of the study's, or '' for "not known"}."""
    columns: Annotated[str, Field(pattern=r"^[^*]*\*[^*]*$")] = "e*"
    """What the columns of features are called, in CSV and Parquet files, with a star for their number."""
    extractor: Extractor | None = None
    """What made the features, where their file does not say it itself."""
    window: Window | None = None
    """DICOM: shown by this window; by the file's own if absent."""
    frames: Literal["all", "middle", "first"] = "middle"
    """Which frames of a multi-frame DICOM file, or pages of a TIFF or PNG, become images."""
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    """NIfTI: which slices of a volume; of those `frames` says how many."""
    accept: tuple[Derived, ...] = ()
    """DICOM: kinds of objects that no scanner took and that are used all the same, such as `secondary_capture`."""
    file_seconds: Annotated[float, Field(gt=0)] = 120.0
    """The most time that decoding a single file may take; a file that takes more is left out."""
    file_gigabytes: Annotated[float, Field(gt=0)] = 4.0
    """The most time and memory that decoding a single file may take; a file that takes more is left out."""
    split: Literal["auto", "independent"] = "auto"
    """`auto`: patients are dealt out class by class where nothing private follows, else each stands alone;
    `independent`: always so."""
    train_cases: Annotated[int, Field(ge=1)] | None = None
    """For experiments: of the patients who train, only so many that they have about this many cases."""
    train_labels: Literal["known", "hidden", "shuffled"] = "known"
    """For experiments: all labels but those of the test split are hidden, or dealt out anew among the patients."""

    @field_validator("kind")
    @classmethod
    def _there_is_one(cls, value: str) -> str:
        reader_plugin(value)  # whose code runs when it is used, and not when the site's file is read
        return value

    @model_validator(mode="after")
    def _says_only_what_counts(self) -> CohortSpec:
        """What would be passed over in silence is refused, above all a patient column that nobody reads."""
        if found := list(self._faults(KINDS[self.kind])) if self.kind in KINDS else []:
            raise ValueError("; ".join(found))
        return self

    def _faults(self, what: DataKind) -> Iterator[str]:
        """Every key that would be passed over, or lacks another."""
        yield from (
            f"{key} does not apply to a cohort of kind {self.kind}: {self._why(key, what)}"
            for key in sorted(self.model_fields_set - what.keys)
            if kinds_with(key) and getattr(self, key) != type(self).model_fields[key].get_default()
        )
        if self.patient_column is not None and self.labels is None and not what.one_file:
            yield "patient_column needs `labels`, the table with that column"
        if self.mask_images is not None and self.mask_segmentations is not None:
            yield "give mask_images or mask_segmentations, not both"
        if self.segment_labels and self.mask_segmentations is None:
            yield "segment_labels needs `mask_segmentations`, the folder of segmentations"
        if self.cases == "listed" and self.labels is None:
            yield "cases: listed needs `labels`, the table that lists them"
        if self.split_column is not None and not what.one_file and not (self.labels or self.split_file):
            yield "split_column needs `labels` or `split_file`, the table with that column"

    def _why(self, key: str, what: DataKind) -> str:
        if key == "patient_column" and what.names_patients:
            return f"{self.kind.upper()} files name their patient"
        if key == "labels" and what.one_file:
            return f"a {self.kind} holds its own"
        return f"it is for {', '.join(kinds_with(key))}"

    @cached_property
    def what(self) -> DataKind:
        """What is to be known of such data; imports a plug-in's reader. DataError for keys that do not apply to it."""
        if self.kind in KINDS:
            return KINDS[self.kind]
        what = kind_named(self.kind)
        if faults := list(self._faults(what)):
            raise DataError(f"The cohort of {self.root}: {'; '.join(faults)}.", fix="Correct it in the site's file.")
        return what

    @property
    def joined_by(self) -> Join:
        """What a row of the labels table is about."""
        return self.join if self.join in self.what.joins else self.what.joins[0]

    @property
    def knows_patients(self) -> bool:
        """Whether it is said whose a case is; else each image or row would count as a patient."""
        return self.what.names_patients or self.patient_column is not None

    def below(self, folder: Path) -> CohortSpec:
        """The same with relative paths counted from `folder`, and `~` meaning the person's own."""
        paths = {name: getattr(self, name) for name in PATHS}
        return self.model_copy(update={name: path and folder / path.expanduser() for name, path in paths.items()})


PATHS = tuple(name for name, field in CohortSpec.model_fields.items() if field.annotation in (Path, Path | None))
"""The keys of a cohort that are paths."""
