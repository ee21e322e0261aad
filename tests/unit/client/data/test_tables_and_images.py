"""Tables and ordinary images: what each cell and pixel becomes, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.decoding.images import read_images
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import read_csv
from fedgraft.client.data.tables.table import read_table
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.tasks import Task

TASK = Task(name="cls", classes=("B", "M"))
COLUMNS = TableInput(numeric=("radius_mean", "texture_mean"), categorical={"side": ("left", "right")})
CANCER = """id,diagnosis,radius_mean,texture_mean,side
842302,M,17.99,10.38,left
842517,B,20.57,,right
843009,M,NA,-21.25,both
843483,,1e2,20.38,
"""


def read_image(path: Path) -> np.ndarray:
    (image,) = read_images(path, "middle").frames
    return image


def table(tmp_path: Path, text: str | bytes = CANCER, **changes):
    path = tmp_path / "cases.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(CohortSpec(kind="table", root=path, **changes), [TASK], COLUMNS)


def test_cells(tmp_path):
    inputs, targets, patients, problems = table(tmp_path, patient_column="id")
    nan = np.nan
    wanted = [[17.99, 10.38, 1, 0], [20.57, nan, 0, 1], [nan, -21.25, 0, 0], [100, 20.38, 0, 0]]
    np.testing.assert_array_equal(inputs, np.array(wanted, np.float32))
    assert targets["cls"].tolist() == [1, 0, 1, -1]
    assert patients == ["842302", "842517", "843009", "843483"]
    assert problems == {"missing_value": 2, "unknown_category": 1, "missing_category": 1}


def test_every_row_is_its_own_patient_unless_a_column_says(tmp_path):
    assert len(set(table(tmp_path)[2])) == 4


def test_byte_order_mark_semicolons_and_line_ends(tmp_path):
    plain = table(tmp_path)
    other = table(tmp_path, b"\xef\xbb\xbf" + CANCER.replace(",", ";").replace("\n", "\r\n").encode())
    np.testing.assert_array_equal(other[0], plain[0])
    assert other[1]["cls"].tolist() == plain[1]["cls"].tolist()


def test_odd_characters_do_not_cut_rows(tmp_path):
    """Only line ends outside quotes end a row, though Unicode knows more of them."""
    path = tmp_path / "odd.csv"
    path.write_text('a,b\n"x\ny",1\nu\u2028v\x85w,2\n', encoding="utf-8")
    assert read_csv(path).rows == [{"a": "x\ny", "b": "1"}, {"a": "u\u2028v\x85w", "b": "2"}]


def test_missing_columns_are_all_named(tmp_path):
    text = CANCER.replace("radius_mean", "radius").replace("side", "seite")
    with pytest.raises(DataError) as error:
        table(tmp_path, text)
    for part in (str(tmp_path / "cases.csv"), "'radius_mean'", "'side'", "It has: id, diagnosis, radius"):
        assert part in str(error.value)


@pytest.mark.parametrize("garbage", ["abc", "1,5", "1_000", "inf", "1e60", "0x10"])
def test_a_wrong_number_is_named_by_line_and_column(tmp_path, garbage):
    with pytest.raises(DataError, match=r"cases\.csv, line 3, column 'radius_mean'"):
        table(tmp_path, CANCER.replace("20.57", garbage).replace(garbage, f'"{garbage}"'))


def test_lines_are_counted_as_in_the_file(tmp_path):
    lines = CANCER.replace("20.57", "abc").splitlines()
    with pytest.raises(DataError, match=r"line 5, column 'radius_mean'"):
        table(tmp_path, "\n".join([lines[0], "", "", *lines[1:]]))


def test_errors_show_no_cell(tmp_path):
    """A column named by mistake may hold names of patients, and errors go to logs."""
    names = "diagnosis,radius_mean,side\nSecretName,1,left\n"
    for text in (names, names.replace("SecretName,1", "B,SecretName")):
        with pytest.raises(DataError) as error:
            table(tmp_path, text)
        assert "SecretName" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("a,b\n", "no rows"),
        ("a,b\n1\n", "line 2 has more or fewer cells"),
        ("a,b\n1,2\n1,2,3\n", "line 3 has more or fewer cells"),
        ("a,a\n1,2\n", "two columns 'a'"),
        (b"a,b\n\xff\xfe,2\n", "not UTF-8"),
        ('a,b\n"' + "x" * 200_000 + '",2\n', "no CSV"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path, text)


def test_an_unknown_label_is_refused_and_can_be_mapped(tmp_path):
    text = CANCER.replace(",B,", ",benign,")
    with pytest.raises(DataError, match="line 3, column 'diagnosis' is no class of task 'cls'"):
        table(tmp_path, text)
    assert table(tmp_path, text, label_map={"cls": {"benign": "B"}})[1]["cls"].tolist() == [1, 0, 1, -1]


def save(tmp_path: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_depths(tmp_path):
    np.testing.assert_allclose(read_image(save(tmp_path, Image.fromarray(GREY))), GREY / 255, atol=1e-7)
    deep = (np.arange(12).reshape(3, 4) * 5000 + 3).astype(np.uint16)
    np.testing.assert_allclose(read_image(save(tmp_path, Image.fromarray(deep))), deep / 65535, atol=1e-7)
    np.testing.assert_allclose(read_image(save(tmp_path, Image.fromarray(deep), "a.tif")), deep / 65535, atol=1e-7)
    bits = save(tmp_path, Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(read_image(bits), (GREY > 100).astype(np.float32))


def test_tiff_of_other_numbers(tmp_path):
    whole = save(tmp_path, Image.fromarray(GREY.astype(np.int32)), "a.tif")
    np.testing.assert_allclose(read_image(whole), GREY / 65535, atol=1e-7)
    unit = save(tmp_path, Image.fromarray((GREY / 255).astype(np.float32)), "b.tif")
    np.testing.assert_allclose(read_image(unit), GREY / 255, atol=1e-7)
    for values in (GREY.astype(np.int32) * 1000, GREY.astype(np.int32) - 5, GREY.astype(np.float32)):
        with pytest.raises(UnusableError, match="outside"):
            read_image(save(tmp_path, Image.fromarray(values), "c.tif"))


def test_colour_palette_and_alpha(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    rgb = Image.fromarray(colours)
    np.testing.assert_allclose(read_image(save(tmp_path, rgb)), colours / 255, atol=1e-7)
    with_alpha = rgb.copy()
    with_alpha.putalpha(128)
    np.testing.assert_allclose(read_image(save(tmp_path, with_alpha)), colours / 255, atol=1e-7)
    np.testing.assert_allclose(read_image(save(tmp_path, rgb.quantize(12))), colours / 255, atol=1e-7)
    grey_alpha = Image.fromarray(GREY).convert("LA")
    np.testing.assert_allclose(read_image(save(tmp_path, grey_alpha)), GREY / 255, atol=1e-7)


def test_upright_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_image(save(tmp_path, Image.fromarray(GREY), exif=exif))
    np.testing.assert_allclose(found, np.rot90(GREY, -1) / 255, atol=1e-7)


def test_damaged_images_have_a_reason(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    whole = save(tmp_path, Image.fromarray(big)).read_bytes()
    for content in (b"", b"text", whole[:30], whole[: len(whole) // 2], whole[:60] + b"\0" * 40 + whole[100:]):
        path = tmp_path / "bad.png"
        path.write_bytes(content)
        with pytest.raises(UnusableError) as error:
            read_image(path)
        assert error.value.reason in ({"unreadable", "truncated"} if content else {"empty_file"})
