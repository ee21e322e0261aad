"""From a site's folder to its cohort: joins, counts, splits, and the cache that saves decoding twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.data.cohorts.cohort import (
    Cohort,
    CohortRequest,
    Place,
    load_cohort,
)
from fedgraft.client.data.readers import dicom
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task

TASK = Task(name="cls", classes=("no", "yes"))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path / "state", tmp_path / "cache", b"secret")


@pytest.fixture
def wanted() -> CohortRequest:
    return CohortRequest([TASK], ImageInput(size=16), SplitSpec(), 0)


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The files that were decoded."""
    calls, real = [], dicom.read_dicom
    monkeypatch.setattr(dicom, "read_dicom", lambda path, *rest: calls.append(path) or real(path, *rest))
    return calls


@pytest.fixture
def clinic(make_dicom, tmp_path):
    """Eight images of four patients, each with its study, series and SOP UID; file n is n*10 grey on the left."""
    for n in range(8):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[:, :8] = 20 + n * 10
        make_dicom(
            pixels, f"dicom/p{n // 2}/{n}.dcm", PatientID=f"MRN{n // 2}", StudyInstanceUID=f"1.2.{n // 2}",
            SeriesInstanceUID=f"1.3.{n}", SOPInstanceUID=f"1.4.{n}", WindowCenter="128", WindowWidth="256",
        )  # fmt: skip
    return tmp_path / "dicom"


def write_labels(tmp_path, rows):
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    return path


JOINS = {
    "patient": [("patient_id", "cls"), ("MRN0", "no"), ("MRN1", "yes"), ("MRN2", "no"), ("MRN3", "")],
    "study": [("StudyInstanceUID", "label"), ("1.2.0", "no"), ("1.2.1", "yes"), ("1.2.2", "no"), ("1.2.3", "NA")],
    "series": [("series", "diagnosis"), *((f"1.3.{n}", ("no", "yes", "no", "")[n // 2]) for n in range(8))],
    "sop": [("sop", "cls"), *((f"1.4.{n}", ("no", "yes", "no", "")[n // 2]) for n in range(8))],
    "path": [("path", "cls"), *((f"./p{n // 2}/{n}.dcm", ("no", "yes", "no", "")[n // 2]) for n in range(8))],
}


@pytest.mark.parametrize("join", JOINS)
def test_labels_are_joined(clinic, tmp_path, wanted, place, join):
    spec = CohortSpec(kind="dicom", root=clinic, labels=write_labels(tmp_path, JOINS[join]), join=join)
    cohort = load_cohort("north", spec, wanted, place)
    assert cohort.targets["cls"].tolist() == [0, 0, 1, 1, 0, 0, -1, -1]
    assert len(set(cohort.patients)) == 4
    assert [cohort.patients[at] for at in (0, 2, 4, 6)] == [cohort.patients[at] for at in (1, 3, 5, 7)]
    assert not cohort.problems
    first_column = (cohort.inputs[:, 0, 0, 0].to(torch.int32) + 32768) / 65535
    np.testing.assert_allclose(first_column, (20 + np.arange(8) * 10) / 255, atol=1e-4)


def test_rows_and_files_without_the_other_are_counted(clinic, tmp_path, wanted, place):
    labels = write_labels(tmp_path, [("patient", "cls"), ("MRN0", "no"), ("MRN1", "yes"), ("MRN9", "yes")])
    cohort = load_cohort("north", CohortSpec(kind="dicom", root=clinic, labels=labels), wanted, place)
    assert cohort.targets["cls"].tolist() == [0, 0, 1, 1, -1, -1, -1, -1]
    assert {p.reason: p.count for p in cohort.problems} == {"no_label_row": 4, "label_without_file": 1}


def test_contradicting_rows_are_refused(clinic, tmp_path, wanted, place):
    rows = [("patient", "cls"), ("MRN0", "no"), ("MRN0", "no"), ("MRN0", "yes")]
    spec = CohortSpec(kind="dicom", root=clinic, labels=write_labels(tmp_path, rows))
    with pytest.raises(DataError, match=r"labels\.csv, line 4: an earlier line has the same patient"):
        load_cohort("north", spec, wanted, place)


def test_files_without_patient_are_one_patient_without_a_label(make_dicom, tmp_path, wanted, place):
    for n in range(3):
        make_dicom(np.full((16, 16), n, np.uint8), f"dicom/{n}.dcm", PatientID="", SOPInstanceUID=f"1.{n}")
    labels = write_labels(tmp_path, [("patient", "cls"), ("", "yes")])
    cohort = load_cohort("n", CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=labels), wanted, place)
    assert len(set(cohort.patients)) == 1
    assert cohort.targets["cls"].tolist() == [-1, -1, -1]
    assert sum(len(at) > 0 for at in cohort.splits.values()) == 1


def test_duplicates_and_hidden_files(clinic, wanted, place):
    (clinic / "copy.dcm").write_bytes((clinic / "p0" / "0.dcm").read_bytes())
    (clinic / ".trash").mkdir()
    (clinic / ".trash" / "x.dcm").write_bytes((clinic / "p0" / "1.dcm").read_bytes())
    cohort = load_cohort("n", CohortSpec(kind="dicom", root=clinic), wanted, place)
    assert len(cohort.inputs) == 8
    assert {p.reason: p.count for p in cohort.problems} == {"duplicate": 1, "hidden": 1}


def test_nothing_usable_says_why(tmp_path, make_dicom, wanted, place):
    make_dicom(np.zeros((4, 4), np.uint8), "dicom/a.dcm", BurnedInAnnotation="YES")
    (tmp_path / "dicom" / "b.dcm").write_bytes(b"")
    (tmp_path / "dicom" / "c.dcm").write_bytes(b"")
    with pytest.raises(DataError, match="burned_in_annotation 1, empty_file 2"):
        load_cohort("north", CohortSpec(kind="dicom", root=tmp_path / "dicom"), wanted, place)
    assert (place.state / "left_out.csv").read_text().count("\n") == 4
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no files"):
        load_cohort("north", CohortSpec(kind="dicom", root=tmp_path / "void"), wanted, place)
    with pytest.raises(DataError, match="is no folder"):
        load_cohort("north", CohortSpec(kind="dicom", root=tmp_path / "absent"), wanted, place)


def test_a_cohort_of_the_wrong_kind_is_refused(clinic, place):
    table = CohortRequest([TASK], TableInput(numeric=("a",)), SplitSpec(), 0)
    with pytest.raises(DataError, match="of kind dicom, but the study's input is table"):
        load_cohort("north", CohortSpec(kind="dicom", root=clinic), table, place)


def same(one: Cohort, other: Cohort) -> bool:
    return (
        torch.equal(one.inputs, other.inputs)
        and all(torch.equal(one.targets[task], other.targets[task]) for task in one.targets)
        and (one.patients, one.problems, one.facts) == (other.patients, other.problems, other.facts)
    )


def test_the_second_time_nothing_is_decoded(clinic, tmp_path, wanted, place, decoded):
    (clinic / "broken.dcm").write_bytes(b"")
    spec = CohortSpec(kind="dicom", root=clinic, labels=write_labels(tmp_path, JOINS["patient"]))
    first = load_cohort("north", spec, wanted, place)
    assert len(decoded) == 9
    listed = (place.state / "left_out.csv").read_text()
    (place.state / "left_out.csv").unlink()
    second = load_cohort("north", spec, wanted, place)
    assert len(decoded) == 9
    assert same(first, second)
    assert (place.state / "left_out.csv").read_text() == listed
    assert "broken.dcm" in listed
    assert place.cache.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in place.cache.iterdir()} == {0o600}


CHANGES = ["byte", "new file", "gone file", "label", "size", "window", "frames", "classes", "secret"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_decodes_again(clinic, tmp_path, wanted, place, decoded, change):
    spec = CohortSpec(kind="dicom", root=clinic, labels=write_labels(tmp_path, JOINS["patient"]))
    load_cohort("north", spec, wanted, place)
    decoded.clear()
    file = clinic / "p3" / "7.dcm"
    if change == "byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif change == "new file":
        (clinic / "text.txt").write_text("x")
    elif change == "gone file":
        file.unlink()
    elif change == "label":
        stat = spec.labels.stat()
        spec.labels.write_text(spec.labels.read_text().replace("MRN0,no", "MRN0,yes"))
        os.utime(spec.labels, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "secret":
        place = Place(tmp_path / "another", place.cache, b"other")  # splits are sealed with it too
    elif change == "size":
        wanted = CohortRequest([TASK], ImageInput(size=32), SplitSpec(), 0)
    elif change == "classes":
        wanted = CohortRequest([Task(name="cls", classes=("yes", "no"))], wanted.input, SplitSpec(), 0)
    else:
        other = {"frames": "first"} if change == "frames" else {"window": {"center": 50, "width": 9}}
        spec = CohortSpec.model_validate(spec.model_dump() | other)
    cohort = load_cohort("north", spec, wanted, place)
    assert len(decoded) == 8 - (change == "gone file") + (change == "new file")
    if change in ("label", "classes"):
        assert cohort.targets["cls"].tolist()[:4] == [1, 1, 1, 1] if change == "label" else [1, 1, 0, 0]


def test_what_does_not_matter_decodes_nothing(clinic, wanted, place, decoded):
    spec = CohortSpec(kind="dicom", root=clinic)
    load_cohort("north", spec, wanted, place)
    decoded.clear()
    load_cohort("north", spec, CohortRequest([TASK], ImageInput(size=16, normalise="fixed"), SplitSpec(), 0), place)
    assert not decoded


DAMAGES = [(suffix, damage) for suffix in ("npy", "json") for damage in ("cut", "empty", "flip", "gone", "garbage")]


@pytest.mark.parametrize("where_and_how", DAMAGES, ids="-".join)
def test_a_damaged_cache_is_rebuilt(clinic, tmp_path, wanted, place, decoded, where_and_how):
    suffix, damage = where_and_how
    spec = CohortSpec(kind="dicom", root=clinic, labels=write_labels(tmp_path, JOINS["patient"]))
    first = load_cohort("north", spec, wanted, place)
    wanted_again = Cohort(**{**vars(first), "inputs": first.inputs.clone()})
    file = next(place.cache.glob(f"*.{suffix}"))
    content = bytearray(file.read_bytes())
    if damage == "flip" and suffix == "json":
        content = bytearray(bytes(content).replace(b"[0, 0, 1", b"[1, 0, 1"))
    elif damage == "flip":
        content[-5] ^= 1
    replaced = {"cut": content[: len(content) // 2], "empty": b"", "garbage": b"PK\x03\x04" + os.urandom(99)}
    file.unlink()
    if damage != "gone":
        file.write_bytes(bytes(replaced.get(damage, content)))
    decoded.clear()
    assert same(load_cohort("north", spec, wanted, place), wanted_again)
    assert len(decoded) == 8
    load_cohort("north", spec, wanted, place)
    assert len(decoded) == 8


def test_no_patient_is_in_two_splits(make_dicom, tmp_path, wanted, place):
    """Several images of each patient, also with several labels."""
    rows = [("sop", "cls")]
    for n in range(60):
        make_dicom(np.full((16, 16), n, np.uint8), f"dicom/{n:02}.dcm", PatientID=f"P{n % 20}", SOPInstanceUID=f"1.{n}")
        rows.append((f"1.{n}", ("no", "yes")[n % 3 == 0]))
    spec = CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=write_labels(tmp_path, rows), join="sop")
    cohort = load_cohort("n", spec, replace(wanted, rule="stratified"), place)
    who = [{cohort.patients[at] for at in positions.tolist()} for positions in cohort.splits.values()]
    assert [len(patients) for patients in who] == [12, 3, 5]
    assert len(set.union(*who)) == 20
    assert sum(len(positions) for positions in cohort.splits.values()) == 60
    assert cohort.summary()["patients"] == {"train": 12, "val": 3, "test": 5}


def test_frames_stay_with_their_patient(make_dicom, tmp_path, wanted, place):
    make_dicom(np.zeros((5, 16, 16), np.uint8), "dicom/a.dcm", PatientID="A")
    cohort = load_cohort("n", CohortSpec(kind="dicom", root=tmp_path / "dicom", frames="all"), wanted, place)
    assert len(cohort.inputs) == 5
    assert len(set(cohort.patients)) == 1


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), value, np.uint8)).save(path)


def test_folders_are_classes(tmp_path, wanted, place):
    for n, folder in enumerate(("no", "yes", "no")):
        write_image(tmp_path / "images" / folder / f"{n}.png", 50 * n)
    (tmp_path / "images" / "no" / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "images" / "no" / "notes.txt").write_text("x")
    cohort = load_cohort("n", CohortSpec(kind="images", root=tmp_path / "images"), wanted, place)
    assert Counter(cohort.targets["cls"].tolist()) == {0: 2, 1: 1}
    assert {p.reason: p.count for p in cohort.problems} == {"unreadable": 1, "not_an_image": 1}
    write_image(tmp_path / "images" / "maybe" / "9.png", 3)
    with pytest.raises(DataError, match=r"sub-folder .* is no class of task 'cls'"):
        load_cohort("n", CohortSpec(kind="images", root=tmp_path / "images"), wanted, place)


def test_a_table_names_labels_and_patients_of_images(tmp_path, wanted, place):
    for n in range(4):
        write_image(tmp_path / "images" / f"{n}.png", 50 * n)
    rows = [("file", "who", "cls"), ("0.png", "A", "no"), ("1.png", "A", "yes"), ("./2.png", "B", "no")]
    spec = CohortSpec(
        kind="images", root=tmp_path / "images", labels=write_labels(tmp_path, rows), patient_column="who"
    )
    cohort = load_cohort("n", spec, wanted, place)
    assert cohort.targets["cls"].tolist() == [0, 1, 0, -1]
    assert cohort.patients[0] == cohort.patients[1]
    assert len(set(cohort.patients)) == 3
    rows.append(("2.png", "C", "no"))
    write_labels(tmp_path, rows)
    with pytest.raises(DataError, match="line 5: an earlier line has the same path with another patient"):
        load_cohort("n", spec, wanted, place)


def test_tables_become_cohorts(tmp_path, place):
    path = tmp_path / "t.csv"
    path.write_text("who,cls,a\nx,no,1\nx,yes,2\ny,no,\n")
    spec = CohortSpec(kind="table", root=path, patient_column="who")
    columns = TableInput(numeric=("a",))
    cohort = load_cohort("n", spec, CohortRequest([TASK], columns, SplitSpec(), 0), place)
    assert cohort.targets["cls"].tolist() == [0, 1, 0]
    assert cohort.patients[0] == cohort.patients[1] != cohort.patients[2]
    np.testing.assert_array_equal(to_float(cohort.inputs, columns), [[1], [2], [np.nan]])


def test_the_model_sees_normalised_images():
    stored = torch.tensor([[[[-32768, 32767], [-32768, 32767]]]], dtype=torch.int16)
    torch.testing.assert_close(to_float(stored, ImageInput(size=16)).flatten(), torch.tensor([-1.0, 1, -1, 1]))
    fixed = ImageInput(size=16, normalise="fixed", mean=(0.25,), std=(0.5,))
    torch.testing.assert_close(to_float(stored, fixed).flatten(), torch.tensor([-0.5, 1.5, -0.5, 1.5]))
    black = torch.full((1, 1, 4, 4), -32768, dtype=torch.int16)
    assert not to_float(black, ImageInput(size=16)).any()


def test_problems_travel_as_words_only(clinic, wanted, place):
    cohort = load_cohort("n", CohortSpec(kind="dicom", root=clinic), wanted, place)
    assert json.dumps(cohort.summary())
