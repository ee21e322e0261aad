"""A run's figures: the few that answer "did it work", and all of them site by site, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedgraft.common.metrics.over_sites import macro_mean, worst
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.metrics.table import Metric, title
from fedgraft.server.report import plots
from fedgraft.server.report.history import (
    Row,
    RunRecord,
    enough,
    mapping,
    number,
    sequence,
    text,
)
from fedgraft.server.report.sureness import (
    ends,
    is_too_few,
    of_pooled,
    of_site,
    sides,
    with_interval,
)
from fedgraft.server.report.tables import NONE, ReportTable, TableLine, decimal, plural, whole

_REMARKS = {"accuracy": "of the likeliest class", "hd95_mm": "between outlines, where both are there"}
_HIDDEN = "masks hide single sites"
_MOST_TIMES = 20


@dataclass(frozen=True)
class Tile:
    """One large figure with its label and a remark."""

    value: str
    label: str
    remark: str = ""


def tiles(record: RunRecord, task: str) -> tuple[Tile, ...]:
    """The figures that answer "did it work": the final model on the test split."""
    final, told = record.final(task), record.shown(task)
    first, second = told.names[0], told.names[1]
    named = [record.called(metric, task) for metric in told.metrics[:2]]
    sites, pooled = mapping(final.get("sites")), mapping(final.get("pooled"))
    lowest = lowest_site(record, task)
    secure_aggregation = bool(pooled) and not sites
    return (
        Tile(decimal(_macro(final, first)), f"macro {named[0]}", _alike(final, first)),
        Tile(
            decimal(lowest[1]) if lowest else NONE,
            f"worst site’s {named[0]}",
            lowest[0] if lowest else _HIDDEN * secure_aggregation,
        ),
        Tile(decimal(_macro(final, second)), f"macro {named[1]}", _second(final, second)),
        Tile(
            decimal(number(pooled.get(first))),
            f"pooled {named[0]}",
            f"{whole(pooled.get('n'))} test cases together{_range(of_pooled(final)[1].get(first))}",
        ),
    )


def _alike(final: Row, metric: str) -> str:
    """Which sites a macro mean is of, and how far it may be off."""
    sites, told = mapping(final.get("sites")), enough(final)
    if not sites:
        return "mean of the sites, each alike" if mapping(final.get("pooled")) else ""
    few = len(sites) - len(told)
    if not told:
        return f"{TOO_FEW}: no site has {whole(final.get('floor'))} test cases of either class"
    rest = f"; {few} with {TOO_FEW}" if few else ""
    interval = mapping(mapping(final.get("macro_intervals")).get(metric))
    there = _there(final, metric)
    rest += f"; {len(told) - there} without this figure" if there < len(told) else ""
    return f"mean of {plural(there, 'site')}, each alike{rest}{_range(interval)}"


def _there(final: Row, metric: str) -> int:
    """How many of the sites with enough cases have this figure."""
    sites = mapping(final.get("sites"))
    return sum(number(mapping(sites[site]).get(metric)) is not None for site in enough(final))


def _second(final: Row, metric: str) -> str:
    """What the second metric is, and which sites have it where not all do that have enough cases."""
    told, there = enough(final), _there(final, metric)
    less = f"of {there} of these sites" if 0 < there < len(told) else ""
    return "; ".join(part for part in (_REMARKS.get(metric, ""), less) if part)


def _range(interval: object) -> str:
    low, high = ends(interval)
    return "" if low is None or high is None else f"; 95 %: {low:.3f} to {high:.3f}"


def lowest_site(record: RunRecord, task: str) -> tuple[str, float] | None:
    """The site that the metric shown first is worst at, of those with enough cases."""
    told, final = record.shown(task), record.final(task)
    sites = {site: mapping(mapping(final.get("sites"))[site]) for site in enough(final)}
    values = {site: {told.first.name: number(own.get(told.first.name))} for site, own in sites.items()}
    return worst(values, told.first)


def site_metrics(record: RunRecord, task: str) -> ReportTable:
    """Sites by metrics, below the macro means, the worst value of any site, and all cases pooled.

    Below each value stands its interval, and below the number of cases their positives and negatives, or classes.
    """
    final, kind = record.final(task), text(mapping(record.result.get("task_kinds")).get(task))
    sites = {site: mapping(own) for site, own in sorted(mapping(final.get("sites")).items())}
    told = {site: sites[site] for site in sites if site in enough(final)}
    pooled, lowest = mapping(final.get("pooled")), lowest_site(record, task)
    metrics = record.metrics(task, pooled)
    keys = [metric.name for metric in metrics]
    equal, precise = mapping(final.get("macro_intervals")), mapping(final.get("macro_by_precision"))
    macro = (with_interval(decimal(_macro(final, key)), equal.get(key)) for key in keys)
    rows = [TableLine(("macro mean of sites", "", *macro), "summary")]
    if any(precise.values()):
        weighed = (mapping(precise.get(key)) for key in keys)
        cells = (with_interval(decimal(number(one.get("value"))), one) for one in weighed)
        rows.append(TableLine(("macro mean, by precision", "", *cells), "summary"))
    if sites:  # masks hide the single sites, the worst too
        rows.append(
            TableLine(("worst of the sites", "", *(decimal(_worst_value(told, one)) for one in metrics)), "summary")
        )
    rows.append(TableLine(("all cases pooled", *_sure_cells(pooled, of_pooled(final), keys, kind)), "summary"))
    for site, own in sites.items():
        cells_ = _sure_cells(own, of_site(final, site), keys, kind)
        rows.append(TableLine((site, *cells_), "worst" if lowest and site == lowest[0] else ""))
    return ReportTable(("site", "cases", *(record.called(one, task) for one in metrics)), tuple(rows) if pooled else ())


def _macro(final: Row, key: str) -> float | None:
    stated = number(mapping(final.get("macro")).get(key))
    if stated is not None:
        return stated
    sites = mapping(final.get("sites"))
    return macro_mean([{key: number(mapping(sites[site]).get(key))} for site in enough(final)], key)


def _worst_value(sites: Mapping[str, Row], metric: Metric) -> float | None:
    known = [value for own in sites.values() if (value := number(own.get(metric.name))) is not None]
    return min(known, key=metric.goodness) if known else None


def _sure_cells(values: Row, sure: tuple[Row, Row], keys: Sequence[str], kind: str) -> tuple[str, ...]:
    """Cases and metrics, each with what it rests on; a site with too few says so in place of its first metric."""
    support, intervals = sure
    cases = "\n".join(part for part in (whole(values.get("n")), sides(support, kind)) if part)
    if is_too_few(support):
        return cases, TOO_FEW, *(NONE for _ in keys[1:])
    return cases, *(with_interval(decimal(number(values.get(key))), intervals.get(key)) for key in keys)


@dataclass(frozen=True)
class SurvivalView:
    """Kaplan-Meier curves of one stage."""

    event: str
    noised: bool
    plot: Markup
    table: ReportTable


def survival(record: RunRecord) -> list[SurvivalView]:
    """The curves of a run, by stage that counted; of many bins of time the table has some, the last among them."""
    found = []
    for counted in map(mapping, sequence(record.result.get("survival"))):
        ends = [number(end) or 0.0 for end in sequence(counted.get("ends"))]
        drawn = [mapping(one) for one in sequence(counted.get("curves"))]
        unit, step = text(counted.get("unit")), -(-len(ends) // _MOST_TIMES)
        shown = sorted(range(len(ends) - 1, -1, -step))
        lines = [TableLine((f"{ends[at]:g}", *(_left_at(one, at) for one in drawn))) for at in shown]
        lines.append(
            TableLine(("half are left", *(_median(one, unit) for one in drawn)), "summary"),
        )
        table = ReportTable((f"until ({unit})", *(text(one.get("name")) for one in drawn)), tuple(lines))
        curves = {text(one.get("name")): [number(left) for left in sequence(one.get("survival"))] for one in drawn}
        plot = Markup(plots.survival_plot(text(counted.get("stage")), ends, curves, unit))
        found.append(SurvivalView(text(counted.get("event")), bool(counted.get("noised")), plot, table))
    return found


def hazards(record: RunRecord) -> list[tuple[str, str, ReportTable]]:
    """The Cox regressions of a run: stage, a remark, and the columns."""
    found = []
    for own in map(mapping, sequence(record.result.get("hazards"))):
        lines = [
            TableLine((text(one.get("name")), *(_short(one, key) for key in _RATIO)))
            for one in map(mapping, sequence(own.get("columns")))
        ]
        settled = "" if own.get("settled") is True else " It has not settled: give it more rounds."
        table = ReportTable(("column", *_RATIO.values()), tuple(lines))
        found.append((text(own.get("stage")), f"{whole(own.get('events'))} events.{settled}", table))
    return found


_RATIO = {"coefficient": "coefficient", "error": "error", "ratio": "hazard ratio", "low": "from", "high": "to"}


def _short(one: Row, key: str) -> str:
    value = number(one.get(key))
    return NONE if value is None else f"{value:.4g}"


def _left_at(one: Row, at: int) -> str:
    """What is left after a bin with its interval, and below it events and numbers at risk."""
    left, low, high, events, at_risk = (
        number(sequence(one.get(key))[at]) for key in ("survival", "low", "high", "events", "at_risk")
    )
    within = "" if low is None or high is None else f" [{decimal(low)}, {decimal(high)}]"
    return f"{decimal(left)}{within}\n{whole(events)} of {whole(at_risk)}"


def _median(one: Row, unit: str) -> str:
    median = number(one.get("median"))
    return "not reached" if median is None else f"by {median:g} {unit}"


def at_operating_points(record: RunRecord, task: str) -> ReportTable:
    """What the thresholds that were chosen on validation cases give on the test cases, over all and site by site."""
    keys = ("recall", "specificity", "ppv", "npv")
    supports = mapping(mapping(record.final(task).get("support")).get("sites"))
    rows: list[TableLine] = []
    for point in map(mapping, sequence(mapping(record.result.get("operating_points")).get(task))):
        name, probability = text(point.get("name")), number(point.get("probability"))
        head = f"{name} from {probability:.3g}" if probability is not None else name
        rows.append(
            TableLine((head, "all cases", *_at_cells(mapping(point.get("pooled")), keys, few=False)), "summary")
        )
        for site, own in sorted(mapping(point.get("sites")).items()):
            few = is_too_few(mapping(supports.get(site)))
            rows.append(TableLine((head, site, *_at_cells(mapping(own), keys, few=few))))
    columns = ("positive", "site", "found", "missed", "false alarms", "rejected", *map(title, keys))
    return ReportTable(columns, tuple(rows), words=2)


def conformal_sets(record: RunRecord, task: str) -> ReportTable:
    """Thresholds of conformal sets by site, chosen on validation cases, and what they give of the test cases."""
    rows = []
    for name, sites in mapping(mapping(record.result.get("conformal")).get(task)).items():
        for site, own in sorted(mapping(sites).items()):
            rows.append(TableLine((name or "all classes", site or "all sites together", *_set_cells(mapping(own)))))
    columns = ("sets of", "site", "validation cases", "from", "wanted", "covered", "test cases", "mean size", "finding")
    return ReportTable(columns, tuple(rows), words=2)


def _set_cells(own: Row) -> tuple[str, ...]:
    """Both numbers of cases, threshold, coverage with its interval, size of sets, and what that says."""
    if not own:
        return NONE, NONE, NONE, NONE, NONE, NONE, "no threshold"
    test, chosen = mapping(own.get("test")), whole(own.get("cases"))
    wanted = (
        f"{decimal(number(own.get('wanted')))}\n{decimal(number(own.get('low')))} to {decimal(number(own.get('high')))}"
    )
    start = f"{number(own.get('probability')) or 0:.3g}"
    if not test:
        return chosen, start, wanted, NONE, NONE, NONE, "no test cases"
    low, high = ends(test.get("interval"))
    asked = number(own.get("wanted")) or 0
    # Chance of the test cases, and of the validation cases that it was chosen on.
    least, most = (number(own.get(key)) or asked for key in ("low", "high"))
    short, wide = high is not None and high < least, low is not None and low > most
    said = "less than chance explains" if short else "more than chance explains" if wide else "within chance"
    covered = with_interval(decimal(number(test.get("coverage"))), test.get("interval"))
    return chosen, start, wanted, covered, whole(test.get("n")), decimal(number(test.get("size"))), said


def _at_cells(own: Row, keys: Sequence[str], *, few: bool) -> tuple[str, ...]:
    """Counts and shares; where policy lets out noised or coarse counts alone, neither is known."""
    counts = (whole(own.get(key)) for key in ("found", "missed", "alarms", "rejected"))
    if few:
        return *counts, TOO_FEW, *(NONE for _ in keys[1:])
    intervals = mapping(own.get("intervals"))
    return *counts, *(with_interval(decimal(number(own.get(key))), intervals.get(key)) for key in keys)
