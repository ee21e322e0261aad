"""What the front door's commands do: read, run, and show on the terminal or as JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.table import Table

from fedgraft.common.agreement.agreement import agreed
from fedgraft.common.base.console.terminal import (
    ERR,
    OUT,
    say,
)
from fedgraft.common.base.environment import environment
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import home, read_json
from fedgraft.common.config.suggest import instead
from fedgraft.server.cli.outcome import demand_enough, show_result
from fedgraft.server.tracking.tracker import tracked, trackers
from fedgraft.simulations.api.simulate import carry_out, choose, set_up
from fedgraft.simulations.api.site_logs import SiteLogs, explained
from fedgraft.simulations.engines.engine import Engine, EngineName
from fedgraft.simulations.engines.people import SimulatedDecision
from fedgraft.simulations.engines.run import demand_simulated
from fedgraft.simulations.partitions.parts import make_parts
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import load_scenario


@dataclass(frozen=True)
class SimulateRequest:
    """What was asked of `fedgraft simulate`."""

    study: Path | None
    scenario: str | None
    out: Path | None
    resume: Path | None
    overrides: tuple[str, ...]
    track: tuple[str, ...] = ()
    agreement: Path | None = None
    release: SimulatedDecision | None = None


def engine(name: str, workers: int | None, threads: int, ray_address: str | None = None) -> Engine:
    """The engine by name; InputError for one that does not exist, or that has nothing to do with a Ray cluster."""
    names: tuple[EngineName, ...] = get_args(EngineName)
    if name not in names:
        raise InputError(f"--engine {name}: there is no such engine{instead(name, names)}.")
    if ray_address is not None and name != "ray":
        raise InputError(f"--ray-address {ray_address}: is for --engine ray.")
    return Engine.model_validate({"name": name, "workers": workers, "threads": threads, "ray_address": ray_address})


def simulate(request: SimulateRequest, engine: Engine, *, as_json: bool) -> None:
    """Set up a run or continue one, show its progress, and say what came out."""
    console = ERR if as_json else OUT

    def note(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    to = trackers(request.track)
    if request.resume is not None:
        given = (request.study, request.scenario, request.out, request.overrides, request.agreement, request.release)
        if any(given):
            raise InputError("--resume takes no other study, scenario, --out, --set, --agreement or --release.")
        run = request.resume
        demand_simulated(run)
    else:
        if request.study is None:
            raise InputError("Which study?", fix="Give a study file, or --resume with a run's folder.")
        chosen = choose(request.study, request.overrides, request.scenario)
        pinned = agreed(request.agreement, chosen.study) if request.agreement is not None else None
        run = set_up(chosen, request.out, note, pinned, request.release)
    logs = SiteLogs(run)
    with explained(logs), tracked(run, to, note):
        carry_out(run, engine, console)
    result = read_json(run / "result.json")
    if as_json:
        sys.stdout.write(json.dumps(result | {"run": str(run), "sums": None}) + "\n")
    else:
        show_result(run, result)
        if result["synthetic"]:
            say("Phantoms prove the machinery, not clinical benefit.")
    with explained(logs):
        demand_enough(run, result)


def make_data(name: str, out: Path) -> None:
    """Write a scenario's phantom hospitals."""
    scenario = load_scenario(name)
    if scenario.partition is not None:
        cohorts, _ = make_parts(scenario.partition, scenario.seed, out)
    else:
        cohorts = make_hospitals(scenario, out)
    for site, cohort in cohorts.items():
        say(f"{site}: {cohort.kind} in {cohort.root}")


def doctor(*, as_json: bool) -> None:
    """The environment, and what is wrong with it."""
    facts: dict[str, Any] = environment(0, "none")
    facts |= {"cores": os.cpu_count(), "home": str(home()), "problems": _problems()}
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _show_facts(facts)
    if facts["problems"]:
        raise RunError(f"{len(facts['problems'])} problem(s) found.")


def _show_facts(facts: dict[str, Any]) -> None:
    """Packages one below the other, then the machine, then what is wrong."""
    table = Table("what", "found", show_header=False)
    for name, version in facts["packages"].items():
        table.add_row(name, version)
    for key in ("python", "platform", "device", "cores", "threads", "home", "code_digest"):
        table.add_row(key.replace("_", " "), str(facts[key]))
    OUT.print(table)
    for problem in facts["problems"]:
        say(f"problem: {problem}")
    if not facts["problems"]:
        say("No problems found.")


def _problems() -> list[str]:
    problems = []
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problems.append(f"{home()} cannot be written: {error.strerror}; set FEDGRAFT_HOME to a folder that can")
    try:
        import torchvision  # noqa: F401 - does it import with this torch?
    except (ImportError, RuntimeError) as error:
        problems.append(f"torchvision does not fit this torch ({error}); install both from the same place")
    return problems
