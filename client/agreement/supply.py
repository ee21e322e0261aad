"""Patients counted: by word of every task, by what files say of themselves, and by missing values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.client.agreement.wording import NO_COLUMN, NOT_NAMED, Heard
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.decoding.dicom.dicom_image import decade
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.csv_tables import read_csv
from fedgraft.client.data.tables.targets import known
from fedgraft.client.data.tables.words import OTHERS, is_missing
from fedgraft.client.privacy.ledger.public_counts import band
from fedgraft.common.protocol.answers import Band, Bands, TaskSupply
from fedgraft.common.study.inputs import FeaturesInput, InputSpec, TableInput
from fedgraft.common.study.tasks import Multilabel, Task

_SEXES = frozenset({"sex", "gender"})
Places = NDArray[np.bool_]
"""Which cases, (N,)."""


@dataclass(frozen=True)
class Counting:
    """How patients of a cohort are counted: exactly, or in bands that do not tell what is below ten from nothing."""

    patients: NDArray[np.int64]
    """By case the number of its patient, (N,)."""
    exact: bool

    @classmethod
    def of(cls, cohort: Cohort, *, exact: bool) -> Counting:
        """Over the cases of a cohort."""
        numbers = np.unique(np.array(cohort.patients, dtype=str), return_inverse=True)[1]
        return cls(numbers.astype(np.int64), exact)

    def count(self, cases: Places) -> Band:
        """The patients with any of these cases."""
        found = len(np.unique(self.patients[cases]))
        return (found, found) if self.exact else band(found)

    def shown(self, band: Band) -> bool:
        """Whether there are patients enough to say what they have in common."""
        return band[0] > 0

    def by_word(self, words: NDArray[np.str_]) -> Bands:
        """Patients by the word of their cases, without words of too few."""
        found = {str(word): self.count(words == word) for word in np.unique(words) if word}
        return {word: one for word, one in found.items() if self.shown(one)}


def supplied(cohort: Cohort, heard: Mapping[str, Heard], counting: Counting) -> dict[str, TaskSupply]:
    """What there is of every task; of a column that only the coordinator named nothing, unless counts are exact."""
    found = {}
    for name, one in heard.items():
        if one.task is None:
            found[name] = TaskSupply(silent=NO_COLUMN)
        elif not one.named and not counting.exact:
            found[name] = TaskSupply(silent=NOT_NAMED)
        else:
            found[name] = _supply(cohort, one, counting)
    return found


def _supply(cohort: Cohort, heard: Heard, counting: Counting) -> TaskSupply:
    assert heard.task is not None
    target = cohort.targets[heard.task.name]
    there = known(target).numpy()
    if isinstance(heard.task, Task):
        cases = {word: (target == number).numpy() for number, word in enumerate(heard.names)}
    elif isinstance(heard.task, Multilabel):
        cases = {label: (target[:, at] == 1).numpy() for at, label in enumerate(heard.task.labels)}
    else:
        cases = {"known": there}
    words = {word: counting.count(places) for word, places in cases.items() if word != OTHERS}
    shown = {word: one for word, one in words.items() if counting.shown(one)}
    if isinstance(heard.task, Multilabel) and not counting.exact:
        # Each label is told by itself alone: which of them go together is the study's choice, and not the site's.
        untold = 0, counting.count(np.ones(len(there), bool))[1]
        return TaskSupply(shown, untold, untold, heard.others)
    hidden = [places for word, places in cases.items() if word not in shown]
    rest = counting.count(np.any([np.zeros(len(there), bool), *hidden], axis=0))
    known_patients = np.isin(counting.patients, np.unique(counting.patients[there]))
    return TaskSupply(shown, rest, counting.count(~known_patients), heard.others)


def described(cohort: Cohort, asked: InputSpec, counting: Counting) -> dict[str, Bands]:
    """Patients by vendor, spacing, sex and age, as the files say them, or the columns that the study asks for."""
    found: dict[str, Bands] = {}
    for fact in sorted({fact for case in cohort.described for fact, _ in case}):
        words = np.array([dict(case).get(fact, "") for case in cohort.described], dtype=str)
        found[fact] = counting.by_word(words)
    for fact, values in _columns(cohort, asked):
        found[fact] = counting.by_word(np.array(values, dtype=str))
    return {fact: bands for fact, bands in found.items() if bands}


def missing(cohort: Cohort, spec: CohortSpec, asked: InputSpec, counting: Counting) -> Bands:
    """By column of the study, the patients in whose rows it never has a value.

    A word is a value, whether or not it is one of the study's categories: what else there is would show in these.
    """
    if not isinstance(asked, TableInput) or isinstance(asked, FeaturesInput) or spec.kind != "table":
        return {}
    table = read_csv(spec.root)
    found = {}
    for name in (*asked.numeric, *asked.categorical):
        there = name in table.rows[0]
        cells = [table.cell(at, table.rows[at], name) for at in cohort.origins] if there else []
        filled = np.array([not is_missing(cell, spec) for cell in cells] if there else [False] * len(cohort.origins))
        some = np.isin(counting.patients, np.unique(counting.patients[filled]))
        found[name] = counting.count(~some)
    return found


def _columns(cohort: Cohort, asked: InputSpec) -> Iterable[tuple[str, list[str]]]:
    for name, values in _values(cohort, asked):
        form = name.casefold()
        say: Callable[[float], str] | None = None
        if isinstance(asked, TableInput) and form == "age" and name in asked.numeric:
            say = decade
        elif isinstance(asked, TableInput) and form in _SEXES and name in asked.categorical:
            say = dict(enumerate(asked.categorical[name])).__getitem__  # type: ignore[assignment]
        if say is not None:
            yield ("age" if form == "age" else "sex"), ["" if np.isnan(one) else say(one) for one in values]


def _values(cohort: Cohort, asked: InputSpec) -> Iterable[tuple[str, NDArray[np.float64]]]:
    """Of each column of a table its values, NaN where there is none; of categories their numbers."""
    if not isinstance(asked, TableInput) or isinstance(asked, FeaturesInput):
        return
    inputs, at = cohort.inputs.double().numpy(), len(asked.numeric)
    yield from ((name, inputs[:, number]) for number, name in enumerate(asked.numeric))
    for name, categories in asked.categorical.items():
        own = inputs[:, at : at + len(categories)]
        yield name, np.where(own.any(axis=1), own.argmax(axis=1), np.nan)
        at += len(categories)
