"""What real folders and tables hold: odd names, files set back in time, rows put in between, settings nobody reads."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedgraft.client.data.cohorts.cohort import (
    Cohort,
    CohortRequest,
    Place,
    load_cohort,
)
from fedgraft.client.data.decoding.images import read_images
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task

TASK = Task(name="cls", classes=("no", "yes"))


def read_image(path: Path) -> np.ndarray:
    (image,) = read_images(path, "middle").frames
    return image


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "state", tmp_path / "cache", b"secret of the site")


def load(spec: CohortSpec, place: Place) -> Cohort:
    columns = TableInput(numeric=("a",)) if spec.kind == "table" else ImageInput(size=16)
    return load_cohort("north", spec, CohortRequest([TASK], columns, SplitSpec(), 0), place)


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return path


def problems(cohort: Cohort) -> dict[str, int]:
    return {problem.reason: problem.count for problem in cohort.problems}


def test_names_that_are_no_text(tmp_path, place):
    """Archives of old systems hold names in Latin-1; they are used, and listed if they cannot be."""
    folder = picture(tmp_path / "images" / "yes" / "a.png").parent
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.png"))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.png")).write_bytes(b"")
    cohort = load(CohortSpec(kind="images", root=tmp_path / "images"), place)
    assert len(cohort.inputs) == 1
    assert problems(cohort) == {"empty_file": 1}
    assert len(load(CohortSpec(kind="images", root=tmp_path / "images"), place).inputs) == 1


def test_the_list_of_what_was_left_out_is_a_table(tmp_path, place):
    picture(tmp_path / "images" / "yes" / "a.png")
    (tmp_path / "images" / 'the "best", really.txt').write_text("x")
    load(CohortSpec(kind="images", root=tmp_path / "images"), place)
    with (place.state / "left_out.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["file", "reason"], ['the "best", really.txt', "not_an_image"]]


def test_a_file_replaced_by_one_of_equal_size_and_time_is_decoded_again(tmp_path, place):
    spec = CohortSpec(kind="images", root=tmp_path / "images")
    file = picture(tmp_path / "images" / "yes" / "a.bmp", 0)
    before, first = file.stat(), load(spec, place).inputs.clone()
    picture(file, 200)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert (load(spec, place).inputs > first).all()


@pytest.mark.parametrize("inside", ["cache", "state"])
def test_the_sites_own_folders_are_not_in_the_cohort(tmp_path, place, inside):
    """Else the cohort would change by being read, and be decoded anew every time."""
    root = picture(tmp_path / "images" / "yes" / "a.png").parent.parent
    folders = {"state": place.state, "cache": place.cache} | {inside: root / "yes" / "own"}
    with pytest.raises(DataError, match="own: is inside the cohort's own folder"):
        load(CohortSpec(kind="images", root=root), Place(secret=place.secret, **folders))


def test_rows_put_in_between_move_nobody_and_neither_do_corrected_labels(tmp_path, place):
    path, numbers = tmp_path / "t.csv", list(range(40))

    def where(order: list[int], flip: int = -1) -> dict[float, str]:
        cells = (f"{number},{'no' if (number % 2 == 0) != (number == flip) else 'yes'}" for number in order)
        path.write_text("\n".join(["a,cls", *cells]) + "\n")
        cohort = load(CohortSpec(kind="table", root=path), place)
        return {float(cohort.inputs[at, 0]): split for split, found in cohort.splits.items() for at in found.tolist()}

    before = where(numbers)
    assert len(before) == 40
    after = where([100, *numbers[:20], 101, *numbers[20:]])
    assert {number: after[number] for number in before} == before
    assert where(numbers[::-1]) == before
    assert where(numbers, flip=7) == before


def test_equal_rows_are_never_in_two_splits(tmp_path, place):
    path = tmp_path / "t.csv"
    path.write_text("a,cls\n" + "".join(f"{number % 10},{'yes' if number % 2 else 'no'}\n" for number in range(100)))
    cohort = load(CohortSpec(kind="table", root=path), place)
    seen = [set(cohort.inputs[found, 0].tolist()) for found in cohort.splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 10


def test_cases_whose_patient_is_not_said_stay_together_and_are_counted(tmp_path, place):
    for number in range(6):
        picture(tmp_path / "images" / f"{number}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,who,cls\n0.png,A,no\n1.png,A,no\n2.png,,yes\n3.png,,yes\n4.png,B,no\n")
    spec = CohortSpec(kind="images", root=tmp_path / "images", labels=labels, patient_column="who")
    cohort = load(spec, place)
    assert len(set(cohort.patients)) == 3
    assert cohort.patients[2] == cohort.patients[3] == cohort.patients[5]  # blank, blank, not in the table
    assert problems(cohort)["no_patient_id"] == 3
    path = tmp_path / "t.csv"
    path.write_text("a,who,cls\n1,x,no\n2,,no\n3,,yes\n")
    table = load(CohortSpec(kind="table", root=path, patient_column="who"), Place(tmp_path / "s", place.cache, b"k"))
    assert table.patients[1] == table.patients[2] != table.patients[0]
    assert problems(table) == {"no_patient_id": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "images", "patient_column": "who"}, "patient_column needs `labels`"),
        ({"kind": "dicom", "patient_column": "who"}, "DICOM files name their patient"),
        ({"kind": "table", "labels": "l.csv"}, "a table holds its own"),
        ({"kind": "images", "window": {"center": 1, "width": 2}}, "window does not apply to a cohort of kind images"),
    ],
)
def test_a_setting_that_nobody_would_read_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        CohortSpec.model_validate({"root": "data"} | settings)


def test_all_such_settings_are_named_at_once():
    settings = {"kind": "images", "root": "x", "patient_column": "who", "window": {"center": 1, "width": 2}}
    with pytest.raises(ValidationError, match=r"(?s)window does not apply.*patient_column needs"):
        CohortSpec.model_validate(settings)


def test_numbers_in_yaml_can_be_labels(tmp_path, place):
    path = tmp_path / "t.csv"
    path.write_text("a,cls\n1,0\n2,1\n")
    spec = CohortSpec.model_validate({"kind": "table", "root": path, "label_map": {"cls": {0: "no", 1: "yes"}}})
    assert load(spec, place).targets["cls"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("white_is_zero", [True, False])
def test_polarity_of_tiff(tmp_path, kind, white_is_zero):
    """Bytes of the strip written here: Pillow's own writer turns some kinds round and others not."""
    path, shades = tmp_path / "a.tif", np.array([[0, 10], [200, 255]], kind)
    Image.fromarray(shades).save(path, compression=None, tiffinfo={262: 0 if white_is_zero else 1})
    with Image.open(path) as image:
        assert image.tag_v2[262] == (0 if white_is_zero else 1)
        offset = image.tag_v2[273][0]
    content = bytearray(path.read_bytes())
    content[offset : offset + shades.nbytes] = shades.tobytes()
    path.write_bytes(content)
    share = shades / (255 if kind is np.uint8 else 65535)
    np.testing.assert_allclose(read_image(path), 1 - share if white_is_zero else share, atol=1e-6)
