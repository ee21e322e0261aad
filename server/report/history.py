"""Read a run's folder: damaged files are errors with a place, absent fields are just absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fedgraft.common.base.disk import read_bytes, why_no_file
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json
from fedgraft.common.metrics.over_sites import macro_mean
from fedgraft.common.metrics.shown import Shown
from fedgraft.common.metrics.sums.task_metrics import (
    TaskSums,
    read_sums,
)
from fedgraft.common.metrics.table import OF_CLASSES, TABLE, Better, Metric, title

Row = dict[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class FinalSums:
    """The final model's sums on the test split, by site and over all cases."""

    sites: dict[str, TaskSums]
    pooled: TaskSums


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind. `result` and `environment` are empty if the run has not got that far."""

    name: str
    exchanges: tuple[Row, ...]
    result: Row
    environment: Row
    study_text: str
    sums: dict[str, FinalSums]
    audit: Row
    has_scenario: bool = False
    """Whether the hospitals of a simulation are described in the folder."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks for which anything was measured."""
        seen = [mapping(row.get("metrics")) for row in self.exchanges] + [mapping(self.result.get("metrics"))]
        return tuple(dict.fromkeys(task for metrics in seen for task in metrics))

    def shown(self, task: str) -> Shown:
        """The metrics that a report shows first of a task, as the run recorded them."""
        for row in (self.result, *self.exchanges):
            own = mapping(mapping(row.get("metrics")).get(task))
            if names := [text(name) for name in sequence(own.get("shown"))]:
                return Shown(tuple(_metric(name, mapping(own.get("facts"))) for name in names))
        return Shown(tuple(TABLE[name] for name in OF_CLASSES))

    def metrics(self, task: str, there: Row) -> list[Metric]:
        """All metrics that have a value in `there`, as reports order them: the table's, then those of plug-ins."""
        own = {metric.name: metric for metric in self.shown(task).metrics}
        return [metric for name, metric in {**TABLE, **own}.items() if name in there]

    def called(self, metric: Metric, task: str) -> str:
        """The metric as people read it, with the unit of the task's values: "MAE (mm)"."""
        values = mapping(self.result.get("task_kinds")).get(task) == "regression"
        names = sequence(mapping(self.result.get("task_classes")).get(task))
        return f"{metric.title} ({text(names[0])})" if values and metric.in_unit and names else metric.title

    def final(self, task: str) -> Row:
        """The final model's metrics on the test split: sites, pooled, macro, worst."""
        return mapping(mapping(self.result.get("metrics")).get(task))


def _metric(name: str, facts: Row) -> Metric:
    """A metric of the table, or a plug-in's as the run's record describes it."""
    if name in TABLE:
        return TABLE[name]
    own = mapping(facts.get(name))
    better: Better | None = next((one for one in get_args(Better) if one == own.get("better")), None)
    if better is None:
        raise InputError(f"The run's record does not say what its metric {name!r} is.")
    return Metric(name, title(name), (), better, number(own.get("low")), number(own.get("high")))


@dataclass(frozen=True)
class Curves:
    """One metric by rounds trained: (rounds, value) per site and as macro mean; lines on `val`, points on `test`."""

    sites: dict[str, list[Point]]
    macro: list[Point]
    test_sites: dict[str, list[Point]]
    test_macro: list[Point]
    cases: dict[str, int] = field(default_factory=dict)
    """How many cases the last points of each split are of, all sites together."""


@dataclass(frozen=True)
class Span:
    """A stage, from `first` rounds trained when it began to `last` when it ended."""

    name: str
    first: int
    last: int


def read_run(run: Path) -> RunRecord:
    """Everything in a run's folder that the report shows; InputError names the file, and the line, that is damaged."""
    if not (source := run / "history.jsonl").is_file():
        fix = "Give the folder a run was written to."
        raise InputError(f"{run}: is no run's folder: {why_no_file(source)}.", fix=fix)
    result = _optional(run / "result.json")
    study = run / "study.yaml"
    return RunRecord(
        name=run.resolve().name,
        exchanges=_exchanges(source),
        result=result,
        environment=_optional(run / "environment.json"),
        study_text=read_bytes(study).decode("utf-8", "replace") if study.is_file() else "",
        sums=_sums(mapping(result.get("sums")), run / "result.json"),
        audit=read_audit(run),
        has_scenario=(run / "scenario.yaml").is_file(),
    )


def read_audit(folder: Path) -> Row:
    """What `fedgraft privacy audit` left in a folder; empty if it was not there."""
    return _optional(folder / "audit.json")


def curves(record: RunRecord, task: str, metric: str) -> Curves:
    """One metric over the exchanges. An exchange measures the model that went out, so before its own training."""
    found = Curves({}, [], {}, [])
    trained = 0.0
    for place, row in enumerate(record.exchanges):
        own_metrics = mapping(mapping(row.get("metrics")).get(task))
        sites = mapping(own_metrics.get("sites"))
        values = {site: {metric: number(mapping(own).get(metric))} for site, own in sites.items()}
        test = row.get("split") == "test"
        rounds = (number(row.get("exchange")) or place + 1) - 1
        if text(row.get("stage")) == "evaluate":
            rounds = trained if place else rounds  # the second of two evaluations is of the same model
        else:
            trained = rounds + 1
        if (count := number(mapping(own_metrics.get("pooled")).get("n"))) is not None:
            found.cases["test" if test else "val"] = int(count)
        by_site, mean = (found.test_sites, found.test_macro) if test else (found.sites, found.macro)
        for site, own in values.items():
            if (value := own[metric]) is not None:
                by_site.setdefault(site, []).append((rounds, value))
        told = [values[site] for site in enough(own_metrics)]
        average = macro_mean(told, metric) if told else _of_all(own_metrics, metric)
        if average is not None:
            mean.append((rounds, average))
    return found


def enough(metrics: Row) -> list[str]:
    """The sites of one task's metrics that have enough cases to say something; all where their support is not told."""
    supports = mapping(mapping(metrics.get("support")).get("sites"))
    return [site for site in mapping(metrics.get("sites")) if mapping(supports.get(site)).get("enough") is not False]


def _of_all(metrics: Row, metric: str) -> float | None:
    """Where no site's figure counts: the mean that sites worked out under masks, else that of all cases, if enough."""
    stated = number(mapping(metrics.get("macro")).get(metric))
    few = mapping(mapping(metrics.get("support")).get("pooled")).get("enough") is False
    return stated if stated is not None or few else number(mapping(metrics.get("pooled")).get(metric))


def training_loss(record: RunRecord) -> Curves:
    """The loss each site reported of its own training, by the end of the round; stages may have other losses."""
    found = Curves({}, [], {}, [])
    for place, row in enumerate(record.exchanges):
        end = number(row.get("exchange")) or place + 1
        losses = {site: number(mapping(own).get("loss")) for site, own in mapping(row.get("train")).items()}
        for site, loss in losses.items():
            if loss is not None:
                found.sites.setdefault(site, []).append((end, loss))
        mean = macro_mean([{"loss": loss} for loss in losses.values()], "loss")
        if mean is None:  # masked: only the mean over all cases is known
            mean = number(mapping(row.get("train_pooled")).get("loss"))
        if mean is not None:
            found.macro.append((end, mean))
    return found


def spans(record: RunRecord) -> tuple[Span, ...]:
    """The stages in the order in which they were trained."""
    found: dict[tuple[Any, str], Span] = {}
    for place, row in enumerate(record.exchanges):
        name, end = text(row.get("stage")), int(number(row.get("exchange")) or place + 1)
        if name == "evaluate":
            continue
        key = (row.get("stage_index"), name)
        first = found[key].first if key in found else end - 1
        found[key] = Span(name, first, end)
    return tuple(found.values())


def mapping(value: Any) -> Row:
    """`value` if it is a mapping with text keys, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 and math.isfinite(value) else None


def text(value: Any) -> str:
    """`value` as text; nothing for None and for what is no word or number."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _exchanges(path: Path) -> tuple[Row, ...]:
    rows: list[Row] = []
    for count, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}, line {count}: is not valid JSON: {error}.",
                fix="Restore it, or continue the run with --resume.",
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {count}: is not an exchange.", fix="Restore the line.")
        rows.append(row)
    return tuple(rows)


def _optional(path: Path) -> Row:
    if not is_there(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold one JSON object.")
    return content


def _sums(content: Row, path: Path) -> dict[str, FinalSums]:
    found = {}
    for task, parts in content.items():
        pooled = mapping(mapping(parts).get("pooled"))
        sites = mapping(mapping(parts).get("sites"))
        if pooled:
            every = {site: _one(own, f"{path}: sums of {task}, {site}") for site, own in sites.items()}
            found[task] = FinalSums(every, _one(pooled, f"{path}: sums of {task}, pooled"))
    return found


def _one(arrays: Any, place: str) -> TaskSums:
    try:
        return read_sums(mapping(arrays))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
