"""A cohort's own split is used as it is: nobody is dealt out anew, nobody is on two sides, nothing is passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task

TASK = Task(classes=("a", "b"))
ROWS = [
    ("p1", "a", "train"),
    ("p1", "b", "Training"),
    ("p2", "a", "VAL"),
    ("p3", "b", "validation"),
    ("p4", "a", "test"),
    ("p5", "b", ""),
    ("p6", "a", "tuning"),
]


def load(spec: CohortSpec, folder: Path, seed: int = 0, rule=None) -> Cohort:
    inputs = TableInput(numeric=("x",)) if spec.kind == "table" else ImageInput(size=16)
    wanted = CohortRequest([TASK], inputs, SplitSpec(), seed, rule)
    return load_cohort("north", spec, wanted, Place(folder / "state", folder / "cache", b"secret"))


def table(folder: Path, rows=ROWS) -> CohortSpec:
    lines = [f"{who},{cls},{split},{at}" for at, (who, cls, split) in enumerate(rows)]
    (folder / "t.csv").write_text("\n".join(["id,cls,part,x", *lines]) + "\n")
    return CohortSpec(kind="table", root=folder / "t.csv", patient_column="id", split_column="part")


def pictures(folder: Path, **spec) -> CohortSpec:
    for at, (_, cls, _) in enumerate(ROWS):
        (folder / "im" / cls).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), at, np.uint8)).save(folder / "im" / cls / f"{at}.png")
    return CohortSpec(kind="images", root=folder / "im", **spec)


def split(cohort: Cohort) -> dict[str, list[int]]:
    return {name: at.tolist() for name, at in cohort.splits.items()}


WANTED = {"train": [0, 1], "val": [2, 3, 5], "test": [4]}


def problems(cohort: Cohort) -> dict[str, int]:
    return {one.reason: one.count for one in cohort.problems}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rule", [None, "independent", "stratified"])
def test_a_column_of_a_table_whatever_seed_and_rule(tmp_path, seed, rule):
    cohort = load(table(tmp_path), tmp_path, seed, rule)
    assert split(cohort) == WANTED
    assert (cohort.split_rule, problems(cohort)) == ("own", {"without_split": 1})
    assert cohort.inputs[:, 0].tolist() == [0, 1, 2, 3, 4, 6]  # the row without a split is not there
    assert split(load(table(tmp_path), tmp_path, seed + 7, rule)) == WANTED


def test_a_column_of_the_labels_table_and_a_file(tmp_path):
    lines = [f"{cls}/{at}.png,{cls},{part},{who}" for at, (who, cls, part) in enumerate(ROWS)]
    (tmp_path / "l.csv").write_text("\n".join(["path,cls,part,who", *lines]) + "\n")
    by_column = load(
        pictures(tmp_path, labels=tmp_path / "l.csv", patient_column="who", split_column="part"), tmp_path / "1"
    )
    # Files in order: a/0 a/2 a/4 a/6, then b/1 b/3 b/5; b/5 has no split.
    in_order = {"train": [0, 4], "val": [1, 3, 5], "test": [2]}
    assert split(by_column) == in_order
    (tmp_path / "s.csv").write_text(
        "\n".join(["file,split", *(f"{c}/{i}.png,{s}" for i, (_, c, s) in enumerate(ROWS))])
    )
    assert split(load(pictures(tmp_path, split_file=tmp_path / "s.csv"), tmp_path / "2")) == in_order
    (tmp_path / "w.csv").write_text("\n".join(["PatientID,split", *dict.fromkeys(f"{w},{s}" for w, _, s in ROWS[1:])]))
    by_patient = pictures(tmp_path, labels=tmp_path / "l.csv", patient_column="who", split_file=tmp_path / "w.csv")
    assert split(load(by_patient, tmp_path / "3")) == in_order


def test_files_whose_split_nobody_says_are_left_out_and_counted(tmp_path):
    (tmp_path / "s.csv").write_text("file,split\na/0.png,train\nb/1.png,test\n")
    cohort = load(pictures(tmp_path, split_file=tmp_path / "s.csv"), tmp_path)
    assert split(cohort) == {"train": [0], "val": [], "test": [1]}
    assert problems(cohort) == {"without_split": 5}


def test_a_patient_on_two_sides_is_refused_by_the_lines_and_not_by_name(tmp_path):
    rows = [*ROWS, ("p1", "a", "test"), ("p4", "b", "train")]
    with pytest.raises(DataError, match=r"2 patients have cases in two .*t\.csv, line 2, .*t\.csv, line 9") as refused:
        load(table(tmp_path, rows), tmp_path)
    assert "p1" not in str(refused.value)


def test_words_that_are_no_split_are_refused(tmp_path):
    rows = [("q", "a", "trian"), ("r", "a", "holdout2"), *ROWS]
    with pytest.raises(
        DataError, match=r"t\.csv, line 2, column 'part': is no split, and 1 more\. Write train"
    ) as refused:
        load(table(tmp_path, rows), tmp_path)
    assert "trian" not in str(refused.value)
    with pytest.raises(DataError, match=r"has no column for the split \('parts'\)"):
        load(table(tmp_path).model_copy(update={"split_column": "parts"}), tmp_path)


def test_who_was_split_before_does_not_move_in_silence(tmp_path):
    dealt = load(table(tmp_path).model_copy(update={"split_column": None}), tmp_path / "1")
    assert dealt.split_rule == "independent"
    with pytest.raises(DataError, match="split otherwise than the cohort's own split says"):
        load(table(tmp_path), tmp_path / "1")
    load(table(tmp_path), tmp_path / "2")
    with pytest.raises(DataError, match="split otherwise"):
        load(table(tmp_path).model_copy(update={"split_column": None}), tmp_path / "2")
    moved = [(who, cls, "test" if who == "p2" else part) for who, cls, part in ROWS]
    with pytest.raises(DataError, match="split otherwise"):
        load(table(tmp_path, moved), tmp_path / "2")
    more = load(table(tmp_path, [*ROWS, ("p9", "a", "test")]), tmp_path / "2")
    assert split(more) == WANTED | {"test": [4, 6]}


def test_a_column_that_nobody_could_look_up_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="split_column needs `labels` or `split_file`"):
        CohortSpec(kind="images", root=tmp_path, split_column="part")
