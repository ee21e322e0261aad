"""To which subgroup a case belongs: by a column of a table, by a tag of a DICOM file, in a hospital's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import Extractor, FeaturesInput, ImageInput, InputSpec, SplitSpec, TableInput
from fedgraft.common.study.subgroups import Subgroup
from fedgraft.common.study.tasks import Task

TASK = Task(name="cls", classes=("no", "yes"))
SEX, AGE = Subgroup(name="sex", values=("female", "male")), Subgroup(name="age", bands=(0, 40, 65))
VENDOR = Subgroup(name="vendor", values=("Siemens", "GE"))


def read(spec: CohortSpec, folder: Path, *asked: Subgroup, inputs: InputSpec | None = None) -> Cohort:
    wanted = CohortRequest([TASK], inputs or TableInput(numeric=("a",)), SplitSpec(), 0, None, asked)
    return load_cohort("north", spec, wanted, Place(folder / "state", folder / "cache", b"secret"))


def table(folder: Path, **more: Any) -> CohortSpec:
    path = folder / "t.csv"
    path.write_text(
        "a,cls,Geschlecht,age\n1,no,w,39.9\n2,yes,M,40\n3,no,W,65\n4,yes,?,\n5,no,divers,-3\n6,yes,male,12\n",
        encoding="utf-8",
    )
    named = {"subgroup_columns": {"sex": "Geschlecht"}, "subgroup_map": {"sex": {"w": "female", "m": "male"}}}
    return CohortSpec(kind="table", root=path, **(named | more))


def groups(cohort: Cohort, name: str) -> list[int]:
    return next(own.tolist() for one, own in cohort.subgroups.items() if one.name == name)


def test_a_table_says_it_in_its_own_words(tmp_path: Path) -> None:
    """What is not known, and what makes no group, is in none; the latter is counted."""
    cohort = read(table(tmp_path), tmp_path, SEX, AGE)
    assert groups(cohort, "sex") == [0, 1, 0, -1, -1, 1]
    assert groups(cohort, "age") == [0, 1, -1, -1, -1, 0]
    assert {problem.reason: problem.count for problem in cohort.problems}["in_no_subgroup"] == 3


def test_rows_that_are_left_out_do_not_move_the_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,cls,sex\n1,no,male\n,yes,male\n3,no,female\n", encoding="utf-8")
    cohort = read(CohortSpec(kind="table", root=path, complete_cases=True), tmp_path, SEX)
    assert groups(cohort, "sex") == [1, 0]


@pytest.mark.parametrize(
    ("more", "asked", "message"),
    [
        ({"subgroup_columns": {}}, (SEX,), r"has no column 'sex' for the subgroup 'sex'.*subgroup_columns: \{sex: COL"),
        ({"subgroup_columns": {"sex": "sx"}}, (SEX,), r"has no column 'sx' for the subgroup 'sex'"),
        ({"subgroup_map": {"sex": {"w": "woman"}}}, (SEX,), r"'w' becomes 'woman'.*Groups are female, male"),
        (
            {"subgroup_columns": {"sex": "age"}},
            (SEX, AGE),
            r"'sex' and 'age' are both of the column 'age'|'age' and 'sex' are both of the column 'age'",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(
    tmp_path: Path, more: dict[str, Any], asked: tuple[Subgroup, ...], message: str
) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(table(tmp_path, **more), tmp_path, *asked)


def test_files_say_sex_age_and_vendor_by_their_tags(make_dicom: Any, tmp_path: Path) -> None:
    """Years of an age in years or months; a vendor by what its name begins with; and the cache knows them again."""
    said = [
        ("F", "039Y", "SIEMENS Healthineers"),
        ("M", "480M", "GE MEDICAL SYSTEMS"),
        ("O", "", ""),
        ("", "070Y", "X"),
    ]
    for at, (sex, age, vendor) in enumerate(said):
        make_dicom(
            np.full((16, 16), 40 + at, np.uint8), f"dicom/{at}.dcm", PatientID=f"p{at}", PatientSex=sex, PatientAge=age,
            Manufacturer=vendor, SOPInstanceUID=f"1.4.{at}", WindowCenter="128", WindowWidth="256",
        )  # fmt: skip
    spec = CohortSpec(
        kind="dicom",
        root=tmp_path / "dicom",
        subgroup_tags={"sex": "PatientSex", "age": "PatientAge", "vendor": "Manufacturer"},
        subgroup_map={"sex": {"F": "female", "M": "male"}},
    )
    for _ in range(2):
        cohort = read(spec, tmp_path, SEX, AGE, VENDOR, inputs=ImageInput(size=16))
        assert groups(cohort, "sex") == [0, 1, -1, -1]
        assert groups(cohort, "age") == [0, 1, -1, -1]
        assert groups(cohort, "vendor") == [0, 1, -1, -1]
    assert not read(spec, tmp_path, inputs=ImageInput(size=16)).subgroups


def test_a_labels_table_says_it_of_images_once(make_dicom: Any, tmp_path: Path) -> None:
    for at in range(3):
        make_dicom(
            np.full((16, 16), 40 + at, np.uint8), f"dicom/{at}.dcm", PatientID=f"p{at // 2}",
            SOPInstanceUID=f"1.4.{at}", WindowCenter="128", WindowWidth="256",
        )  # fmt: skip
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,cls,sex\np0,no,female\np1,yes,male\n", encoding="utf-8")
    spec = CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=labels)
    assert groups(read(spec, tmp_path, SEX, inputs=ImageInput(size=16)), "sex") == [0, 0, 1]
    labels.write_text("PatientID,cls,sex\np0,no,female\np1,yes,male\np0,no,male\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 4: an earlier line has the same patient in another subgroup"):
        read(spec, tmp_path, SEX, inputs=ImageInput(size=16))


def test_images_without_a_table_have_nothing_that_says_it(make_dicom: Any, tmp_path: Path) -> None:
    make_dicom(np.full((16, 16), 40, np.uint8), "dicom/0.dcm", WindowCenter="128", WindowWidth="256")
    with pytest.raises(DataError, match=r"nothing says the subgroup 'sex'.*`labels` or a tag .* `subgroup_tags`"):
        read(CohortSpec(kind="dicom", root=tmp_path / "dicom"), tmp_path, SEX, inputs=ImageInput(size=16))


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_file_of_features_says_it_beside_them(tmp_path: Path, suffix: str) -> None:
    path, sexes = tmp_path / f"f{suffix}", ["male", "female", "male"]
    if suffix == ".csv":
        path.write_text("cls,sex,e0,e1\n" + "".join(f"no,{sex},{at},1\n" for at, sex in enumerate(sexes)))
    else:
        np.savez(path, features=np.eye(3, 2, dtype=np.float32), cls=np.array(["no"] * 3), sex=np.array(sexes))
    extractor = Extractor(name="x", weights="0" * 64, preprocessing="none")
    spec = CohortSpec(kind="features", root=path, extractor=extractor)
    cohort = read(spec, tmp_path, SEX, inputs=FeaturesInput(kind="features", count=2, extractor=extractor))
    assert groups(cohort, "sex") == [1, 0, 1]
