"""What a site says about its own data: where they are, and how labels and patients are found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from fedgraft.common.base.value import Value

MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")
"""What stands for a missing value, in any case, unless the site lists other words."""

Join = Literal["patient", "study", "series", "sop", "path"]


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
    width: Annotated[float, Field(gt=0)]


class CohortSpec(Value):
    """One site's data. `root` is a folder, or for a table the CSV file itself.

    DICOM: `labels` is a CSV with a row per patient, study, series, image or file; `join` says which, and `key_column`
    where the key stands. Images: without `labels` the class is the name of the sub-folder; with it the CSV is joined by
    path, relative to `root`. Labels not listed in `label_map` must be class names; empty cells are "not known".
    """

    # YAML reads the 0 and 1 of a label column as numbers.
    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: Literal["dicom", "images", "table"]
    root: Path
    labels: Path | None = None
    join: Join = "patient"
    key_column: str | None = None
    """Column of `labels` with the key; by default the first of the usual names that is there."""
    mask_images: Path | None = None
    """Folder with masks of findings as PNG, named as their images are (see `fedgraft.client.data.cohorts.masks`)."""
    label_columns: dict[str, str] = Field(default={})
    """Task to column; by default the task's own name, `diagnosis` or `label`. Of several labels TASK.LABEL to column;
    by default the label's own name."""
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
    window: Window | None = None
    frames: Literal["all", "middle", "first"] = "middle"
    """Which frames of a multi-frame DICOM file, or pages of a TIFF or PNG, become images."""
    accept: tuple[Derived, ...] = ()
    """DICOM: kinds of objects that no scanner took and that are used all the same, such as `secondary_capture`."""
    file_seconds: Annotated[float, Field(gt=0)] = 120.0
    file_gigabytes: Annotated[float, Field(gt=0)] = 4.0
    """The most time and memory that decoding a single file may take; a file that takes more is left out."""
    split: Literal["auto", "independent"] = "auto"
    """`auto`: patients are dealt out class by class where nothing private follows, else each stands alone;
    `independent`: always so."""
    train_cases: Annotated[int, Field(ge=1)] | None = None
    """For experiments: of the patients who train, only so many that they have about this many cases."""
    train_labels: Literal["known", "hidden", "shuffled"] = "known"
    """For experiments: all labels but those of the test split are hidden, or dealt out anew among the patients."""

    @model_validator(mode="after")
    def _says_only_what_counts(self) -> CohortSpec:
        """What would be passed over in silence is refused, above all a patient column that nobody reads."""
        images, dicom = self.kind == "images", self.kind == "dicom"
        faults = {
            "patient_column needs `labels`, the table with that column": images and self.labels is None,
            "patient_column does not apply: DICOM files name their patient": dicom,
        }
        found = [fault for fault, wrong in faults.items() if wrong and self.patient_column is not None]
        if self.kind == "table" and self.labels is not None:
            found.append("labels does not apply: a table holds its own")
        if self.complete_cases and self.kind != "table":
            found.append("complete_cases applies to tables only")
        if self.mask_images is not None and self.kind == "table":
            found.append("mask_images does not apply: a table has no images")
        if self.window is not None and not dicom:
            found.append("window applies to DICOM only")
        if self.frames != "middle" and self.kind == "table":
            found.append("frames does not apply: a table has no images")
        if self.accept and not dicom:
            found.append("accept applies to DICOM only")
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def knows_patients(self) -> bool:
        """Whether it is said whose a case is; else each image or row would count as a patient."""
        return self.kind == "dicom" or self.patient_column is not None

    def below(self, folder: Path) -> CohortSpec:
        """The same with relative paths counted from `folder`, and `~` meaning the person's own."""
        labels = None if self.labels is None else folder / self.labels.expanduser()
        masks = None if self.mask_images is None else folder / self.mask_images.expanduser()
        return self.model_copy(update={"root": folder / self.root.expanduser(), "labels": labels, "mask_images": masks})
