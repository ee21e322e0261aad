"""A phantom hospital's home folder: real DICOM files, a labels table, and a site.yaml, which tests then spoil."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydicom import dcmread

from fedgraft.client.enrolment.config import read_site
from fedgraft.client.preflight.check import Check, SiteUnderCheck
from fedgraft.client.preflight.report import FindingLine, Report
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario

CLASSES = ("none", "smooth", "spiculated", "ring")
OPEN = {"allow_non_dp": True, "metrics": "exact", "min_patients": 1}
STUDY: dict[str, Any] = {
    "name": "preflight",
    "seed": 3,
    "tasks": [{"name": "cls", "classes": list(CLASSES)}],
    "input": {"kind": "image", "size": 32},
    "split": {"train": 0.5, "val": 0.25, "test": 0.25},
    "model": {"backbone": "slim_resnet", "weights": None},
    "method": {"name": "graft", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
}
KEY = (42).to_bytes(32, "big")
"""A site's key under which chance splits the 32 patients of that study as its shares say: 16, 8, 8."""


def study(**changes: Any) -> Study:
    return parse_study(STUDY | changes, "test")


def generate(folder: Path, patients: int = 32, **phantom: Any) -> Path:
    """A hospital of `patients` patients, a quarter of each finding, with two images each; its folder."""
    site = {"patients": patients, "images_per_patient": [2, 2], "scanner": {"matrix": 48, "spacing_mm": 5.3}} | phantom
    entry = {"name": "north", "phantom": site}
    make_hospitals(Scenario.model_validate({"name": "small", "seed": 5, "sites": [entry]}), folder)
    return folder / "north"


@dataclass(frozen=True)
class Hospital:
    """A site's home, and the folder of its data."""

    home: Path
    data: Path

    def files(self) -> list[Path]:
        return sorted((self.data / "dicom").glob("*.dcm"))

    def edit(self, path: Path, **elements: Any) -> None:
        """Change elements of a DICOM file; None removes one."""
        dataset = dcmread(path)
        for name, value in elements.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        if "SOPInstanceUID" in elements:
            dataset.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
        dataset.save_as(path)

    def rows(self) -> list[dict[str, str]]:
        with (self.data / "patients.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def write_rows(self, rows: list[dict[str, str]]) -> None:
        with (self.data / "patients.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def write_config(self, **changes: Any) -> None:
        cohort = {"kind": "dicom", "root": str(self.data / "dicom"), "labels": str(self.data / "patients.csv")}
        mine = {"name": "north", "cohort": cohort | changes.pop("cohort", {}), "policy": OPEN}
        content = mine | changes
        (self.home / "site.yaml").write_text(yaml.safe_dump(content))

    def check(self, *parts: str, against: Study | None = None, baseline: bool = False) -> Report:
        site = SiteUnderCheck(self.home, read_site(self.home))
        return Check(site, against or study(), lambda _: None).run(parts, baseline=baseline)

    def lines(self, *parts: str, against: Study | None = None) -> dict[str, FindingLine]:
        """The report's lines by name."""
        report = self.check(*parts, against=against)
        return {line.name: line for part in report.parts for line in part.findings.lines}


MakeHospital = Callable[..., Hospital]


def copied(source: Path, folder: Path) -> Hospital:
    """A hospital of its own with the files of another."""
    shutil.copytree(source, folder / "data")
    (folder / "home").mkdir(mode=0o700)
    hospital = Hospital(folder / "home", folder / "data")
    hospital.write_config()
    return hospital
