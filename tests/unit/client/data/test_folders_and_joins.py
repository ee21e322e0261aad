"""No folder vanishes, and a table that does not meet its files says what kind of difference it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.cohorts.folders import files, walk
from fedgraft.client.data.decoding.decoder import read_images
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.joins import IN_WORDS, WAYS, differences
from fedgraft.client.inference.cases import Reading, read_cases
from fedgraft.client.preflight.report import Level
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Segmentation, Task
from helpers.site_home import Hospital

NOBODY = 65534


def picture(path: Path, value: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return path


def load(spec: CohortSpec, tmp_path: Path) -> Cohort:
    wanted = CohortRequest([Task(classes=("none", "nodule"))], ImageInput(size=16), SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(tmp_path / "state", tmp_path / "cache", b"secret"))


def problems(cohort: Cohort) -> dict[str, int]:
    return {problem.reason: problem.count for problem in cohort.problems}


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files(root)]


def test_folders_behind_links_are_read(tmp_path):
    picture(tmp_path / "elsewhere" / "deep" / "b.png")
    root = picture(tmp_path / "images" / "none" / "a.png").parent.parent
    (root / "nodule").symlink_to(tmp_path / "elsewhere")
    cohort = load(CohortSpec(kind="images", root=root), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 0]
    assert not cohort.problems
    assert names(root) == ["nodule/deep/b.png", "none/a.png"]


def test_a_link_to_the_folder_itself_or_one_in_it_is_not_read_twice(tmp_path):
    root = picture(tmp_path / "images" / "none" / "a.png").parent.parent
    (root / "a_copy").symlink_to(root / "none")
    (root / "none" / "up").symlink_to(root)
    (root / "twice").symlink_to(root / "a_copy")
    assert names(root) == ["none/a.png"]
    cohort = load(CohortSpec(kind="images", root=root), tmp_path)
    assert problems(cohort) == {"folder_there_twice": 3}
    assert '"none/up",folder_there_twice' in (tmp_path / "state" / "left_out.csv").read_text()


def test_broken_links_hidden_entries_and_pipes_are_counted(tmp_path):
    root = picture(tmp_path / "images" / "none" / "a.png").parent.parent
    (root / "none" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    picture(root / "none" / ".trash" / "b.png")
    (root / "none" / "._a.png").write_bytes(b"what a Mac leaves")
    os.mkfifo(root / "none" / "pipe.png")
    cohort = load(CohortSpec(kind="images", root=root), tmp_path)
    assert problems(cohort) == {"broken_link": 1, "hidden": 2, "special_file": 1}
    assert [one.problem for one in read_cases(root, ImageInput(size=16), Reading()).all] == [
        "",
        "broken_link",
        "special_file",
    ]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another account can reach, as pytest's own cannot be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for own in ("state", "cache"):
        (folder / own).mkdir()
        (folder / own).chmod(0o777)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def somebody_else(tmp_path: Path) -> Iterator[None]:
    """Within the test this process is not root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    read_images(picture(tmp_path / "before.png"), "middle")  # starts the process that decodes, as long as we may
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)


def test_folders_and_files_without_the_right_to_read_are_counted(open_folder, request):
    root = picture(open_folder / "images" / "none" / "a.png").parent.parent
    picture(root / "none" / "closed.png").chmod(0)
    picture(root / "ward" / "b.png").parent.chmod(0)
    request.getfixturevalue("somebody_else")
    cohort = load(CohortSpec(kind="images", root=root), open_folder)
    assert problems(cohort) == {"folder_without_right": 1, "no_right_to_read": 1}
    with pytest.raises(DataError, match="ward: cannot be opened: Permission denied"):
        walk(root / "ward")


def test_a_folder_that_may_be_listed_and_not_opened_is_counted(open_folder, request):
    """Its names can be had, and then nothing of the files: a crash, once."""
    root = picture(open_folder / "images" / "none" / "a.png").parent.parent
    picture(root / "ward" / "b.png").parent.chmod(0o744)
    request.getfixturevalue("somebody_else")
    cohort = load(CohortSpec(kind="images", root=root), open_folder)
    assert problems(cohort) == {"folder_without_right": 1}
    for folder in (root / "ward", root / "ward" / "deeper"):
        with pytest.raises(DataError, match=r"cannot be opened: Permission denied.*the right to open"):
            walk(folder)


def test_masks_in_a_folder_without_rights_are_not_merely_unknown(open_folder, request):
    root = picture(open_folder / "images" / "none" / "a.png").parent.parent
    picture(root / "none" / "b.png")
    picture(open_folder / "masks" / "none" / "a.png").parent.chmod(0)
    request.getfixturevalue("somebody_else")
    spec = CohortSpec(kind="images", root=root, mask_images=open_folder / "masks")
    tasks = [Segmentation(name="lesion", kind="segmentation")]
    wanted = CohortRequest(tasks, ImageInput(size=16), SplitSpec(), 0)
    cohort = load_cohort("north", spec, wanted, Place(open_folder / "state", open_folder / "cache", b"secret"))
    assert problems(cohort) == {"folder_without_right": 1}


def test_a_labels_table_without_rights_is_told_with_what_to_do(open_folder, request):
    root = picture(open_folder / "images" / "none" / "a.png").parent.parent
    (open_folder / "labels.csv").write_text("path,cls\nnone/a.png,none\n")
    (open_folder / "labels.csv").chmod(0)
    request.getfixturevalue("somebody_else")
    spec = CohortSpec(kind="images", root=root, labels=open_folder / "labels.csv")
    with pytest.raises(DataError, match=r"labels.csv: cannot be read: Permission denied\. Give this account the right"):
        load(spec, open_folder)


def test_links_in_a_circle_are_no_folder(tmp_path):
    """Whether one path lies in another cannot be asked of them: a crash, once."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match=r"b: is no folder\. Check `root`"):
        load(CohortSpec(kind="images", root=tmp_path / "b"), tmp_path)


def test_a_link_to_a_pipe_is_not_broken(tmp_path):
    root = picture(tmp_path / "images" / "none" / "a.png").parent.parent
    os.mkfifo(tmp_path / "pipe")
    (root / "b.png").symlink_to(tmp_path / "pipe")
    assert problems(load(CohortSpec(kind="images", root=root), tmp_path)) == {"special_file": 1}


def test_only_the_labels_table_is_not_counted_as_another_file(tmp_path):
    root = picture(tmp_path / "images" / "a.png").parent
    for name in ("labels.csv", "old.csv"):
        (root / name).write_text("path,cls\na.png,none\n")
    cohort = load(CohortSpec(kind="images", root=root, labels=root / "labels.csv"), tmp_path)
    assert problems(cohort) == {"not_an_image": 1}


def test_the_check_says_which_folders_were_not_read(hospital: Hospital) -> None:
    (hospital.data / "dicom" / "pacs").symlink_to(hospital.data / "gone")
    lines = hospital.lines("data")
    assert (lines["folders"].level, lines["folders"].figures) == (Level.NOTE, {"passed_over": {"broken_link": 1}})
    assert "what they pointed at is missing" in lines["folders"].fix


PAIRS = {
    "join_spaces": ("MRN 12", "MRN12"),
    "join_case": ("mrn12", "MRN12"),
    "join_leading_zeros": ("00012", "12"),
    "join_decimal": ("12", "12.0"),
    "join_unicode": ("Mu\u0308ller", "M\u00fcller"),
    "join_width": ("MRN\uff11\uff12", "MRN12"),
    "join_rounded": ("123456789012", "1.23457E+11"),
    "join_slashes": ("p1/a.png", "\\p1\\a.png"),
    "join_suffix": ("p1/a.dcm", "p1/a"),
    "join_folder": ("p1/a.png", "a.png"),
    "join_separators": ("P-12", "P_12"),
    "join_several_ways": ("export/p-0012.DCM", "P12"),
}


@pytest.mark.parametrize("word", PAIRS)
def test_kinds_of_difference(word):
    of_file, of_row = PAIRS[word]
    assert differences({of_file: 3, "another": 2}, [of_row, "row of nobody"]) == {word: 3}
    assert differences({of_row: 1}, [of_file]) == {word: 1}


def test_every_kind_has_its_pair_and_words():
    assert set(PAIRS) == set(IN_WORDS) == {*WAYS, "join_several_ways"}


def test_keys_that_have_nothing_in_common_are_not_explained():
    assert not differences({"a": 1, "": 2, "0": 1}, ["b", "-", "1"])


def test_the_check_fails_where_little_meets_and_says_why(hospital: Hospital) -> None:
    hospital.write_rows([row | {"PatientID": row["PatientID"].lower()} for row in hospital.rows()])
    lines = hospital.lines("data")
    assert lines["joined"].level is Level.FAILS
    assert lines["joined"].figures["differ_by"] == {"join_case": 64}
    assert "their keys are the same but for case (64)" in lines["joined"].description


def test_images_join_by_path_whatever_their_names_are_made_of(tmp_path):
    picture(tmp_path / "images" / "p1" / "Mu\u0308ller.png")
    picture(tmp_path / "images" / "p1" / "b.png")
    (tmp_path / "l.csv").write_text("path,cls\np1/M\u00fcller.png,none\np1\\b.png,nodule\n", encoding="utf-8")
    cohort = load(CohortSpec(kind="images", root=tmp_path / "images", labels=tmp_path / "l.csv"), tmp_path)
    assert problems(cohort) == {
        "no_label_row": 2, "label_without_file": 2, "join_unicode": 1, "join_slashes": 1,
    }  # fmt: skip
