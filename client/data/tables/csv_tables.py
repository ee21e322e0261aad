"""CSV files as people and spreadsheets write them: every common way is read, and nothing in them is guessed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedgraft.client.data.tables.words import TableCell
from fedgraft.common.base.errors import DataError

Row = Mapping[str, str]

_SEPARATOR = re.compile(r'"?sep=(.)"?(?:\r\n?|\n)', re.IGNORECASE)
"""The line that Excel writes first, and reads, to say what divides cells."""
_FORMULA = re.compile(r'="(.*)"', re.DOTALL)
"""How Excel is kept from taking 00123 for a number."""
_COMMA, _POINT = re.compile(r"[+-]?(0,\d+|\d+,(\d{1,2}|\d{4,}))"), re.compile(r"[+-]?\d*\.\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
LIKE_THOUSANDS = "points_like_thousands"
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file by column name, and the line of the file that each ends on.

    Errors name file, line and column, and never show a cell: a wrong column may hold names of patients.
    """

    path: Path
    rows: list[dict[str, str]] = field(repr=False)
    lines: list[int] = field(repr=False)
    delimiter: str = ","
    decimal_comma: bool = False
    unit: str = "line"
    """What `lines` count: the rows of files that are no text begin at 0."""

    def where(self, index: int) -> str:
        """Where a row stands, for messages: "FILE, line NUMBER"."""
        return f"{self.path}, {self.unit} {self.lines[index]}"

    def cell(self, index: int, row: Row, name: str) -> TableCell:
        """A row's cell of the column `name`, with its place."""
        return TableCell(row[name], f"{self.where(index)}, column {name!r}", name, self.decimal_comma)

    def like_thousands(self, names: Iterable[str]) -> int:
        """How many numbers in these columns, such as 1.234, may have points for thousands, as nothing says otherwise.

        Where decimals have commas, cells are divided by semicolons or tabs: with commas between cells there are none.
        """
        if self.delimiter == ",":
            return 0
        pointed = [cell for row in self.rows for cell in row.values() if _POINT.fullmatch(cell)]
        if not all(map(_THOUSANDS.fullmatch, pointed)):
            return 0
        return sum(_THOUSANDS.fullmatch(row[name]) is not None for row in self.rows for name in names)


def read_csv(path: Path) -> Table:
    """A CSV file with a header; comma, semicolon, tab or bar; UTF-8 or UTF-16. DataError if it cannot be read as one.

    Excel's `sep=` line, columns without name or content behind the last one, empty rows, and `="00123"` are taken for
    what they mean.
    """
    text = _text(path)
    first = _SEPARATOR.match(text)
    skipped = 1 if first else 0
    text = text[first.end() :] if first else text
    delimiter = first[1] if first else _delimiter(text)
    # Strict: else a quote that is never closed takes in all rows up to the next one, without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows, lines = [], []
    for line, cells in _rows(path, reader, skipped):
        if not header:
            header = _header(path, cells)
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            raise DataError(f"{path}: line {line} has more or fewer cells than the header.")
        _check_quotes(path, line, cells, delimiter)
        rows.append(dict(zip(header, cells, strict=True)))
        lines.append(line)
    if not rows:
        raise DataError(f"{path}: has no rows.")
    return Table(path, rows, lines, delimiter, delimiter != "," and _has_decimal_commas(rows))


def column(table: Table, name: str | None, usual: Sequence[str], what: str) -> str:
    """The column that was named, or the first usual one there is. DataError lists those that exist."""
    header = table.rows[0]
    for candidate in (name,) if name else usual:
        if candidate in header:
            return candidate
    wanted = repr(name) if name else f"any of {', '.join(usual)}"
    raise DataError(f"{table.path}: has no column for {what} ({wanted}).", fix=f"It has: {', '.join(header)}.")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", fix=_next_step(error)) from None
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), _without_mark(content))
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text.", fix="Save the table as CSV in UTF-8.") from None


def _next_step(error: OSError) -> str:
    """What somebody can do whose table cannot be opened."""
    if isinstance(error, PermissionError):
        return "Give this account the right to read it."
    return "Check the path in the site's cohort: `labels`, or for a table `root`."


def _without_mark(content: bytes) -> str:
    """UTF-16 that does not say so has a zero in every other byte of a Latin header; text has none at all."""
    start = content[:64]
    if start[1::2].count(0) > len(start) // 4:
        return "utf-16-le"
    return "utf-16-be" if start[0::2].count(0) > len(start) // 4 else "utf-8"


def _delimiter(text: str) -> str:
    """What the header has most of outside quotes: comma, semicolon, tab or bar."""
    header = re.split(r"[\r\n]", re.sub(r'"[^"]*"', "", text.lstrip("\r\n")), maxsplit=1)[0]
    return max(",;\t|", key=header.count)


def _rows(path: Path, reader: Iterator[list[str]], skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Rows that say anything, stripped, with the number of the line they end on."""
    at = skipped
    try:
        for row in reader:
            at = getattr(reader, "line_num", 0) + skipped
            cells = [_plain(cell) for cell in row]
            if any(cells):
                yield at, cells
    except csv.Error as error:
        raise DataError(
            f"{path}: what begins on line {at + 1} is no CSV: {error}.",
            fix='Look for a quote that is never closed, or stands inside a cell; a quote within quotes is written "".',
        ) from None


def _check_quotes(path: Path, line: int, cells: Sequence[str], delimiter: str) -> None:
    """DataError for a cell that holds whole rows: its quote was closed by that of another cell, further down."""
    for at, cell in enumerate(cells):
        _, *lines = re.split(r"\r\n?|\n", cell)
        swallowed = [part.split(delimiter) for part in lines]
        sizes = [len(row) for row in swallowed]
        whole = sizes and sizes[:-1] == [len(cells)] * (len(sizes) - 1) and sizes[-1] == at + 1
        if at and whole and all(_shape(row[0]) == _shape(cells[0]) for row in swallowed):
            raise DataError(
                f"{path}: the cell that ends on line {line} looks like {len(lines)} rows behind an open quote.",
                fix="Close the quote; if these lines are one cell's text, put them on one line.",
            )


def _shape(text: str) -> str:
    """A key without its digits: those of two rows are mostly alike."""
    return re.sub(r"\d+", "0", text.strip())


def _plain(cell: str) -> str:
    text = cell.strip()
    formula = _FORMULA.fullmatch(text)
    return formula[1].strip() if formula else text


def _has_decimal_commas(rows: Sequence[Row]) -> bool:
    """Whether some number can only have a decimal comma, and none has a point; 1,234 alone might be a thousand."""
    cells = {cell for row in rows for cell in row.values()}
    return any(map(_COMMA.fullmatch, cells)) and not any(map(_POINT.fullmatch, cells))


def _header(path: Path, cells: list[str]) -> list[str]:
    while cells and not cells[-1]:
        cells.pop()
    if twice := sorted({name for name in cells if cells.count(name) > 1}):
        raise DataError(f"{path}: has two columns {', '.join(map(repr, twice))}.", fix="Rename or remove one of them.")
    return cells
