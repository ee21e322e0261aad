"""Tables as spreadsheets write them are read; what cannot be is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgraft.client.data.tables.csv_tables import read_csv
from fedgraft.common.base.errors import DataError

ROWS = [{"PatientID": "00123", "cls": "none, we think"}, {"PatientID": "00124", "cls": "Größe"}]
PLAIN = 'PatientID,cls\n00123,"none, we think"\n00124,Größe\n'


def read(tmp_path: Path, content: str | bytes) -> list[dict[str, str]]:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(path).rows


def semicolons(text: str, delimiter: str = ";") -> str:
    return (
        text.replace("ID,cls", f"ID{delimiter}cls")
        .replace("123,", f"123{delimiter}")
        .replace("124,", f"124{delimiter}")
    )


WAYS = {
    "plain": PLAIN,
    "semicolons": semicolons(PLAIN),
    "tabs": semicolons(PLAIN, "\t"),
    "a sep line": "sep=;\r\n" + semicolons(PLAIN),
    "a sep line in quotes": '"sep=;"\n' + semicolons(PLAIN),
    "a sep line for tabs": "SEP=\t\n" + semicolons(PLAIN, "\t"),
    "a sep line with a bar": "sep=|\n" + semicolons(PLAIN, "|"),
    "empty columns behind the last": semicolons(PLAIN).replace("\n", ";;\n"),
    "empty columns behind the header": semicolons(PLAIN).replace("cls\n", "cls;;\n"),
    "empty columns behind the rows": PLAIN.replace('think"\n', 'think",,\n'),
    "empty rows": PLAIN + ",\n\n,,,\n",
    "line ends of old": PLAIN.replace("\n", "\r"),
    "a sep line with line ends of old": ("sep=;\n" + semicolons(PLAIN)).replace("\n", "\r"),
    "bars": semicolons(PLAIN, "|"),
    "formulas": PLAIN.replace("00123", '="00123"').replace("00124", '"=""00124"""'),
    "a formula in the header": PLAIN.replace("PatientID", '="PatientID"'),
    "line ends of Windows": PLAIN.replace("\n", "\r\n"),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "a byte order mark before a sep line": b"\xef\xbb\xbfsep=;\n" + semicolons(PLAIN).encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 of the other order": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-16 that does not say so": PLAIN.encode("utf-16-le"),
    "UTF-16 that does not say so, other order": PLAIN.encode("utf-16-be"),
    "UTF-16 with tabs, as Excel's Unicode text": semicolons(PLAIN, "\t").replace("\n", "\r\n").encode("utf-16"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_in_which_one_table_is_written(tmp_path, way):
    assert read(tmp_path, WAYS[way]) == ROWS


def test_lines_count_as_in_the_file_behind_a_sep_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sep=;\na;b\n1;2\n\n3;4\n")
    assert [read_csv(path).where(at) for at in (0, 1)] == [f"{path}, line 3", f"{path}, line 5"]


def test_a_header_in_quotes_does_not_decide_what_divides_cells(tmp_path):
    assert read(tmp_path, '"a, b, c";d\n1;2\n') == [{"a, b, c": "1", "d": "2"}]


def test_the_header_alone_decides_what_divides_cells_with_line_ends_of_old(tmp_path):
    assert read(tmp_path, "a;b\r1,5;2,5\r0,5;0,25\r") == [{"a": "1,5", "b": "2,5"}, {"a": "0,5", "b": "0,25"}]


OPEN = {
    "closed by a later one": '1,none,"see\n2,nodule,x\n3,none,"y"\n4,none,\n',
    "never closed": '1,none,x\n2,nodule,"see\n3,none,y\n4,none,z\n',
    "closed at the end of a later cell": '1,none,"see\n2,nodule,x\n3,none,5 inch"\n4,none,\n',
    "closed in the row behind": '1,none,"see\n2,none,5 inch"\n3,nodule,\n',
    "before text": '1,none,"see" below\n2,nodule,\n',
}


@pytest.mark.parametrize("way", OPEN)
def test_a_quote_that_stays_open_takes_in_no_rows(tmp_path, way):
    """Rows behind it once vanished without a word: they were the text of one cell."""
    with pytest.raises(DataError, match=r"t\.csv: (what begins on line \d is no CSV|the cell that ends on line \d)"):
        read(tmp_path, "id,cls,note\n" + OPEN[way])


def test_text_of_several_lines_in_one_cell_is_read(tmp_path):
    text = "CT of the chest\r\nno change, no mass, no effusion"
    rows = read(tmp_path, f'id,cls,report\n1,none,"{text}"\n2,nodule,"a ""ring"", solid"\n')
    assert [row["report"] for row in rows] == [text, 'a "ring", solid']


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a;b;;\n1;2;;x\n", "line 2 has more or fewer cells"),
        ("a;b\n1;2;3\n", "line 2 has more or fewer cells"),
        ("a;b;c\n1;2\n", "line 2 has more or fewer cells"),
        ("a;;;b\n1;2;3;4\n", "two columns ''"),
        ("sep=;\n", "has no rows"),
        ("a,b\n,\n,\n", "has no rows"),
        ("Größe,b\n1,2\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_what_is_not_read_is_refused(tmp_path, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, content)
