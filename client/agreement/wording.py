"""The words of a site's own label columns, as its `label_map` has them, whatever classes a study names.

Patients are counted by these words, and not by the study's classes. So a coordinator that asks again with other classes
is told the same numbers, and cannot find anybody in the difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import Table, read_csv
from fedgraft.client.data.tables.table import label_columns
from fedgraft.client.data.tables.words import OTHERS, TableCell, is_missing, mapped, meant
from fedgraft.common.base.errors import DataError
from fedgraft.common.config.suggest import plain_word
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import AnyTask, Segmentation, Task

NO_COLUMN, NOT_NAMED = "no_column", "not_named"
"""Why nothing is said of a task: the site has no column for it, or none that its own file names."""

_USUAL = ("diagnosis", "label")
_MOST, _LONGEST = 200, 64
_FILLER = "no other word"


@dataclass(frozen=True)
class Heard:
    """One task at a site. `task` is what the cohort is read for, None if the site has nothing of it.

    `names` are the site's own words for the classes of a classification, in their order. `others` is what the site's
    entry "all others" makes of words that are no class; `named` says whether the site's own file names the column, so
    that it was not the coordinator who chose it.
    """

    task: AnyTask | None
    names: tuple[str, ...] = ()
    others: str = ""
    named: bool = True


@dataclass(frozen=True)
class Wording:
    """How a site's cohort is read to be counted: its own description with every word spelt out, and the tasks."""

    spec: CohortSpec
    heard: Mapping[str, Heard] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[AnyTask, ...]:
        """Those of which the site has something."""
        return tuple(heard.task for heard in self.heard.values() if heard.task is not None)


def wording(spec: CohortSpec, study: Study) -> Wording:
    """The site's words for every task of a study. DataError if its table cannot be read at all."""
    path = spec.labels or (spec.root if spec.kind == "table" else None)
    table = None if path is None else read_csv(path)
    label_map, heard = dict(spec.label_map), {}
    for task in study.tasks:
        heard[task.name], entries = _heard(task, spec, table, alone=len(study.tasks) == 1)
        label_map |= {task.name: entries} if entries else {}
    # Which rows are complete depends on the columns that a study names, so all are counted.
    return Wording(spec.model_copy(update={"label_map": label_map, "complete_cases": False}), heard)


def _heard(task: AnyTask, spec: CohortSpec, table: Table | None, *, alone: bool) -> tuple[Heard, dict[str, str]]:
    """One task, and what its column's words mean, where these are not the study's classes."""
    if isinstance(task, Segmentation):
        return Heard(task if spec.mask_images or spec.mask_segmentations else None), {}
    if table is None:
        return Heard(task, task.classes if isinstance(task, Task) else ()), {}
    try:
        # Twice, where there are other tasks: only a sole task may stand in a column with a usual name.
        columns = label_columns(table, [task] * (1 if alone else 2), spec)
    except DataError:
        return Heard(None), {}
    named = all(key in spec.label_columns or column in _USUAL for key, column in columns.items())
    if not isinstance(task, Task):
        return Heard(task, named=named), {}
    return _classes(task, spec, Counter(row[columns[task.name]] for row in table.rows), columns[task.name], named=named)


def _classes(
    task: Task, spec: CohortSpec, cells: Counter[str], column: str, *, named: bool
) -> tuple[Heard, dict[str, str]]:
    own = dict(spec.label_map.get(task.name, {}))
    others = own.pop(OTHERS, "")
    plain = spec.model_copy(update={"label_map": {task.name: own}})
    means = {text: _meaning(TableCell(text, "", column), task, plain) for text in cells if text}
    words = _kept(cells, means)
    classes = {name: word for word in words.values() if (name := meant(word, task.classes)) is not None}
    if not others and len(classes) == len(words) == len({plain_word(word) for word in means.values() if word}):
        return Heard(task, tuple(classes.get(name, name) for name in task.classes), named=named), {}
    names = (*words.values(), OTHERS, *([_FILLER] if not words else []))
    entries = {text: words.get(plain_word(word), OTHERS) if word else "" for text, word in means.items()}
    return Heard(Task(name=task.name, classes=names), names, others, named), entries


def _meaning(cell: TableCell, task: Task, spec: CohortSpec) -> str:
    """The word that a cell stands for, "" for "not known". A class is meant before a word that says "missing"."""
    word, _ = mapped(spec, task.name, cell, lambda _: False)
    return "" if meant(word.text, task.classes) is None and is_missing(word, spec) else word.text


def _kept(cells: Counter[str], means: Mapping[str, str]) -> dict[str, str]:
    """The most frequent words, each under its plain form as it is spelt most often; not what is no word at all."""
    counts: dict[str, Counter[str]] = {}
    for text, word in means.items():
        if word and word != OTHERS and len(word) <= _LONGEST and word.isprintable():
            counts.setdefault(plain_word(word), Counter())[word] += cells[text]
    most = sorted(counts, key=lambda form: (-counts[form].total(), form))[:_MOST]
    return {form: min(counts[form], key=lambda word: (-counts[form][word], word)) for form in most}
