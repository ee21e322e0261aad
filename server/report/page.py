"""The report's page: one HTML file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.sums.label_metrics import LabelSums
from fedgraft.common.metrics.support import TOO_FEW
from fedgraft.common.metrics.table import TABLE, drawn_of
from fedgraft.server.report import figures, plots, tables
from fedgraft.server.report.audit import audited
from fedgraft.server.report.history import (
    FinalSums,
    RunRecord,
    curves,
    mapping,
    number,
    read_audit,
    read_run,
    sequence,
    spans,
    text,
    training_loss,
)
from fedgraft.server.report.subgroups import AttributeView, by_attribute
from fedgraft.server.report.sureness import is_too_few, of_site

_CLUSTERED = {
    "name": "They are named by the study.",
    "sums": "They were made from the sums that each site sent before: sites whose features, class by class, lie less "
    "than half a deviation apart, or hardly further than chance would put them, are together.",
    "loss": "They were chosen by the sites: each round a site took the model of the lowest loss on its training cases. "
    "These are the last choices.",
}
"""What clusters of sites rest on."""
_MOST_ROC_CLASSES = 6


@dataclass(frozen=True)
class Key:
    """An entry of a legend: how a line is drawn and what it stands for."""

    ink: plots.Ink
    name: str


@dataclass(frozen=True)
class TaskView:
    """All that the page shows of one task."""

    name: str
    tiles: tuple[figures.Tile, ...]
    legend: tuple[Key, ...]
    learning: tuple[Markup, ...]
    metrics: tables.ReportTable
    points: tables.ReportTable
    chosen: str
    """How the operating points were chosen."""
    sets: tables.ReportTable
    subgroups: tuple[AttributeView, ...]
    final: tuple[Markup, ...]
    remark: str


def write_page(run: Path) -> Path:
    """Write `report.html` into the run's folder; InputError if a file there is damaged."""
    page = run / "report.html"
    write_atomic(page, render(read_run(run)).encode("utf-8", "replace"))
    return page


def write_audit_page(folder: Path) -> Path:
    """Write `audit.html` beside a folder's `audit.json`; InputError if that is absent or damaged."""
    found = read_audit(folder)
    if not found:
        raise InputError(f"{folder}: there is no audit.json.", fix="Write one with `fedgraft privacy audit`.")
    page = folder / "audit.html"
    study = text(found.get("study"))
    write_atomic(page, template("audit.html.jinja").render(study=study, audit=audited(found)).encode("utf-8"))
    return page


def template(name: str) -> Template:
    """A template of this folder; whatever is put into it is text, never markup."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    return environment.get_template(name)


def breakable(words: str) -> Markup:
    """Text that may go on in the next line after each underscore, as after each hyphen: names of sites and keys."""
    return Markup("_<wbr>").join(escape(part) for part in words.split("_"))


def render(record: RunRecord) -> str:
    """The page as text. Names from sites and studies are text, never markup."""
    result = record.result
    missing, more = tables.refusals(record)
    return template("page.html.jinja").render(
        study=text(result.get("study")) or record.name,
        status=text(result.get("status")) or "unfinished",
        headline=text(result.get("headline")) or "The run has not finished; this page shows how far it got.",
        remarks=[text(remark) for remark in sequence(result.get("remarks"))],
        synthetic=result.get("synthetic") is True,
        alarm=_alarm(record),
        facts=_facts(record),
        tasks=[_task_view(record, task) for task in record.tasks],
        stages=tables.stages(record),
        cohorts=tables.cohorts(record),
        clusters=tables.clusters(record),
        likeness=tables.likeness(record),
        clustered_by=_CLUSTERED.get(text(mapping(result.get("clusters")).get("by")), ""),
        survival=figures.survival(record),
        hazards=figures.hazards(record),
        privacy=tables.privacy(record),
        private=any(mapping(own).get("dp") for own in mapping(record.result.get("privacy")).values()),
        missing=missing,
        more_missing=more,
        cost=_cost(record),
        audit=audited(record.audit),
        environment=tables.environment(record),
        repeat=_repeat(record),
        command=_command(record),
        study_text=record.study_text,
    )


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    moved, spent = mapping(record.result.get("bytes")), mapping(record.result.get("seconds")).values()
    seconds = [value for part in spent if (value := number(part)) is not None]
    facts = {
        "exchanges": tables.whole(len(record.exchanges)),
        "sent by sites": tables.size(moved.get("up")),
        "sent to sites": tables.size(moved.get("down")),
        "time": tables.duration(sum(seconds)) if seconds else tables.NONE,
        "engine": text(record.result.get("engine")) or tables.NONE,
    }
    return list(facts.items())


def _task_view(record: RunRecord, task: str) -> TaskView:
    ranking = _ranking(record, task)
    ink = plots.inks(ranking)
    stages = spans(record)
    told = {**TABLE, **{metric.name: metric for metric in record.shown(task).metrics}}
    drawn = {record.called(told[key], task): curves(record, task, key) for key in drawn_of(record.shown(task).names)}
    if task == record.tasks[0]:  # a site reports one loss for all tasks
        drawn["training loss"] = training_loss(record)
    learning = [plots.curve_plot(name, of, ink, stages) for name, of in drawn.items() if of.macro or of.test_macro]
    final, remark = _final_plots(record, task, ink)
    return TaskView(
        name=task,
        tiles=figures.tiles(record, task),
        legend=_legend(ink, ranking, _cases(record, task)),
        learning=tuple(map(Markup, learning)),
        metrics=figures.site_metrics(record, task),
        points=figures.at_operating_points(record, task),
        chosen=_chosen(record, task),
        sets=figures.conformal_sets(record, task),
        subgroups=by_attribute(record, task),
        final=tuple(map(Markup, final)),
        remark=remark,
    )


def _chosen(record: RunRecord, task: str) -> str:
    """By which rule, and on which validation cases, each threshold was chosen."""
    points = map(mapping, sequence(mapping(record.result.get("operating_points")).get(task)))
    return "; ".join(
        f"{text(one.get('name'))} by {text(one.get('rule'))}, on {text(one.get('positives'))} positive and "
        f"{text(one.get('negatives'))} negative validation cases, where it gave a sensitivity of "
        f"{tables.decimal(number(one.get('sensitivity')))} and a specificity of "
        f"{tables.decimal(number(one.get('specificity')))}"
        for one in points
    )


def _ranking(record: RunRecord, task: str) -> dict[str, float | None]:
    """All sites ever measured, with their final figure if known, else the latest; the higher the better."""
    told = record.shown(task)
    drawn = curves(record, task, told.first.name)
    found: dict[str, float | None] = {}
    for row in record.exchanges:
        found |= dict.fromkeys(mapping(mapping(mapping(row.get("metrics")).get(task)).get("sites")))
        found |= dict.fromkeys(mapping(row.get("train")))
    for points in (drawn.sites, drawn.test_sites):
        found |= {site: own[-1][1] for site, own in points.items()}
    final = record.final(task)
    for site, values in mapping(final.get("sites")).items():
        few = is_too_few(of_site(final, site)[0])  # neither best nor worst: nobody can say
        found[site] = None if few else number(mapping(values).get(told.first.name))
    return {site: None if value is None else told.first.goodness(value) for site, value in found.items()}


def _cases(record: RunRecord, task: str) -> dict[str, str]:
    """By site how many test cases its curves are of, and whether those are too few to say."""
    final = record.final(task)
    found = {}
    for site, values in mapping(final.get("sites")).items():
        few = f", {TOO_FEW}" if is_too_few(of_site(final, site)[0]) else ""
        found[site] = f" ({tables.whole(mapping(values).get('n'))} test cases{few})"
    return found


def _legend(
    ink: Mapping[str, plots.Ink], ranking: Mapping[str, float | None], cases: Mapping[str, str]
) -> tuple[Key, ...]:
    keys = [Key(plots.MEAN, "macro mean of sites with enough cases; else, and in ROC, all cases pooled")]
    if len(ink) <= plots.MANY_SITES:
        return (*keys, *(Key(of_site, site + cases.get(site, "")) for site, of_site in ink.items()))
    special = sorted((site for site in ink if ink[site].layer > 2), key=lambda site: -(ranking[site] or 0))
    keys += [
        Key(ink[site], f"{word} site: {site}{cases.get(site, '')}")
        for word, site in zip(("best", "worst"), special, strict=False)
    ]
    grey = next(of_site for of_site in ink.values() if of_site.layer == 2)
    return (*keys, Key(grey, f"the other {len(ink) - len(special)} sites"))


def _final_plots(record: RunRecord, task: str, ink: Mapping[str, plots.Ink]) -> tuple[list[str], str]:
    sums: FinalSums | None = record.sums.get(task)
    if sums is None or not sums.pooled.n or not isinstance(sums.pooled, ClassificationSums | LabelSums):
        return [], ""
    pooled, totals = sums.pooled, sums.pooled.scores.totals().tolist()
    count = pooled.classes if isinstance(pooled, ClassificationSums) else pooled.labels
    named = [text(name) for name in sequence(mapping(record.result.get("task_classes")).get(task))]
    names = named if len(named) == count else [f"class {index}" for index in range(count)]
    if isinstance(pooled, ClassificationSums):
        asked = [index for index in range(count) if min(totals[index]) > 0] if count > 2 else [1]
        # Where policy lets out coarse or noised counts alone, there may be neither.
        drawn = [] if pooled.hides_confusion else [plots.confusion_plot(pooled, names)]
        drawn += [plots.reliability_plot(pooled)] if pooled.calibration_cases.any() else []
    else:
        asked = [index for index in range(count) if min(totals[index]) > 0]
        drawn = []
    shown = asked[:_MOST_ROC_CLASSES]
    for index in shown:
        drawn.append(plots.roc_plot(f"ROC, {names[index]}", sums.sites, sums.pooled, index, ink))
    several = isinstance(pooled, ClassificationSums) and count > 2
    remark = "Each ROC curve is of one class against the rest." if several else ""
    if len(shown) < len(asked):
        what = "classes" if isinstance(pooled, ClassificationSums) else "labels"
        remark += f" They are drawn for the first {len(shown)} of {len(asked)} {what}."
    return drawn, remark


def _cost(record: RunRecord) -> list[Markup]:
    drawn = []
    traffic: dict[str, list[tuple[float, float]]] = {"bytes_up": [], "bytes_down": []}
    for place, row in enumerate(record.exchanges, start=1):
        for key, points in traffic.items():
            if (value := number(row.get(key))) is not None:
                points.append((number(row.get("exchange")) or place, value))
    if any(traffic.values()):
        drawn.append(plots.bytes_plot(traffic["bytes_up"], traffic["bytes_down"]))
    phases = mapping(record.result.get("seconds"))
    seconds = {phase: value for phase, spent in phases.items() if (value := number(spent)) is not None}
    if seconds:
        drawn.append(plots.seconds_plot(seconds))
    return [Markup(svg) for svg in drawn]


def _repeat(record: RunRecord) -> str:
    if is_deployed(record):
        return "The sites must have approved the study, and be online:"
    if not record.has_scenario:
        return "The hospitals were given by a program, not by a file: give it the same ones again, with this study:"
    return "The hospitals are described beside the study; data of your own must lie where they lay:"


def is_deployed(record: RunRecord) -> bool:
    """Whether real sites took part."""
    return record.result.get("engine") == "deployed"


def _command(record: RunRecord) -> str:
    study = f"{record.name}/study.yaml"
    if is_deployed(record):
        return f"fedgraft server run {study} --out {record.name}-again"
    engine: Any = record.result.get("engine")
    if not record.has_scenario:
        return f"fedgraft study show {study}"
    words = ["fedgraft", "simulate", study, "--scenario", f"{record.name}/scenario.yaml"]
    words += ["--engine", engine] if isinstance(engine, str) and engine else []
    return " ".join([*words, "--out", f"{record.name}-again"])


def _alarm(record: RunRecord) -> str:
    """Who was missing at the end, or how often on the way; nothing where nobody was."""
    refused = [mapping(row) for row in sequence(record.result.get("refusals"))]
    if not refused:
        return ""
    last = max((int(number(row.get("exchange")) or 0) for row in record.exchanges), default=0)
    away = sorted({text(row.get("site")) for row in refused if int(number(row.get("exchange")) or 0) in (0, last)})
    times = tables.plural(len(refused), "answer")
    if away:
        return f"Not there at the end: {', '.join(away)}. The figures are of the others; {times} did not come in all."
    return f"{times} did not come on the way; all sites were there at the end. See \u201cWho was missing\u201d."
