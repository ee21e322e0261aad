"""A run's record as tables of text, ready to be shown; nothing here knows HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgraft.common.protocol.instructions import Code
from fedgraft.server.report.history import (
    Row,
    RunRecord,
    mapping,
    number,
    sequence,
    text,
)

NONE = "–"
_MOST_REFUSALS = 60
MEANINGS = {
    Code.OTHER_PROTOCOL: "runs another version of fedgraft",
    Code.UNKNOWN_STUDY: "does not know this study",
    Code.OUT_OF_TURN: "was asked for what the study does not have, or has behind it",
    Code.MISSING_TENSORS: "lacks entries of the model that it should hold",
    Code.BAD_TENSORS: "was sent entries that do not fit its model",
    Code.NO_LABELS: "has no labels",
    Code.NO_SOURCE: "has no source data, which the study needs at each site",
    Code.NO_CLUSTER: "is in none of the study's clusters of sites",
    Code.COHORT_CHANGED: "has other cases than those over which it answered for the agreement",
    Code.OTHER_AGREEMENT: "never gave the answer that the agreement has under its name",
    Code.TOO_FEW_CASES: "has too few cases",
    Code.BAD_DATA: "could not read its data",
    Code.DIVERGED: "its training diverged",
    Code.OUT_OF_MEMORY: "ran out of memory",
    Code.NO_GPU: "trains on a GPU only, and has none now",
    Code.DISK: "could not write to its disk",
    Code.FAILED: "failed; its own log says why",
    Code.NOT_APPROVED: "has not approved this study",
    Code.WRONG_NAME: "gave a name that is not that of its key",
    Code.POLICY: "does not allow it by its policy",
    Code.HELD: "holds its answer until a person there has decided on it",
    Code.RELEASE_REFUSED: "does not let go what the study would have, as people there have decided",
    Code.PLUGIN_NOT_LISTED: "does not list a plug-in of the study in its policy",
    Code.PLUGIN_VERSION: "has another version of a plug-in than the study names, or none",
    Code.PLUGIN_DIGEST: "has another plug-in installed than its policy lists",
    Code.BUDGET: "has not enough of its privacy budget left",
    Code.LEDGER: "has a privacy ledger that cannot be trusted",
    Code.DEADLINE: "did not answer in time",
    Code.UNREACHABLE: "could not be reached",
    Code.GARBAGE: "sent an answer that could not be read",
    Code.WRONG_KEYS: "sent other entries than asked for",
    Code.WRONG_SHAPE: "sent entries of another shape",
    Code.NOT_FINITE: "sent values that are not finite",
    Code.TOO_LARGE: "sent an update that is far too large",
    Code.BAD_WEIGHT: "gave an impossible number of cases",
    Code.OTHER_CONTEXT: "masked for something else: another model, other partners or other keys",
    Code.NO_SECURE_AGGREGATION: "has no mask key that its roster knows",
    Code.NOT_SECURE: "does not mask with the sites that it was named",
    Code.MASK_REUSED: "was asked to use a mask again",
}


@dataclass(frozen=True)
class TableLine:
    """A table's row; `kind` is "", "summary" or "worst"."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Columns and rows of text; the first `words` columns hold words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[TableLine, ...]
    words: int = 1


def stages(record: RunRecord) -> ReportTable:
    """What each stage did, trained, shared and cost."""
    columns = {
        "name": "stage",
        "where": "sites",
        "local": "work at a site",
        "trains": "trains",
        "shares": "shares",
        "keeps": "keeps",
        "aggregate": "aggregate",
    }
    rows = [mapping(row) for row in sequence(record.result.get("plan"))]
    shown = {key: name for key, name in columns.items() if any(text(row.get(key)) for row in rows)}
    numbers = ("rounds", "entries trained", "entries shared", "up per round", "down per round")
    lines = [
        TableLine(
            (
                *(text(row.get(key)) or NONE for key in shown),
                whole(row.get("rounds")),
                whole(row.get("trained_parameters")),
                whole(row.get("shared_parameters")),
                size(row.get("bytes_up_per_round")),
                size(row.get("bytes_down_per_round")),
            )
        )
        for row in rows
    ]
    return ReportTable((*shown.values(), *numbers), tuple(lines), words=len(shown))


def cohorts(record: RunRecord) -> ReportTable:
    """What each site brought: cases by split, labels, files left out."""
    sites = {site: mapping(own) for site, own in sorted(mapping(record.result.get("sites")).items())}
    lines = []
    for site, own in sites.items():
        cases = mapping(own.get("cases"))
        labels = "; ".join(
            (f"{task}: " if len(mapping(own.get("labels"))) > 1 else "") + _pairs(mapping(counts))
            for task, counts in mapping(own.get("labels")).items()
        )
        lines.append(
            TableLine(
                (
                    site,
                    labels or NONE,
                    _pairs(mapping(own.get("problems"))) or "none",
                    *(whole(cases.get(split)) for split in ("train", "val", "test")),
                )
            )
        )
    columns = ("site", "training labels", "left out, missing or odd", "train", "val", "test")
    return ReportTable(columns, tuple(lines), words=3)


def clusters(record: RunRecord) -> ReportTable:
    """The clusters of a run, and the sites that have a model together in each; no rows where there are none."""
    found = mapping(mapping(record.result.get("clusters")).get("sites"))
    lines = [TableLine((name, ", ".join(map(text, sequence(sites))))) for name, sites in sorted(found.items())]
    return ReportTable(("cluster", "sites"), tuple(lines), words=2)


def likeness(record: RunRecord) -> ReportTable:
    """How far apart the sites' features lie, where clusters rest on that."""
    pairs = map(mapping, sequence(mapping(record.result.get("clusters")).get("likeness")))
    lines = [
        TableLine(
            (text(pair.get("one")), text(pair.get("other")), *(decimal(number(pair.get(k))) for k in _DISTANCES)),
        )
        for pair in pairs
    ]
    return ReportTable(("site", "site", "apart", "by chance"), tuple(lines), words=2)


_DISTANCES = ("distance", "by_chance")


def privacy(record: RunRecord) -> ReportTable:
    """What each site says that the study has cost it, and what that promises a patient."""
    lines = []
    for site, own in sorted(mapping(record.result.get("privacy")).items()):
        values = mapping(own)
        plain = ", ".join(text(name) for name in sequence(values.get("without_dp")))
        if not values.get("dp"):
            lines.append(TableLine((site, "none", plain or "nothing", NONE, NONE, NONE)))
            continue
        how = f"{text(values.get('relation'))} one {text(values.get('unit'))}, {text(values.get('accountant'))}"
        figures = (_epsilon(values), _delta(values), whole(values.get("steps")))
        lines.append(TableLine((site, how, plain or "nothing", *figures)))
    promised = mapping(record.result.get("privacy_overall"))
    for key, who in (("one_site", "a patient of one site"), ("two_sites", "a patient of two sites")):
        if values := mapping(promised.get(key)):
            how = f"one {text(promised.get('unit'))}"
            lines.append(TableLine((who, how, "nothing", _epsilon(values), _delta(values), NONE), kind="summary"))
    columns = ("site", "differential privacy", "left without noise", "epsilon", "delta", "steps")
    return ReportTable(columns, tuple(lines), words=3)


def refusals(record: RunRecord) -> tuple[ReportTable, int]:
    """Who was missing when, and why; and how many rows there are beyond those shown."""
    rows = [mapping(row) for row in sequence(record.result.get("refusals"))]
    if not rows and "refusals" not in record.result:
        rows = [
            {**{key: row.get(key) for key in ("exchange", "stage", "round")}, "site": site, "code": code}
            for row in record.exchanges
            for site, code in mapping(row.get("missing")).items()
        ]
    lines = [
        TableLine(
            (
                text(row.get("site")),
                text(row.get("stage")) or NONE,
                text(row.get("code")),
                MEANINGS.get(row["code"], NONE) if isinstance(row.get("code"), str) else NONE,
                whole(row.get("round")),
                whole(row.get("exchange")),
            )
        )
        for row in rows
    ]
    columns = ("site", "stage", "code", "the site", "round", "exchange")
    return ReportTable(columns, tuple(lines[:_MOST_REFUSALS]), words=4), max(0, len(lines) - _MOST_REFUSALS)


def environment(record: RunRecord) -> ReportTable:
    """Versions, device and settings of the machine that ran it, as a table."""
    facts = {
        "fedgraft": record.result.get("fedgraft"),
        "study digest": record.result.get("study_digest"),
        **{key.replace("_", " "): value for key, value in record.environment.items() if key != "packages"},
        **mapping(record.environment.get("packages")),
    }
    return ReportTable(
        ("what", "value"), tuple(TableLine((key, text(value))) for key, value in facts.items() if text(value)), 2
    )


def decimal(value: float | None) -> str:
    """A number with three decimals, a dash if there is none."""
    return NONE if value is None else f"{value:.3f}"


def whole(value: Any) -> str:
    """A count with thin spaces between thousands."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}".replace(",", "\u202f")


def size(value: Any) -> str:
    """Bytes in units of 1,000, such as "44.8 MB"; a dash if there are none."""
    found = number(value)
    if found is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < 1000 or unit == "GB":
            break
        found /= 1000
    return f"{found:.0f} {unit}" if unit == "B" else f"{found:.1f} {unit}"


def duration(value: Any) -> str:
    """Seconds as seconds, minutes or hours."""
    found = number(value)
    if found is None:
        return NONE
    if found < 120:
        return f"{found:.1f} s"
    return f"{found / 60:.0f} min" if found < 7200 else f"{found / 3600:.1f} h"


def _pairs(values: Row) -> str:
    return ", ".join(f"{key} {text(value)}" for key, value in values.items() if text(value))


def _epsilon(values: Row) -> str:
    value = number(values.get("epsilon"))
    return NONE if value is None else f"{value:.2f}"


def _delta(values: Row) -> str:
    value = number(values.get("delta"))
    return NONE if value is None else f"{value:.1e}"


def plural(count: int, word: str) -> str:
    """A number of things, such as "1 site" or "3 sites"."""
    return f"{count} {word}{'' if count == 1 else 's'}"
