"""Tables as benchmarks have them: several labels in one cell, and a list of some of the files in a folder that others
share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.preflight.data import check_data
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Multilabel, Task
from helpers.site_home import generate, study

FINDINGS = Multilabel(name="findings", kind="multilabel", labels=("Mass", "Nodule", "Edema"))


def load(spec: CohortSpec, folder: Path, *tasks) -> Cohort:
    inputs = TableInput(numeric=("x",)) if spec.kind == "table" else ImageInput(size=16)
    wanted = CohortRequest(tasks, inputs, SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(folder / "state", folder / "cache", b"secret"))


def cells(folder: Path, *words: str, column: str = "findings", **spec) -> list[list[float]]:
    rows = "".join(f"{at},{word}\n" for at, word in enumerate(words))
    (folder / "t.csv").write_text(f"x,{column}\n{rows}")
    found = load(CohortSpec(kind="table", root=folder / "t.csv", **spec), folder, FINDINGS).targets["findings"]
    return [[-1 if math.isnan(value) else value for value in row] for row in found.tolist()]


def test_labels_with_bars_between_them(tmp_path):
    found = cells(tmp_path, "Mass|Edema", "nodule", "No Finding", "", " Mass | Nodule ", "NA")
    assert found == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [-1, -1, -1], [1, 1, 0], [-1, -1, -1]]
    other = {"label_columns": {"findings": "Finding Labels"}, "label_separator": ";"}
    assert cells(tmp_path, '"Mass;Edema"', column="Finding Labels", **other) == [[1, 0, 1]]


def test_words_of_other_studies_are_refused_or_mapped(tmp_path):
    with pytest.raises(DataError, match=r"line 3, column 'findings' is no label of .*Names are Mass, Nodule"):
        cells(tmp_path, "Mass", "Hernia|Mass")
    to_none = {"label_map": {"findings": {"all others": "no"}}}
    assert cells(tmp_path, "Hernia|Mass", "Hernia", **to_none) == [[1, 0, 0], [0, 0, 0]]
    to_nothing = {"label_map": {"findings": {"Hernia": ""}}}
    assert cells(tmp_path, "Hernia|Mass", "Hernia", **to_nothing) == [[1, 0, 0], [-1, -1, -1]]
    with pytest.raises(DataError, match="is no label of task"):
        cells(tmp_path, "No Finding|Mass")


def folder_of(tmp_path: Path) -> CohortSpec:
    """Six images of which the table lists three, and a fourth that is not there."""
    for at in range(6):
        (tmp_path / "shared").mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 10 * at + 1, np.uint8)).save(tmp_path / "shared" / f"{at}.png")
    (tmp_path / "shared" / "torn.png").write_bytes(b"")
    (tmp_path / "l.csv").write_text("path,cls\n1.png,a\n3.png,b\n4.png,a\n9.png,a\n")
    return CohortSpec(kind="images", root=tmp_path / "shared", labels=tmp_path / "l.csv", cases="listed")


TASK = Task(classes=("a", "b"))


def test_the_table_is_the_list_of_the_cases(tmp_path):
    spec = folder_of(tmp_path)
    cohort = load(spec, tmp_path / "1", TASK)
    assert cohort.targets["cls"].tolist() == [0, 1, 0]
    problems = {one.reason: one.count for one in cohort.problems}
    assert problems == {"not_listed": 4, "label_without_file": 1}  # nobody looked into the torn file of somebody else
    assert '"0.png",not_listed' in (tmp_path / "1" / "state" / "left_out.csv").read_text()
    everything = load(spec.model_copy(update={"cases": "all"}), tmp_path / "2", TASK)
    assert len(everything.inputs) == 6
    own = study(tasks=[{"name": "cls", "classes": ["a", "b"]}])
    lines = {line.name: line for line in check_data(cohort, spec, own, [f"{at}.png" for at in range(6)]).lines}
    assert lines["joined"].level.value == "note"
    assert lines["joined"].description == "0 images without a row of the labels table, 1 row without an image"
    assert "4 other files passed over (not_listed 4)" in lines["readable"].description


def test_a_list_of_patients_takes_their_dicom_files_and_no_others(tmp_path):
    north = generate(tmp_path / "h", patients=4)
    table = (north / "patients.csv").read_text().splitlines()
    (north / "two.csv").write_text("\n".join(table[:3]) + "\n")
    spec = CohortSpec(kind="dicom", root=north / "dicom", labels=north / "two.csv", cases="listed")
    cohort = load(spec, tmp_path, Task(name="cls", classes=("none", "smooth", "spiculated", "ring")))
    assert (len(cohort.inputs), len(set(cohort.patients))) == (4, 2)
    assert {one.reason: one.count for one in cohort.problems} == {"not_listed": 4}
    assert (cohort.targets["cls"] >= 0).all()


def test_without_a_table_there_is_no_list(tmp_path):
    with pytest.raises(ValidationError, match="cases: listed needs `labels`"):
        CohortSpec(kind="images", root=tmp_path, cases="listed")
