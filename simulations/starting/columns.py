"""Which column of a table is the label, the patient, the split, the hospital, and which are numbers: told by its header
and its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedgraft.client.data.kinds import JOIN_KEYS
from fedgraft.client.data.spec import MISSING
from fedgraft.client.data.tables.csv_tables import Table
from fedgraft.client.data.tables.words import TableCell, finite

_LABELS = (
    "label",
    "labels",
    "class",
    "diagnosis",
    "target",
    "finding",
    "findings",
    "finding labels",
    "outcome",
    "cls",
    "y",
)
_SITES = ("hospital", "site", "center", "centre", "clinic", "institution")
_SPLITS = ("split", "partition", "subset")
_SPLIT_WORDS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
_TELLS = 0.98
_MOST_CLASSES, _MOST_CATEGORIES, _MOST_SITES = 30, 12, 100


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are taken for; None for what none is, and `unused` the rest."""

    label: str | None
    words: tuple[str, ...]
    """All words of the label, in order."""
    separator: bool
    """Whether a cell has several of them, with a bar between."""
    patient: str | None
    split: str | None
    site: str | None
    numeric: tuple[str, ...]
    categorical: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]
    telling: tuple[str, ...] = ()
    """Columns that give the label away, and so are no inputs: the answer in other words."""


def guess(table: Table, keys: Collection[str] = ()) -> Columns:
    """What each column is; `keys` are those that name files, which are nothing else."""
    header = [name for name in table.rows[0] if name not in keys]
    words = {name: _words(table, name) for name in header}
    patient = _named(header, [one.lower() for one in JOIN_KEYS["patient"]])
    site = _named(header, _SITES, lambda name: 2 <= len(words[name]) <= _MOST_SITES)
    split = _named(header, _SPLITS, lambda name: {word.lower() for word in words[name]} <= _SPLIT_WORDS)
    rest = [name for name in header if name not in {patient, site, split}]
    label = _named(rest, _LABELS, lambda name: 2 <= len(_single(words[name])) <= _MOST_CLASSES) or next(
        (name for name in reversed(rest) if 2 <= len(words[name]) <= _MOST_CLASSES and not _numbers(table, name)), None
    )
    rest = [name for name in rest if name != label]
    telling = tuple(name for name in rest if label is not None and _tells(table, name, label))
    rest = [name for name in rest if name not in telling]
    numeric = tuple(name for name in rest if words[name] and _numbers(table, name) and not _counts(table, name))
    categorical = {
        name: tuple(sorted(words[name]))
        for name in rest
        if name not in numeric and 2 <= len(words[name]) <= _MOST_CATEGORIES and not _counts(table, name)
    }
    own = _single(words[label]) if label is not None else Counter()
    bars = label is not None and any("|" in word for word in words[label])
    unused = tuple(name for name in rest if name not in numeric and name not in categorical)
    return Columns(label, tuple(sorted(own)), bars, patient, split, site, numeric, categorical, unused, telling)


def _words(table: Table, name: str) -> Counter[str]:
    return Counter(row[name] for row in table.rows if row[name].strip().lower() not in MISSING)


def _single(words: Counter[str]) -> Counter[str]:
    """Words between bars one by one."""
    found: Counter[str] = Counter()
    for cell, count in words.items():
        for word in cell.split("|"):
            found[word.strip()] += count
    return found


def _named(header: Sequence[str], usual: Sequence[str], fits: object = None) -> str | None:
    """The first column with a usual name, in the order of those, that fits."""
    by_name = {name.strip().lower(): name for name in header}
    there = (by_name[name] for name in usual if name in by_name)
    return next((name for name in there if not callable(fits) or fits(name)), None)


def _numbers(table: Table, name: str) -> bool:
    cells = (table.cell(at, row, name) for at, row in enumerate(table.rows))
    return all(finite(cell) is not None for cell in cells if cell.text.strip().lower() not in MISSING)


def _tells(table: Table, name: str, label: str) -> bool:
    """Whether a column of a few words or numbers says the label: each stands beside one class alone, or nearly so."""
    beside: dict[str, Counter[str]] = {}
    for row in table.rows:
        if row[name].strip().lower() not in MISSING and row[label].strip().lower() not in MISSING:
            beside.setdefault(row[name], Counter())[row[label]] += 1
    cases = sum(counts.total() for counts in beside.values())
    few = len(beside) <= _MOST_CATEGORIES and cases > 5 * len(beside)
    classes = {most for counts in beside.values() for most, _ in counts.most_common(1)}
    return few and len(classes) > 1 and sum(max(counts.values()) for counts in beside.values()) >= _TELLS * cases


def _counts(table: Table, name: str) -> bool:
    """Whether a column only says which row it is: every cell another one, and its name an id's, or whole numbers."""
    cells = [row[name] for row in table.rows]
    alone = len(set(cells)) == len(cells) > 1
    named = name.strip().lower() in {"id", "index", "", "no", "nr"} or name.strip().lower().endswith(("_id", " id"))
    return alone and (named or not all(finite(TableCell(cell, "")) is not None for cell in cells))
