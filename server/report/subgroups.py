"""A task's figures by subgroup, as tables and sentences: each with what it rests on, and how far groups differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.metrics.table import title
from fedgraft.server.report.history import Row, RunRecord, mapping, number, sequence, text
from fedgraft.server.report.sureness import ends, is_too_few, sides, with_interval
from fedgraft.server.report.tables import NONE, ReportTable, TableLine, decimal, whole

NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class AttributeView:
    """What is shown of one attribute: its groups over all cases and at each site, and what they say together."""

    name: str
    table: ReportTable
    remarks: tuple[str, ...]


def by_attribute(record: RunRecord, task: str) -> tuple[AttributeView, ...]:
    """All attributes that the study asks for, those too of which no site shows anything."""
    found = mapping(mapping(record.result.get("subgroups")).get(task))
    return tuple(_view(record, task, name, mapping(own)) for name, own in found.items())


def _view(record: RunRecord, task: str, name: str, own: Row) -> AttributeView:
    kind = text(mapping(record.result.get("task_kinds")).get(task))
    groups = [text(group) for group in sequence(own.get("asked"))]
    pooled, sites = mapping(own.get("pooled")), mapping(own.get("sites"))
    shown = mapping(pooled.get("groups"))
    keys = _keys(record, task, shown)
    rows = [
        TableLine((group, "together", *_cells(mapping(shown.get(group)), keys, kind)), "summary") for group in groups
    ]
    for site, there in sorted(sites.items()):
        known = mapping(mapping(there).get("groups"))
        rows += [
            TableLine((group, site, *_cells(mapping(known[group]), keys, kind))) for group in groups if group in known
        ]
    table = ReportTable((name, "site", "cases", *map(title, keys)), tuple(rows) if shown else (), words=2)
    everywhere = set(mapping(record.final(task).get("sites"))) <= set(sites)
    return AttributeView(name, table, tuple(_remarks(name, groups, own, everywhere=everywhere)))


def _keys(record: RunRecord, task: str, groups: Row) -> list[str]:
    """The metrics that are shown first, and those of which some group has an interval: a wider table is not read."""
    sure = {key for own in groups.values() for key in mapping(mapping(own).get("intervals"))}
    there = record.metrics(task, mapping(record.final(task).get("pooled")))
    return [one.name for one in there if one.name in sure.union(record.shown(task).names)]


def _cells(own: Row, keys: list[str], kind: str) -> tuple[str, ...]:
    if not own:
        return NONE, NOT_SHOWN, *(NONE for _ in keys[1:])
    values, support, intervals = mapping(own.get("values")), mapping(own.get("support")), mapping(own.get("intervals"))
    cases = "\n".join(part for part in (whole(support.get("n")), sides(support, kind)) if part)
    if is_too_few(support):
        return cases, TOO_FEW, *(NONE for _ in keys[1:])
    return cases, *(with_interval(decimal(number(values.get(key))), intervals.get(key)) for key in keys)


def _remarks(name: str, groups: list[str], own: Row, *, everywhere: bool) -> Iterator[str]:
    pooled, sites = mapping(own.get("pooled")), mapping(own.get("sites"))
    shown = mapping(pooled.get("groups"))
    if not shown:
        yield f"No site shows figures by {name}: policies do not allow it, or its groups are too small there."
        return
    if hidden := [group for group in groups if group not in shown]:
        yield f"No site shows {', '.join(hidden)}: too few patients, or as many as a subtraction would tell."
    whose = {
        group: {site for site, there in sites.items() if group in mapping(mapping(there).get("groups"))}
        for group in shown
    }
    if sites and not everywhere:
        yield f"Shown by {', '.join(sorted(sites))}; other sites show none by {name}."
    yield _gap_in_words(name, mapping(pooled.get("gap")), "Together")
    if sites and len({frozenset(one) for one in whose.values()}) > 1:
        yield "The groups are not of the same sites, so that a difference between them may be one between sites."
    for site, there in sorted(sites.items()):
        if gap := mapping(mapping(there).get("gap")):
            yield _gap_in_words(name, gap, f"At {site}")


def _gap_in_words(name: str, gap: Row, where: str) -> str:
    """Which group is worst and by how much, if that can be said."""
    if not gap:
        return f"{where}, not two groups by {name} have enough cases: how far they differ is {TOO_FEW}."
    metric, (low, high) = title(text(gap.get("metric"))), ends(gap)
    pair = " and ".join(map(text, sequence(gap.get("between"))))
    apart = f"{where}, {pair} are {decimal(number(gap.get('value')))} apart in {metric}"
    if low is None or high is None:
        return f"{apart}, without an interval: whether that is chance is not known."
    said = f"{apart} (95 %, all pairs together: {low:.3f} to {high:.3f})"
    if gap.get("decided") is not True:
        return f"{said}, which may be chance: no group is shown to be worse."
    return f"{said}: {text(gap.get('worst'))} is the worst."
