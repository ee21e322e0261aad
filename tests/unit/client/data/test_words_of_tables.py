"""What a word of a table means: a class by its own name, "not known", or nothing, and then all are told at once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_site
from fedgraft.common.base.errors import DataError, StudyError
from fedgraft.common.config.config_files import parse_yaml
from fedgraft.common.study.inputs import ImageInput, SplitSpec, TableInput
from fedgraft.common.study.study import parse_study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Task
from helpers.site_home import STUDY

NONE = Task(name="cls", classes=("none", "nodule"))


def load(spec: CohortSpec, tmp_path: Path, *tasks: AnyTask, columns: TableInput | None = None) -> Cohort:
    size = (columns or TableInput(numeric=("a",))) if spec.kind == "table" else ImageInput(size=16)
    place = Place(tmp_path / "state", tmp_path / "cache", b"secret")
    return load_cohort("north", spec, CohortRequest(tasks or [NONE], size, SplitSpec(), 0), place)


def table(tmp_path: Path, *cells: str, header: str = "a,cls", **settings: object) -> CohortSpec:
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *(f"{number},{cell}" for number, cell in enumerate(cells))]) + "\n")
    return CohortSpec.model_validate({"kind": "table", "root": path} | settings)


def test_a_class_called_none_is_a_class_however_it_is_written(tmp_path, make_dicom):
    """Half of the labels once vanished, and training ended with an accuracy of nothing and no word about it."""
    for number in range(8):
        pixels = np.full((16, 16), number, np.uint8)
        make_dicom(pixels, f"dicom/{number}.dcm", PatientID=f"p{number}", SOPInstanceUID=f"1.{number}")
    words = ("None", "nodule", "NONE", "Nodule", "none", "nodule", "None", "")
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,cls\n" + "".join(f"p{number},{word}\n" for number, word in enumerate(words)))
    cohort = load(CohortSpec(kind="dicom", root=tmp_path / "dicom", labels=labels), tmp_path)
    assert cohort.targets["cls"].tolist() == [0, 1, 0, 1, 0, 1, 0, -1]


@pytest.mark.parametrize(("name", "written"), [("-", "-"), ("NA", "na"), ("null", "NULL"), ("?", "?"), ("nan", "NaN")])
def test_every_word_for_missing_can_be_a_class(tmp_path, name, written):
    task = Task(name="cls", classes=(name, "nodule"))
    assert load(table(tmp_path, written, "nodule", ""), tmp_path, task).targets["cls"].tolist() == [0, 1, -1]


def test_a_folder_is_the_class_of_its_name(tmp_path):
    for folder in ("None", "nodule"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "images" / folder / f"{number}.png")
    cohort = load(CohortSpec(kind="images", root=tmp_path / "images"), tmp_path)
    assert cohort.targets["cls"].tolist() == [0, 0, 1, 1]


def test_whole_numbers_are_one_word_however_a_program_writes_them(tmp_path):
    task = Task(name="cls", classes=("0", "1"))
    assert load(table(tmp_path, "0.0", "1", "01", "1,".strip(",")), tmp_path, task).targets["cls"].tolist() == [
        0,
        1,
        1,
        1,
    ]


def test_so_are_decimals(tmp_path):
    """A study's `[1.10, 1.2]` has the names 1.1 and 1.2, and tables may have them as they were meant."""
    task = Task(name="cls", classes=("1.1", "1.2", "11"))
    cells = ("1.10", '"1,1"', "01.2", "1.20", "11.00", "1.1")
    assert load(table(tmp_path, *cells), tmp_path, task).targets["cls"].tolist() == [0, 0, 1, 1, 2, 0]
    with pytest.raises(DataError, match="is no class"):
        load(table(tmp_path, "1.01", "1.2"), tmp_path, task)


def test_a_name_that_two_classes_have_but_for_case_is_not_guessed(tmp_path):
    task = Task(name="cls", classes=("T", "t"))
    with pytest.raises(DataError, match="is no class"):
        load(table(tmp_path, "T", "t", "T "), tmp_path, Task(name="cls", classes=("AB", "ab", "x")))
    assert load(table(tmp_path, "T", "t"), tmp_path, task).targets["cls"].tolist() == [0, 1]


UNKNOWN = ("none", "benign", "Suspicious", "benign", "benign", "nodule", "Suspicious", "odd")


def test_all_unknown_words_are_told_at_once_with_counts_and_what_to_write(tmp_path):
    with pytest.raises(DataError) as caught:
        load(table(tmp_path, *UNKNOWN), tmp_path)
    said = str(caught.value)
    assert "t.csv, line 3, column 'cls' is no class of task 'cls', and 5 more" in said
    assert "All of them: 'benign' 3, 'Suspicious' 2, 'odd' 1." in said
    assert "Names are none, nodule" in said
    written = re.search(r"`label_map: (\{cls: .*?\}\})`", said)
    assert written is not None
    entries = parse_yaml(written[1].replace("...", "nodule"))["cls"]
    assert set(entries) == {"benign", "Suspicious", "odd", "all others"}
    fixed = load(table(tmp_path, *UNKNOWN, label_map={"cls": entries}), tmp_path)
    assert fixed.targets["cls"].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_all_others_leaves_names_and_missing_words_alone(tmp_path):
    spec = table(tmp_path, "none", "NA", "x", "y", "nodule", "", label_map={"cls": {"y": "", "all others": "nodule"}})
    assert load(spec, tmp_path).targets["cls"].tolist() == [0, -1, 1, -1, 1, -1]


def problems(cohort: Cohort) -> dict[str, int]:
    return {problem.reason: problem.count for problem in cohort.problems}


def test_an_entry_of_a_map_is_met_as_a_name_is(tmp_path):
    """`1.0` and `MALIGNANT` once were of "all others", beside entries for `1` and `malignant`: the other class."""
    given = {"cls": {1: "nodule", "malignant": "nodule", "grö\u00dfer": "nodule", "all others": "none"}}
    words = ("1.0", "MALIGNANT", "gro\u0308\u00dfer", "None", "", "odd", "odd")
    cohort = load(table(tmp_path, *words, label_map=given), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 1, 1, 0, -1, 0, 0]
    assert problems(cohort) == {"label_by_all_others": 2}


def test_a_name_counts_before_an_entry_of_another_case(tmp_path):
    cohort = load(table(tmp_path, "none", "None", "NONE", label_map={"cls": {"None": "nodule"}}), tmp_path)
    assert cohort.targets["cls"].tolist() == [0, 1, 0]


def test_all_others_leaves_numbers_alone(tmp_path):
    value = Regression(kind="regression", name="size", unit="mm", mean=1, std=1)
    given = {"size": {"<5": "2.5", "all others": ""}}
    cohort = load(table(tmp_path, "7", "<5", "n.d.", "", header="a,size", label_map=given), tmp_path, value)
    np.testing.assert_array_equal(cohort.targets["size"].numpy(), [7, 2.5, np.nan, np.nan])


def test_words_of_a_column_that_seems_the_wrong_one_are_not_shown(tmp_path):
    with pytest.raises(DataError) as caught:
        load(table(tmp_path, "Doe", "Roe", "Poe"), tmp_path)
    assert "3 different words: is this the right column?" in str(caught.value)
    assert not re.search("Doe|Roe|Poe", str(caught.value))


def test_what_means_missing_is_the_sites_to_say(tmp_path):
    spec = table(tmp_path, "unklar", "nodule", "k.A.", "", missing=["unklar", "K.A."])
    assert load(spec, tmp_path).targets["cls"].tolist() == [-1, 1, -1, -1]
    with pytest.raises(DataError, match="is no class"):  # a list of one's own takes the place of the usual one
        load(table(tmp_path, "NA", "nodule", missing=["unklar"]), tmp_path)


def test_numbers_that_mean_missing_do_so_in_their_column_alone(tmp_path):
    columns = TableInput(numeric=("a", "b"), categorical={"side": ("none", "left")})
    path = tmp_path / "t.csv"
    path.write_text("a,b,side,cls\n-9,-9,None,none\n-9.0,1,-9,nodule\n2,3,left,none\n")
    spec = CohortSpec.model_validate({"kind": "table", "root": path, "missing_values": {"a": [-9], "side": ["-9"]}})
    cohort = load(spec, tmp_path, columns=columns)
    nan = np.nan
    np.testing.assert_array_equal(cohort.inputs.numpy(), [[nan, -9, 1, 0], [nan, 1, 0, 0], [2, 3, 0, 1]])
    assert problems(cohort) == {"missing_value": 2, "missing_category": 1}


@pytest.mark.parametrize("written", ["-9.9", "-9,9", "-9,90", "-09.90"])
def test_a_number_that_means_missing_does_so_however_it_is_written(tmp_path, written):
    (tmp_path / "t.csv").write_text(f"a;cls\n1;none\n{written};nodule\n")
    spec = CohortSpec.model_validate({"kind": "table", "root": tmp_path / "t.csv", "missing_values": {"a": [-9.9]}})
    np.testing.assert_array_equal(load(spec, tmp_path).inputs.numpy(), [[1], [np.nan]])


def test_a_category_cannot_be_listed_as_missing(tmp_path):
    columns = TableInput(categorical={"side": ("none", "left")})
    spec = table(tmp_path, "left,none", header="a,side,cls", missing_values={"side": ["None"]})
    with pytest.raises(DataError, match="missing_values of column 'side': 'None' is a name of 'side'"):
        load(spec, tmp_path, columns=columns)


def test_all_that_is_wrong_with_a_table_is_told_at_once(tmp_path):
    spec = table(tmp_path, "x", "y", header="b,kind", patient_column="pid", missing_values={"age": ["-9"]})
    with pytest.raises(DataError) as caught:
        load(spec, tmp_path)
    said = str(caught.value)
    for column in ("the patients ('pid')", "`missing_values` ('age')", "column 'a'", "the labels of task 'cls'"):
        assert column in said
    with pytest.raises(DataError) as caught:
        load(table(tmp_path, "<5,odd", header="n,a,cls"), tmp_path)
    assert "column 'a' is no number" in str(caught.value)
    assert "column 'cls' is no class" in str(caught.value)


def test_a_class_cannot_be_listed_as_missing_nor_a_word_mapped_to_nothing(tmp_path):
    with pytest.raises(DataError, match="missing_values of column 'cls': 'None' is a name of 'cls'"):
        load(table(tmp_path, "none", "nodule", missing_values={"cls": ["None"]}), tmp_path)
    with pytest.raises(DataError, match="'x' becomes 'nodul', which is no name"):
        load(table(tmp_path, "none", "x", label_map={"cls": {"x": "nodul"}}), tmp_path)


def test_all_that_is_no_number_or_neither_yes_nor_no_is_told_at_once(tmp_path):
    value = Regression(kind="regression", name="size", unit="mm", mean=1, std=1)
    with pytest.raises(DataError, match=r"'<5' 2, 'n.d.' 1"):
        load(table(tmp_path, "1", "<5", "n.d.", "<5", header="a,size"), tmp_path, value)
    signs = Multilabel(kind="multilabel", name="signs", labels=("mass",))
    with pytest.raises(DataError, match=r"'perhaps' 2, 'n.d.' 1"):
        load(table(tmp_path, "yes", "perhaps", "n.d.", "perhaps", header="a,mass"), tmp_path, signs)
    cells = table(tmp_path, "none,1", "none,<5", "nodule,n.d.", "none,<5", header="a,cls,b")
    with pytest.raises(DataError, match=r"column 'b' is no number, and 2 more. All of them: '<5' 2, 'n.d.' 1"):
        load(cells, tmp_path, columns=TableInput(numeric=("b",)))


def test_numbers_with_commas_are_read_where_the_whole_table_has_them(tmp_path):
    """As a spreadsheet writes them in half of Europe, with semicolons between the cells."""
    path, columns = tmp_path / "t.csv", TableInput(numeric=("b",))
    spec = CohortSpec(kind="table", root=path)

    def numbers(*cells: str, delimiter: str = ";") -> list[float]:
        lines = [f"{cell}{delimiter}none" for cell in cells]
        path.write_text("\n".join([f"b{delimiter}cls", *lines]) + "\n")
        return [round(float(number), 4) for number in load(spec, tmp_path, columns=columns).inputs[:, 0]]

    assert numbers("1,5", "-0,25", "7", "1,234") == [1.5, -0.25, 7, 1.234]
    assert numbers("1,5", "3", delimiter="\t") == [1.5, 3]
    for ambiguous in (("1,234", "2,345"), ("1,5", "2.5"), ("1.234,5", "2,5")):
        with pytest.raises(DataError, match="Write numbers with a point"):
            numbers(*ambiguous)


THOUSANDS = {
    "nothing says otherwise": ("1.234", "12.345", "987", 2),
    "a number that none can be": ("1.234", "12.345", "0.5", 0),
    "three digits behind a zero": ("1.234", "0.123", "7", 0),
    "no points": ("1234", "12345", "7", 0),
}


@pytest.mark.parametrize("way", THOUSANDS)
@pytest.mark.parametrize("delimiter", [";", ","])
def test_points_that_may_be_of_thousands_are_told(tmp_path, way, delimiter):
    *cells, count = THOUSANDS[way]
    rows = "".join(f"{cell}{delimiter}{cell}{delimiter}none\n" for cell in cells)
    (tmp_path / "t.csv").write_text(delimiter.join(("a", "size", "cls")) + "\n" + rows)
    spec = CohortSpec(kind="table", root=tmp_path / "t.csv")
    assert problems(load(spec, tmp_path)).get("points_like_thousands", 0) == (count if delimiter == ";" else 0)
    size = Regression(kind="regression", name="size", unit="mm", mean=1, std=1)
    both = problems(load(spec, tmp_path / "both", size)).get("points_like_thousands", 0)
    assert both == (2 * count if delimiter == ";" else 0)


def test_missing_values_of_a_column_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no column for `missing_values`"):
        load(table(tmp_path, "none", "nodule", missing_values={"agee": ["-9"]}), tmp_path)


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        ("[no, yes]", ("no", "yes")),
        ("[No, Yes]", ("No", "Yes")),
        ("[off, on]", ("off", "on")),
        ("[0, 1]", ("0", "1")),
        ("[false, true]", ("false", "true")),
        ("[1.5, 2]", ("1.5", "2")),
        ("[010, 011]", ("010", "011")),
        ("[01, 2]", ("01", "2")),
        ("[0x1F, 0b1]", ("0x1F", "0b1")),
        ("['12:30', 12:45]", ("12:30", "12:45")),
    ],
)
def test_classes_in_yaml_are_words(written, classes):
    study = parse_study(STUDY | {"tasks": [{"name": "cls", "classes": parse_yaml(written)}]}, "test")
    (task,) = study.tasks
    assert isinstance(task, Task)
    assert task.classes == classes


def test_what_yaml_takes_for_no_word_is_to_be_quoted():
    with pytest.raises(StudyError, match=r"classes.0: .*put it in quotes \(found None\)"):
        parse_study(STUDY | {"tasks": [{"name": "cls", "classes": parse_yaml("[null, nodule]")}]}, "test")
    with pytest.raises(StudyError, match="put it in quotes"):
        parse_study(STUDY | {"name": parse_yaml("2020-01-01")}, "test")


def test_numbers_in_yaml_are_those_that_people_read(tmp_path):
    """010 once was 8, so that a map of that entry met other cells."""
    given = parse_yaml("{cls: {010: nodule, all others: none}}")
    cohort = load(table(tmp_path, "010", "10", "8", label_map=given), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 1, 0]
    text = "[7, -7, 0, +3, 1_000, 1.5, -.5, 2., 1.5e-3, .inf, 1e3, 0o7]"
    assert parse_yaml(text) == [7, -7, 0, 3, 1000, 1.5, -0.5, 2.0, 0.0015, np.inf, "1e3", "0o7"]
    assert parse_study(STUDY | {"seed": parse_yaml("010")}, "test").seed == 10


def test_a_word_in_place_of_a_list_is_told_plainly(tmp_path):
    (tmp_path / "site.yaml").write_text("name: north\ncohort: {kind: table, root: t.csv, missing_values: {a: -9}}\n")
    with pytest.raises(StudyError, match=r"cohort.missing_values.a: must be a list, such as .* \(found -9\)"):
        read_site(tmp_path)


def test_a_map_in_yaml_may_have_yes_and_no_for_words(tmp_path):
    given = parse_yaml("{cls: {yes: nodule, no: none, 1: nodule}}")
    cohort = load(table(tmp_path, "yes", "no", "1", label_map=given), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 0, 1]
