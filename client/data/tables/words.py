"""Words of a table: which of them a name means, which mean "not known", and what is said of those that mean nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.config.suggest import plain_word

OTHERS = "all others"
"""The entry of a `label_map` for all words that are neither listed, nor a name of the task, nor missing."""

_MOST_WORDS, _LONGEST = 60, 40
_LARGEST = float(np.finfo(np.float32).max)


class TableCell(NamedTuple):
    """What stands in a cell of `column`, and where: "FILE, line 3, column 'finding'"."""

    text: str
    where: str
    column: str = ""
    comma: bool = False
    """Whether the numbers of its table have a comma where others have a point."""


def meant(word: str, names: Iterable[str]) -> str | None:
    """The name that a word means: the name itself, else one that differs in case or is the same number (1, 1.0).

    None if there is none, or more than one.
    """
    names = tuple(names)
    if word in names:
        return word
    alike = [name for name in names if plain_word(name) == plain_word(word)]
    return alike[0] if len(alike) == 1 else None


def is_missing(cell: TableCell, spec: CohortSpec) -> bool:
    """Whether a cell says that a value is not known: it is empty, or has a word that the cohort lists for it."""
    if not cell.text:
        return True
    words = (*spec.missing, *spec.missing_values.get(cell.column, ()))
    if plain_word(cell.text) in _plain_words(words):
        return True
    number = finite(cell)
    return number is not None and number in _numbers(words)


def finite(cell: TableCell) -> float | None:
    """The finite number, of single precision, that a cell says; None if it says none."""
    text = cell.text.replace(",", ".") if cell.comma and "." not in cell.text else cell.text
    try:
        number = float(text if "_" not in text else "")
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= _LARGEST else None


def mapped(
    spec: CohortSpec, key: str, cell: TableCell, is_plain: Callable[[TableCell], bool]
) -> tuple[TableCell, bool]:
    """A cell with what `label_map` makes of its text, and whether its entry "all others" did.

    An entry is met as a name is (see `meant`). What is plain by itself, or missing, is not of "all others".
    """
    words = spec.label_map.get(key, {})
    if cell.text in words:
        return cell._replace(text=words[cell.text]), False
    if not words or is_plain(cell):
        return cell, False
    if (entry := meant(cell.text, words.keys() - {OTHERS})) is not None:
        return cell._replace(text=words[entry]), False
    if OTHERS in words and not is_missing(cell, spec):
        return cell._replace(text=words[OTHERS]), True
    return cell, False


@dataclass
class UnknownWords:
    """Cells that mean nothing, over a whole table, so that all of them can be told at once."""

    key: str
    means: str
    """What the words should be, as in "is no class of task 'cls'"."""
    names: Sequence[str]
    """Names that would have been understood; none where numbers are asked for."""
    cells: list[TableCell] = field(default_factory=list, repr=False)
    read: int = 0
    """Cells that were understood, empty ones not counted."""

    def fault(self) -> str:
        """What is wrong, and what to do; "" if nothing is.

        Several words are shown only where the column looks like the right one: some cells of it could be read, or its
        words come again and again. Another may hold names of patients.
        """
        if not self.cells:
            return ""
        counts, cells = Counter(cell.text for cell in self.cells), len(self.cells)
        first = f"{self.cells[0].where} {self.means}"
        if cells == 1:  # found by its place
            return f"{first}. {self._advice(('WORD',))}"
        text = f"{first}, and {cells - 1:,} more."
        if not (self.read or 2 * len(counts) <= cells) or len(counts) > _MOST_WORDS:
            advice = "" if self.names else f" {self._advice(())}"
            return f"{text} They are {len(counts):,} different words: is this the right column?{advice}"
        words = [word for word, _ in by_count(counts)]
        shown = ", ".join(f"{_short(word)!r} {counts[word]:,}" for word in words)
        return f"{text} All of them: {shown}. {self._advice(words)}"

    def _advice(self, words: Sequence[str]) -> str:
        if not self.names:
            return (
                "Write numbers with a point and without a unit, leave the cell empty, or list what means 'not known' "
                "as `missing_values` of the cohort."
            )
        entries = "".join(f"{_short(word)!r}: ..., " for word in words[:3])
        return (
            f"Names are {', '.join(self.names)}. Say what others mean by "
            f"`label_map: {{{self.key}: {{{entries}{OTHERS}: ...}}}}` of the cohort, with a name or '' (not known) for "
            f"each; `{OTHERS}` stands for every word that is not listed."
        )


def refuse(found: Collection[UnknownWords]) -> None:
    """DataError with all that was not understood, if anything was not."""
    if faults := [text for words in found if (text := words.fault())]:
        raise DataError("\n".join(faults))


class Faults:
    """Errors of several looks at a table, so that nobody has to correct it step by step."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def look(self) -> Iterator[None]:
        """Keep a DataError for `refuse`, and go on behind the block."""
        try:
            yield
        except DataError as error:
            self._found.append(str(error))

    def refuse(self) -> None:
        """DataError with all that was found, if anything was."""
        if self._found:
            raise DataError("\n".join(dict.fromkeys(self._found)))


def check_words(spec: CohortSpec, key: str, column: str, names: Sequence[str]) -> None:
    """DataError if `label_map` gives what is no name, or as `check_missing_words`."""
    for word, name in spec.label_map.get(key, {}).items():
        if meant(name, names) is None and not is_missing(TableCell(name, "", column), spec):
            raise DataError(
                f"label_map of {key!r}: {word!r} becomes {name!r}, which is no name of it.",
                fix=f"Names are {', '.join(names)}, and '' for what is not known.",
            )
    check_missing_words(spec, key, column, names)


def check_missing_words(spec: CohortSpec, key: str, column: str, names: Sequence[str]) -> None:
    """DataError if `missing_values` lists a name of the study, which a cell would mean all the same."""
    for word in spec.missing_values.get(column, ()):
        if meant(word, names) is not None:
            raise DataError(
                f"missing_values of column {column!r}: {word!r} is a name of {key!r}.",
                fix="Take it out, or have the table say something else where the value is not known.",
            )


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Words and their counts, the most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _short(word: str) -> str:
    return word if len(word) <= _LONGEST else f"{word[:_LONGEST]}..."


@lru_cache
def _plain_words(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(plain_word, words))


@lru_cache
def _numbers(words: tuple[str, ...]) -> frozenset[float]:
    return frozenset(number for word in words if (number := finite(TableCell(word, ""))) is not None)
