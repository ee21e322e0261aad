"""Comparisons by call: a study, its alternatives, and what the differences are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json
from fedgraft.common.study.study import find_study, locate
from fedgraft.simulations.api.frames import data_frame
from fedgraft.simulations.api.simulate import AnyScenario, AnyStudy, bar, engine_of, listed, open_study, warn
from fedgraft.simulations.compare.command import CompareRequest, carry_out
from fedgraft.simulations.compare.question import read_comparison, usual_questions
from fedgraft.simulations.phantoms.scenario import Scenario


@dataclass(frozen=True)
class Comparison:
    """A comparison that was carried out, in its folder."""

    path: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """All of `compare.json`."""
        found: dict[str, Any] = read_json(self.path / "compare.json")
        return found

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """One row for each question and arm: macro mean and worst site with intervals, the difference, a verdict."""
        return tuple(
            {"question": question["name"], "metric": question["metric"], "against": question["against"]} | row
            for question in self.result["questions"]
            for row in question["rows"]
        )

    def to_pandas(self) -> Any:
        """A DataFrame of the rows' figures. InputError if pandas is not installed."""
        return data_frame([_flat(row) for row in self.rows])

    @property
    def report(self) -> Path:
        """The page with tables and plots."""
        return self.path / "compare.html"

    def __repr__(self) -> str:
        arms = ", ".join(dict.fromkeys(row["arm"] for row in self.rows))
        return f"<Comparison {self.path}: {arms}; {self.result['seeds']} seed(s)>"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: row[key] for key in ("question", "metric", "arm", "cases", "against")}
    for name in ("macro", "worst", "difference"):
        numbers = row[name] or {}
        flat |= {f"{name}.{key}": numbers.get(key) for key in ("value", "low", "high")}
    return flat | {"verdict": (row["difference"] or {}).get("verdict")}


def compare(  # noqa: PLR0913 - they are what a comparison has
    study: AnyStudy,
    scenario: AnyScenario | None = None,
    *,
    arms: Sequence[str] = (),
    seeds: int | None = None,
    only: Sequence[str] = (),
    quick: bool = False,
    out: Path | str | None = None,
    workers: int = 2,
    threads: int = 1,
    track: Sequence[str] = (),
    progress: bool | None = None,
) -> Comparison:
    """Run a study and its alternatives on the same splits and seeds; continued if `out` holds some of it already.

    `arms` such as `study`, `scratch`, `local`, `pooled`, `fedavg`; the first is what the others are held against. If
    not given, the questions of the study's file, of which `only` picks some, or the usual arms. `seeds` are paired; 3
    if not given, or as the file says. `track` names trackers, as for `simulate`: a run of theirs for each arm and
    seed, and one for what is concluded. InputError for what cannot be compared; RunError if a run fails on the way.
    """
    how, shown = engine_of("pool", workers, threads), bar(progress)
    found, source = open_study(study)
    shipped, questions = None, usual_questions()
    if isinstance(study, Path | str):
        _, shipped = find_study(Path(study))
        questions = read_comparison(locate(Path(study)))
    hospitals = Scenario.parse(scenario) if isinstance(scenario, Mapping) else scenario
    asked = CompareRequest(
        study=Path(source),
        out=None if out is None else Path(out),
        scenario=str(hospitals) if isinstance(hospitals, Path) else hospitals,
        overrides=(),
        seeds=seeds,
        arms=listed(arms),
        only=listed(only),
        quick=quick,
        workers=how.processes,
        threads=how.threads,
        track=listed(track),
    )

    def tell(line: str) -> None:
        if shown is not None:
            shown.print(line, highlight=False, markup=False, soft_wrap=True)

    return Comparison(carry_out(found, questions, shipped, asked, tell, warn))


def load_comparison(path: Path | str) -> Comparison:
    """The comparison in a folder. InputError if none was carried out to its end there."""
    folder = Path(path)
    if not is_there(folder / "compare.json"):
        raise InputError(f"{folder}: holds no finished comparison.", fix="Carry it out with the same folder as out.")
    return Comparison(folder)
