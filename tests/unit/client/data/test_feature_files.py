"""Features from files of every kind: the same numbers, the same people, and never those of two extractors together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.feature_files import numbered
from fedgraft.client.data.decoding.unusable import FaultyError
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError, StudyError
from fedgraft.common.study.inputs import Extractor, FeaturesInput, SplitSpec
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task

MADE = {"name": "dino", "weights": "a" * 64, "preprocessing": "224 px, ImageNet's mean and std"}
WIDTH = 12
FEATURES = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)
COLUMNS = {
    "path": [f"{'ab'[at % 2]}/{at}.png" for at in range(8)],
    "who": [f"P{at // 2}" for at in range(8)],
    "cls": ["a", "b", "", "b", "a", "a", "b", "b"],
    "part": ["train", "train", "val", "val", "test", "test", "train", "train"],
    "age": [40, 41, 42, 43, 44, 45, 46, 47],
}
TASK = Task(classes=("a", "b"))


def as_npz(path: Path, features=FEATURES, columns=COLUMNS, made=MADE) -> Path:
    arrays = {name: np.array(column) for name, column in columns.items()} | {"features": features}
    np.savez(path, **arrays | ({"extractor": np.array(json.dumps(made))} if made else {}))
    return path


def as_safetensors(path: Path) -> Path:
    texts = {name: column for name, column in COLUMNS.items() if name != "age"}
    tensors = {"features": FEATURES.astype(np.float16).astype(np.float32), "age": np.array(COLUMNS["age"])}
    tensors["features"] = FEATURES
    save_file(tensors, path, metadata={"extractor": json.dumps(MADE), "columns": json.dumps(texts)})
    return path


def as_parquet(path: Path, lists: bool = False) -> Path:
    columns = dict(reversed([(f"e{at}", FEATURES[:, at]) for at in range(WIDTH)]))
    columns = {"features": FEATURES.tolist()} if lists else columns
    table = pa.table({**COLUMNS, **columns}).replace_schema_metadata({"fedgraft.extractor": json.dumps(MADE)})
    parquet.write_table(table, path)
    return path


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "extra", *(f"e{at}" for at in reversed(range(WIDTH)))])
        for at in range(8):
            numbers = [repr(float(number)) for number in FEATURES[at, ::-1]]
            writer.writerow([*(column[at] for column in COLUMNS.values()), "note", *numbers])
    return path


def load(path: Path, folder: Path, count: int = WIDTH, made=MADE, **spec) -> Cohort:
    inputs = FeaturesInput(count=count, extractor=Extractor(**made))
    wanted = CohortRequest([TASK], inputs, SplitSpec(), 0)
    place = Place(folder / "state", folder / "cache", b"secret")
    return load_cohort("north", CohortSpec(kind="features", root=path, **spec), wanted, place)


WRITERS = {
    "f.npz": as_npz,
    "f.safetensors": as_safetensors,
    "f.parquet": as_parquet,
    "lists.parquet": lambda path: as_parquet(path, lists=True),
    "f.csv": as_csv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_cohort(tmp_path, name):
    own = {"extractor": MADE} if name.endswith(".csv") else {}
    path = WRITERS[name](tmp_path / name)
    cohort = load(path, tmp_path, patient_column="who", split_column="part", **own)
    np.testing.assert_array_equal(cohort.inputs.numpy(), FEATURES)
    assert cohort.targets["cls"].tolist() == [0, 1, -1, 1, 0, 0, 1, 1]
    assert len(set(cohort.patients)) == 4
    assert {split: at.tolist() for split, at in cohort.splits.items()} == {
        "train": [0, 1, 6, 7],
        "val": [2, 3],
        "test": [4, 5],
    }


def test_labels_of_a_table_and_of_folders(tmp_path):
    bare = {name: column for name, column in COLUMNS.items() if name in {"path", "who"}}
    path = as_npz(tmp_path / "f.npz", columns=bare)
    assert load(path, tmp_path / "1").targets["cls"].tolist() == [0, 1] * 4
    (tmp_path / "l.csv").write_text("patient,cls\nP0,b\nP2,a\nP9,a\n")
    columns = {name: column for name, column in COLUMNS.items() if name == "path"} | {"patient_id": COLUMNS["who"]}
    path = as_npz(tmp_path / "g.npz", columns=columns)
    joined = load(path, tmp_path / "2", labels=tmp_path / "l.csv", patient_column="patient_id")
    assert joined.targets["cls"].tolist() == [1, 1, -1, -1, 0, 0, -1, -1]
    assert {one.reason: one.count for one in joined.problems} == {"no_label_row": 4, "label_without_file": 1}
    listed = load(path, tmp_path / "3", labels=tmp_path / "l.csv", patient_column="patient_id", cases="listed")
    assert listed.targets["cls"].tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(listed.inputs.numpy(), FEATURES[[0, 1, 4, 5]])
    assert {one.reason: one.count for one in listed.problems} == {"not_listed": 4, "label_without_file": 1}


def test_without_path_and_patient_equal_features_are_one_patient(tmp_path):
    twice = np.concatenate([FEATURES[:4], FEATURES[:4]])
    cohort = load(as_npz(tmp_path / "f.npz", features=twice, columns={"cls": COLUMNS["cls"]}), tmp_path)
    assert len(set(cohort.patients)) == 4


@pytest.mark.parametrize("key", MADE)
def test_features_of_another_extractor_are_refused(tmp_path, key):
    path = as_npz(tmp_path / "f.npz")
    other = MADE | {key: "b" * 64}
    with pytest.raises(DataError, match=rf"f\.npz: its features were made otherwise than the study asks: {key} is "):
        load(path, tmp_path, made=other)
    with pytest.raises(DataError, match=f"says otherwise than `extractor` of the cohort.*: {key} differ"):
        load(path, tmp_path, extractor=other)


def test_features_of_nobody_knows_what_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not say what made its features"):
        load(as_npz(tmp_path / "f.npz", made=None), tmp_path)
    assert len(load(tmp_path / "f.npz", tmp_path, extractor=MADE).inputs) == 8
    with pytest.raises(DataError, match="what it says of its extractor is not name"):
        load(as_npz(tmp_path / "g.npz", made={"name": "dino"}), tmp_path)


def test_columns_go_by_their_number_and_none_may_be_missing():
    assert numbered(["extra", "e10", "e2", *(f"e{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8, 9)), "encounter"], "e*") == [
        f"e{number}" for number in range(11)
    ]
    assert numbered(["f_002_x", "f_001_x"], "f_*_x") == ["f_001_x", "f_002_x"]
    for names, message in ((["e0", "e2"], "number 1 is missing"), (["e2", "e3"], "number 0"), (["x"], "no column")):
        with pytest.raises(FaultyError, match=message):
            numbered(names, "e*")


def bad_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_wrong_is_named(tmp_path):
    hole = FEATURES.copy()
    hole[5, 3] = np.nan
    for arrays, message in (
        ({"features": hole}, "row 5, feature 3: is no finite number"),
        ({"features": FEATURES, "who": np.array(["x"])}, "'who' has 1 rows, and 'features' 8"),
        ({"features": FEATURES[0]}, r"of shape \(12,\), not \(cases, width\)"),
        ({"features": FEATURES.astype(object)}, "holds Python objects"),
        ({"x": FEATURES}, "has no array 'features'; it has: x"),
        ({"features": FEATURES[:, :5]}, "has 5 features a case, and the study asks for 12"),
    ):
        with pytest.raises(DataError, match=rf"f\.npz.*{message}"):
            load(bad_npz(tmp_path / "f.npz", **arrays), tmp_path)
    for name in ("f.safetensors", "f.parquet", "f.npz"):
        (tmp_path / name).write_bytes(b"\xff" * 300)
        with pytest.raises(DataError, match=rf"{name}: cannot be used as features \(unreadable\)"):
            load(tmp_path / name, tmp_path)
    text = as_csv(tmp_path / "f.csv").read_text().replace(repr(float(FEATURES[2, 4])), "abc")
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(DataError, match=r"f\.csv, line 4, column 'e4': is no finite number"):
        load(tmp_path / "f.csv", tmp_path, extractor=MADE)
    with pytest.raises(DataError, match=r"f\.txt: cannot be read: No such file"):
        load(tmp_path / "f.txt", tmp_path)
    (tmp_path / "f.txt").touch()
    with pytest.raises(DataError, match="is no file of features"):
        load(tmp_path / "f.txt", tmp_path)


def test_a_safetensors_header_that_lies_costs_nothing(tmp_path):
    head = json.dumps({"features": {"dtype": "F32", "shape": [1 << 40, 12], "data_offsets": [0, 48]}}).encode()
    (tmp_path / "f.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 48)
    with pytest.raises(DataError, match="cannot be used as features"):
        load(tmp_path / "f.safetensors", tmp_path)


def test_the_study_says_how_many_and_by_what_and_may_give_one_scale_for_all(tmp_path):
    base = {"name": "f", "tasks": [{"classes": ["a", "b"]}], "model": {"backbone": "table_linear", "weights": None}}
    asked = {"kind": "features", "count": 3, "extractor": MADE}
    study = Study.parse(base | {"input": asked, "method": "fedavg"})
    assert study.plan[0].aggregate.kind == "standardise"
    assert Study.parse(json.loads(study.to_json())).digest == study.digest
    assert "e0" not in study.to_json().decode()
    scaled = asked | {"standardise": {"mean": 1, "std": 2}}
    whole = Study.parse(base | {"input": scaled, "method": "fedavg"})
    assert whole.plan[0].aggregate.kind != "standardise"
    assert whole.input.public_scale() == ([1.0] * 3, [2.0] * 3)
    assert whole.digest != study.digest
    other = asked | {"extractor": MADE | {"weights": "c" * 64}}
    assert Study.parse(base | {"input": other, "method": "fedavg"}).digest != study.digest
    for wrong in ({"numeric": ["age"]}, {"extractor": None}, {"count": 0}):
        with pytest.raises(StudyError):
            Study.parse(base | {"input": asked | wrong, "method": "fedavg"})
