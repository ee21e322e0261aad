"""Columns that a hospital's table has not: missing values, unless another column may be meant, or half are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.readers.tables import TableReader
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.table import INCOMPLETE, read_table
from fedgraft.client.inference.cases import Reading, read_cases
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.tasks import Task

COLUMNS = TableInput(numeric=("age", "chol", "thalach"), categorical={"thal": ("3", "6"), "sex": ("f", "m")})
TASK = Task(name="cls", classes=("a", "b"))


def written(folder: Path, header: str, *rows: str) -> CohortSpec:
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return CohortSpec(kind="table", root=path, patient_column="id")


def test_what_a_hospital_never_measures_is_missing_in_every_row(tmp_path: Path) -> None:
    spec = written(tmp_path, "id,cls,age,sex,chol", "p1,a,60,f,200", "p2,b,,m,210")
    inputs, targets, patients, problems = read_table(spec, (TASK,), COLUMNS)
    nan = np.nan
    np.testing.assert_array_equal(inputs, np.float32([[60, 200, nan, 1, 0, 0, 0], [nan, 210, nan, 0, 1, 0, 0]]))
    assert (problems["missing_value"], problems["missing_category"]) == (3, 2)
    assert (targets["cls"].tolist(), patients) == ([0, 1], ["p1", "p2"])
    asked = read_cases(spec.root, COLUMNS, Reading())
    np.testing.assert_array_equal([one.stored for one in asked.usable], inputs)


@pytest.mark.parametrize("other", ["Chol", "CHOL", "cho_l", "chols"])
def test_a_column_that_may_be_meant_is_asked_about_and_not_passed_over(tmp_path: Path, other: str) -> None:
    spec = written(tmp_path, f"id,cls,age,sex,thal,thalach,{other}", "p1,a,60,f,3,150,200")
    with pytest.raises(DataError, match=rf"has no column 'chol'.*Is '{other}' the column 'chol'"):
        read_table(spec, (TASK,), COLUMNS)


def test_a_table_that_lacks_half_of_the_columns_is_another_table(tmp_path: Path) -> None:
    spec = written(tmp_path, "id,cls,age,sex", "p1,a,60,f")
    with pytest.raises(DataError, match="has no column 'chol', 'thalach', 'thal'"):
        read_table(spec, (TASK,), COLUMNS)


def test_complete_cases_leave_out_and_count_what_is_not(tmp_path: Path) -> None:
    rows = ("p1,a,60,f,3,150,200", "p2,b,,m,3,140,210", "p3,a,50,m,,130,220", "p4,b,40,f,6,120,230")
    spec = written(tmp_path, "id,cls,age,sex,thal,thalach,chol", *rows)
    asked = spec.model_copy(update={"complete_cases": True})
    contents = TableReader(asked, (TASK,), COLUMNS).read(spec.root, "")
    cases = list(contents.cases)
    found = [(case.patient, case.row, (case.targets or {})["cls"], float(case.values[0])) for case in cases]
    assert found == [("p1", 0, 0, 60.0), ("p4", 3, 1, 40.0)]
    assert contents.problems[INCOMPLETE] == 2
    with pytest.raises(ValueError, match="complete_cases does not apply to a cohort of kind dicom"):
        CohortSpec(kind="dicom", root=tmp_path, complete_cases=True)
