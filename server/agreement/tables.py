"""An agreement as tables of text, ready to be shown; nothing here knows HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.agreement.supplies import band_in_words, names_asked, supply_of
from fedgraft.common.agreement.verdict import VerdictPoint, verdict
from fedgraft.common.protocol.answers import Bands, SiteAnswer
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Regression, Segmentation
from fedgraft.server.dossier.document import table
from fedgraft.server.report.tables import NONE, ReportTable

_FACTS = {"modality": "modality", "vendor": "vendor", "spacing": "pixel spacing", "age": "age", "sex": "sex"}
_UNTOLD = frozenset({"not stated"})


@dataclass(frozen=True)
class SupplyPage:
    """One page: who can supply what, and what that means for the study."""

    title: str
    intro: tuple[str, ...]
    points: tuple[VerdictPoint, ...]
    tables: tuple[tuple[str, ReportTable], ...]


def supply_page(study: Study, agreement: SupplyAgreement) -> SupplyPage:
    """The page of an agreement about a study, which asks of data what it is about."""
    intro = (
        f"Asked at {agreement.at}; study {agreement.study}; agreement {agreement.digest}.",
        "Numbers are patients of the whole cohort, before any split, as each site's policy tells them.",
    )
    tables = (("Who can supply what", supply_table(study, agreement)), *_details(agreement))
    return SupplyPage(f"Who can supply study {study.name}", intro, tuple(verdict(study, agreement)), tables)


def supply_table(study: Study, agreement: SupplyAgreement) -> ReportTable:
    """A row for each site, and a column for each class of each task."""
    asked = [(task, name) for task in study.tasks for name in names_asked(task)]
    several = len(study.tasks) > 1
    heads = [_head(task.name, name, several=several, task=task) for task, name in asked]
    rows = [_row(study, answer) for answer in agreement.answers.values()]
    width = len(heads) + 5
    rows += [[site, f"no answer: {code.value}", *[NONE] * (width - 2)] for site, code in agreement.refusals.items()]
    return table(["site", "patients", *heads, "no label", "other words", "epsilon"], rows)


def _head(name: str, word: str, *, several: bool, task: object) -> str:
    if isinstance(task, Regression | Segmentation):
        return name
    return f"{name}: {word}" if several else word


def _row(study: Study, answer: SiteAnswer) -> list[str]:
    cells, strange, without = [], [], []
    for task in study.tasks:
        supply = supply_of(task, answer)
        if supply is None:
            cells += [NONE] * len(names_asked(task))
            continue
        cells += [band_in_words(supply.classes[name]) for name in names_asked(task)]
        without += [band_in_words(answer.tasks[task.name].unknown)]
        strange += [f"{word!r} {band_in_words(band)}" for word, band in supply.strange.items()]
    who = f"{answer.site} (observes)" if answer.observer else answer.site
    return [
        who,
        band_in_words(answer.patients),
        *cells,
        "; ".join(without) or NONE,
        ", ".join(strange) or NONE,
        _price(answer),
    ]


def _price(answer: SiteAnswer) -> str:
    if answer.price.refused:
        return f"refused: {answer.price.refused}"
    return f"{answer.price.epsilon:.2f} at delta {answer.price.delta:.1e}" if answer.price.epsilon else NONE


def _details(agreement: SupplyAgreement) -> Iterator[tuple[str, ReportTable]]:
    answers = list(agreement.answers.values())
    known = [fact for fact in _FACTS if any(_said(answer.facts.get(fact, {})) for answer in answers)]
    if known:
        rows = [[one.site, *(_said(one.facts.get(fact, {})) or NONE for fact in known)] for one in answers]
        yield "What images and rows say of themselves", table(["site", *(_FACTS[fact] for fact in known)], rows)
    columns = list(dict.fromkeys(column for answer in answers for column in answer.missing))
    gaps = [column for column in columns if any(answer.missing.get(column, (0, 0))[1] for answer in answers)]
    if gaps:
        cells = [[column, *(_gap(answer, column) for answer in answers)] for column in gaps]
        yield "Patients without a value", table(["column", *(answer.site for answer in answers)], cells)


def _said(bands: Bands) -> str:
    told: Sequence[tuple[str, str]] = [(word, band_in_words(band)) for word, band in bands.items()]
    return ", ".join(f"{word} {count}" for word, count in told if word not in _UNTOLD)


def _gap(answer: SiteAnswer, column: str) -> str:
    return band_in_words(answer.missing[column]) if column in answer.missing else NONE
