"""What the front door says of a study's accuracy at several budgets; it runs them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from fedgraft.common.base.console.terminal import (
    ERR,
    OUT,
    figure,
    say,
)
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_private
from fedgraft.common.checks.check_plugins import read_pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.planning.curve import (
    Grid,
    headline_of,
    measure,
    points,
    write,
)


def privacy_curve(path: Path, overrides: tuple[str, ...], grid: Grid, out: Path, *, as_json: bool) -> None:
    """Run a private study at several budgets, and show what each costs in accuracy."""
    study, named = read_pinned(path, overrides)
    begin = check_study(study, str(path))
    if named is None:
        raise InputError(f"{path} names no scenario.", fix="Write `scenario: NAME` into it.")
    demand_place(out)
    sites, metric = hospitals_of(load_scenario(named)), headline_of(study)
    cells = []
    for cell in measure(study, begin.architecture.tags, sites, grid, out):
        cells.append(cell)
        price = "no noise" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
        ERR.print(f"{cell.train}, {price}, seed {cell.seed}: {metric.title} {cell.value:.3f}", highlight=False)
    found = points(cells, metric)
    write(found, cells, metric, out)
    make_private(out)
    if as_json:
        sys.stdout.write(json.dumps([asdict(point) for point in found]) + "\n")
        return
    table = Table("trained", "epsilon", "runs", metric.title, "loss against no noise")
    for point in found:
        price = "no noise" if point.epsilon is None else f"{point.epsilon:g}"
        shown = (_with(point.value, point.half_width), _with(point.loss, point.loss_half_width))
        table.add_row(point.train, price, str(point.runs), *shown)
    OUT.print(table)
    best = max((point for point in found if point.epsilon is None), key=lambda point: metric.goodness(point.value))
    say(f"Best without noise: {best.train}, {best.value:.3f}. Intervals are 95 %, over seeds. Written to {out}")


def _with(value: float | None, half_width: float | None) -> str:
    return figure(value) + (f" +- {half_width:.3f}" if half_width is not None else "")
