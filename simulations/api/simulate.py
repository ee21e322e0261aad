"""Simulations by call: a study and its hospitals in, a finished run out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fedgraft.common.agreement.agreement import SupplyAgreement, remarks
from fedgraft.common.base.console.terminal import Terminal
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import read_json, write_atomic
from fedgraft.common.checks.check_plugins import pinned, read_pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.config.config_files import describe
from fedgraft.common.study.study import Study
from fedgraft.server.cli.outcome import demand_enough
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.tracking.tracker import Tracker, tracked, trackers
from fedgraft.server.watch.progress import shown
from fedgraft.simulations.api.runs import Run, load_run
from fedgraft.simulations.api.site_logs import SiteLogs, explained
from fedgraft.simulations.engines.engine import Engine, EngineName
from fedgraft.simulations.engines.people import SimulatedDecision
from fedgraft.simulations.engines.run import check_hospitals, demand_simulated, prepare
from fedgraft.simulations.engines.run import resume as resume_run
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import Scenario, find_scenario, source_faults

AnyStudy = Study | Mapping[str, Any] | Path | str
"""A study, its plain values, its file, or the name of one that ships."""
AnyScenario = Scenario | Mapping[str, Any] | Path | str
_GIVE = "Give plain values as a file has them, a file, or the name of one that ships."


@dataclass(frozen=True)
class Chosen:
    """A study that can work, and the hospitals to simulate; `source` is what the study is called in errors."""

    study: Study
    scenario: Scenario
    source: str


def simulate(  # noqa: PLR0913 - they are what a simulation has
    study: AnyStudy,
    scenario: AnyScenario | None = None,
    *,
    out: Path | str | None = None,
    engine: EngineName = "inprocess",
    workers: int | None = None,
    threads: int = 1,
    ray_address: str | None = None,
    track: Sequence[str] = (),
    progress: bool | None = None,
    release: SimulatedDecision | None = None,
) -> Run:
    """Run a study over simulated hospitals on this machine, in the new folder `out` (`runs/STUDY` if not given).

    `scenario` may be left out where the study's file names one. `engine` is `inprocess`, `pool` (with `workers`
    processes, 2 if not given) or `ray`, on this machine or on the Ray cluster at `ray_address`; `threads` are torch's
    per site. `track` names trackers: csv, tensorboard, mlflow, or one of your own (entry point `fedgraft.trackers`).
    `progress` shows a bar: by itself on a terminal and in a notebook. `release` says what the people of hospitals
    decide whose policy holds the last that leaves: sign, or refuse. What is odd about the hospitals' data comes as
    warnings.

    InputError for what cannot work, with every reason; RunError if the run fails on the way, and IncompleteError if
    sites were missing and the study does not say that fewer will do: `load_run` has all the same what there is.
    """
    how, to = engine_of(engine, workers, threads, ray_address), trackers(listed(track))
    run = set_up(choose(study, (), scenario), None if out is None else Path(out), warn, release=release)
    return _finished(run, how, to, progress)


def resume(  # noqa: PLR0913 - as above
    run: Path | str,
    *,
    engine: EngineName = "inprocess",
    workers: int | None = None,
    threads: int = 1,
    ray_address: str | None = None,
    track: Sequence[str] = (),
    progress: bool | None = None,
) -> Run:
    """Continue an interrupted run in its folder; it ends with the same bits as one that was not. Errors as above."""
    demand_simulated(Path(run))
    return _finished(Path(run), engine_of(engine, workers, threads, ray_address), trackers(listed(track)), progress)


def engine_of(name: str, workers: int | None, threads: int, ray_address: str | None = None) -> Engine:
    """How to carry out a simulation. StudyError for an engine that there is not, or of no workers or threads."""
    values = {"name": name, "workers": workers, "threads": threads, "ray_address": ray_address}
    try:
        return Engine.model_validate(values)
    except ValidationError as error:
        raise StudyError("the engine", describe(error, Engine)) from None


def listed(names: Sequence[str]) -> tuple[str, ...]:
    """Names that were given as a list, or one by itself, which Python takes for a list of letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def choose(study: AnyStudy, overrides: tuple[str, ...], scenario: AnyScenario | None) -> Chosen:
    """What is to be simulated, both checked. StudyError with every fault; InputError if no hospitals are named."""
    found, named, source, base = _study(study, overrides)
    check_study(found, source)
    if scenario is None and named is None:
        raise InputError(f"{source} names no scenario.", fix="Say which hospitals to simulate: --scenario FILE.")
    if isinstance(scenario, Mapping):
        hospitals = Scenario.parse(scenario)
    elif not isinstance(scenario, Scenario | Path | str | None):
        raise InputError(f"{type(scenario).__name__} is no scenario.", fix=_GIVE)
    else:
        hospitals = find_scenario(named or "", base) if scenario is None else find_scenario(scenario, Path())
    if faults := source_faults(found, hospitals):
        raise StudyError(hospitals.name if isinstance(scenario, Scenario | Mapping) else str(scenario or named), faults)
    return Chosen(found, hospitals, source)


def _study(study: AnyStudy, overrides: tuple[str, ...]) -> tuple[Study, str | None, str, Path]:
    """The study, the scenario that its file names, what it is called, and the folder of its file."""
    if isinstance(study, Study):
        return pinned(study), None, study.name, Path()
    if isinstance(study, Mapping):
        return pinned(Study.parse(study)), None, "the study", Path()
    if not isinstance(study, Path | str):
        raise InputError(f"{type(study).__name__} is no study.", fix=_GIVE)
    path = Path(study)
    return *read_pinned(path, overrides), str(path), path.parent


def open_study(study: AnyStudy) -> tuple[Study, str]:
    """A study that can work, and what it is called. StudyError with every fault."""
    found, _, source, _ = _study(study, ())
    check_study(found, source)
    return found, source


def set_up(
    chosen: Chosen,
    out: Path | None,
    note: Callable[[str], object],
    agreement: SupplyAgreement | None = None,
    release: SimulatedDecision | None = None,
) -> Path:
    """The folder of a run that can begin: all hospitals have been looked at, and `note` heard what is odd.

    The run is pinned to an agreement, if there is one.

    InputError if the folder is in use; DataError with every hospital that cannot take part.
    """
    run = out or Path("runs") / chosen.study.name
    if run.exists() and any(run.iterdir()):
        raise InputError(f"{run} is not empty.", fix="Choose another --out, or continue that run with --resume.")
    demand_place(run)
    hospitals = replace(hospitals_of(chosen.scenario), release=release)
    check_hospitals(chosen.study, hospitals, note)
    prepare(chosen.study, hospitals, run)
    if agreement is not None:
        RunFolder(run).pin(agreement)
        for remark in remarks(agreement, chosen.study, hospitals.cohorts):
            note(remark)
    # With it, the run can be repeated from its folder alone.
    plain = yaml.safe_dump(chosen.scenario.model_dump(mode="json", exclude_none=True), sort_keys=False)
    write_atomic(run / "scenario.yaml", plain.encode(), private=True)
    return run


def carry_out(run: Path, engine: Engine, console: Terminal | None) -> None:
    """Start or continue a run that was set up, and show on `console` how it gets on."""
    study = RunFolder(run).study()
    with nullcontext() if console is None else shown(run, study, console):
        resume_run(run, engine)


def _finished(run: Path, engine: Engine, to: Sequence[Tracker], progress: bool | None) -> Run:
    with explained(SiteLogs(run)), tracked(run, to, warn):
        carry_out(run, engine, bar(progress))
        demand_enough(run, read_json(run / "result.json"))
    return load_run(run)


def bar(progress: bool | None) -> Terminal | None:
    """Where to show progress: on the terminal or in the notebook if there is one, or as was asked for."""
    console = Terminal(stderr=True)
    wanted = (console.is_terminal or console.is_jupyter) if progress is None else progress
    return console if wanted else None


def warn(text: str) -> None:
    """To whoever called: as a warning of Python's."""
    warnings.warn(text, stacklevel=4)
