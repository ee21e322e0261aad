"""Figures against epsilon: one private study run at several budgets and with several sets of trained entries."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import read_json, write_atomic, write_json
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.table import Metric, title, title_with_unit
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Gradient, Select, Stage
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals, simulate
from fedgraft.simulations.planning.advice import chosen
from fedgraft.simulations.planning.pricing import private_stages


@dataclass(frozen=True)
class CurveCell:
    """One run: what is trained, at what epsilon (None: without noise), from which seed; its headline's macro mean."""

    train: str
    epsilon: float | None
    seed: int
    value: float


@dataclass(frozen=True)
class Point:
    """Runs that differ by seed alone: mean, and half the width of its 95 % interval (Student's t; None for one run).

    `value` is the study's headline metric; `loss` by how much the same plan without noise was better, paired by seed.
    """

    train: str
    epsilon: float | None
    runs: int
    value: float
    half_width: float | None
    loss: float | None
    loss_half_width: float | None


@dataclass(frozen=True)
class Grid:
    """What a curve runs: every set of trained entries with every epsilon and seed."""

    sets: tuple[str, ...] = ("heads", "norm_and_heads")
    epsilons: tuple[float, ...] = (8.0, 3.0, 1.0)
    seeds: int = 3


def measure(study: Study, tags: Tags, hospitals: Hospitals, grid: Grid, out: Path) -> Iterator[CurveCell]:
    """Run every cell that is not yet in `out`, and give all; each run's folder stays there."""
    stage, metric = _only_private(study), headline_of(study)
    # The run without noise is to be tested on the same patients as those with, who must each stand alone.
    alone = {site: spec.model_copy(update={"split": "independent"}) for site, spec in hospitals.cohorts.items()}
    hospitals = replace(hospitals, cohorts=alone)
    for seed in range(grid.seeds):
        for train in grid.sets:
            batch = 0
            for epsilon in (*grid.epsilons, None):
                asked = _variant(study, stage, chosen(train, tags), epsilon, batch)
                asked = asked.model_copy(update={"seed": study.seed + seed})
                run = out / "runs" / asked.digest[:16]
                if not (run / "result.json").is_file():
                    simulate(asked, hospitals, run)
                result = read_json(run / "result.json")
                batch = batch or _batch(stage, result)
                yield CurveCell(train, epsilon, asked.seed, _macro(result, metric.name))


def headline_of(study: Study) -> Metric:
    """The one metric that the curve is of, its title with the unit. InputError if tasks have different headlines."""
    firsts = {name: shown(study, name).first for name in study.tasks_by_name}
    found = {title_with_unit(firsts[name], task): firsts[name] for name, task in study.tasks_by_name.items()}
    if len(found) > 1:
        raise InputError(
            f"The tasks of {study.name} have different headlines ({', '.join(found)}), of which there is no mean.",
            fix="Give all of them one by evaluate.headline, or take a study of one task.",
        )
    ((titled, metric),) = found.items()
    return replace(metric, title=titled)


def points(cells: Sequence[CurveCell], metric: Metric) -> list[Point]:
    """Cells that differ by seed alone, together."""
    plain = {(cell.train, cell.seed): metric.goodness(cell.value) for cell in cells if cell.epsilon is None}
    found = []
    for train, epsilon in dict.fromkeys((cell.train, cell.epsilon) for cell in cells):
        own = [cell for cell in cells if (cell.train, cell.epsilon) == (train, epsilon)]
        losses = [plain[train, c.seed] - metric.goodness(c.value) for c in own if epsilon and (train, c.seed) in plain]
        mean, half = _interval([cell.value for cell in own])
        loss, loss_half = _interval(losses) if losses else (None, None)
        found.append(Point(train, epsilon, len(own), mean, half, loss, loss_half))
    return found


def write(found: Sequence[Point], cells: Sequence[CurveCell], metric: Metric, out: Path) -> None:
    """`curve.json`, `curve.csv` and `curve.png` in `out`."""
    facts = {"metric": metric.name, "points": [asdict(p) for p in found], "cells": [asdict(c) for c in cells]}
    write_json(out / "curve.json", facts)
    text = io.StringIO()
    table = csv.DictWriter(text, list(asdict(found[0])))
    table.writeheader()
    table.writerows(asdict(point) for point in found)
    write_atomic(out / "curve.csv", text.getvalue().encode())
    write_atomic(out / "curve.png", _drawn(found, metric))


def _drawn(found: Sequence[Point], metric: Metric) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    budgets = sorted({p.epsilon for p in found if p.epsilon is not None})
    places: Callable[[float | None], float] = lambda e: len(budgets) if e is None else budgets.index(e)  # noqa: E731
    names = list(dict.fromkeys(point.train for point in found))
    for number, train in enumerate(names):
        own = sorted((p for p in found if p.train == train), key=lambda p: places(p.epsilon))
        shift = 0.06 * (number - (len(names) - 1) / 2)
        axes.errorbar(
            [places(p.epsilon) + shift for p in own],
            [p.value for p in own],
            yerr=[p.half_width or 0.0 for p in own],
            marker="o",
            capsize=3,
            label=train.replace("_", " "),
        )
    axes.set_xticks(range(len(budgets) + 1), [f"{e:g}" for e in budgets] + ["no noise"])
    axes.set(xlabel="epsilon of the study", ylabel=f"test {metric.title}, mean over sites")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, title="trained")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def _only_private(study: Study) -> Stage:
    stages = [stage for stage, _, _ in private_stages(study)]
    if len(stages) != 1:
        raise InputError(f"Study {study.name} has {len(stages)} private stages; the curve is for studies with one.")
    return stages[0]


def _variant(study: Study, stage: Stage, train: Select, epsilon: float | None, batch: int) -> Study:
    """The study with other entries trained at another price, or without noise on batches as large on average."""
    local = stage.local
    assert isinstance(local, Gradient)
    assert local.private is not None
    if epsilon is None:
        changed = local.model_copy(update={"train": train, "private": None, "batch_size": batch})
    else:
        private = local.private.model_copy(update={"epsilon": epsilon, "noise_multiplier": None})
        changed = local.model_copy(update={"train": train, "private": private})
    new = stage.model_copy(update={"local": changed, "share": train})
    return study.model_copy(update={"plan": tuple(new if one is stage else one for one in study.plan)})


def _batch(stage: Stage, result: dict[str, Any]) -> int:
    """Images that a step of a private run sees on average, at the average site."""
    assert isinstance(stage.local, Gradient)
    assert stage.local.private is not None
    cases = [int(site["cases"]["train"]) for site in result["sites"].values()]
    return max(1, round(stage.local.private.sample_rate * sum(cases) / len(cases)))


def _macro(result: dict[str, Any], metric: str) -> float:
    values = [task["macro"].get(metric) for task in result["metrics"].values()]
    known = [float(value) for value in values if value is not None]
    if not known or len(known) < len(values):
        raise InputError(
            f"The sites report no {title(metric)}, or have too few test cases to say (evaluate.floor).",
            fix="Their policies must say metrics: exact to be compared, and tests need enough patients.",
        )
    return sum(known) / len(known)


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(student.ppf(0.975, len(values) - 1)) * spread
