"""What the front door's commands do: read, run, and show on the terminal or as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from common.errors import InputError, RunError
from common.files import home, read_json
from common.pricing import Price, price, private_stages
from common.study import Study, describe, read_study
from common.travel import releases_plainly
from common.weights import load_weights, save_weights
from common.weights_import import Source
from common.weights_import import import_weights as take_in
from server.environment import environment
from server.explain import check_study, explain, sentence
from server.folder import RunFolder
from simulations.hospitals import make_hospitals
from simulations.progress import shown
from simulations.run import Engine, Hospitals, prepare
from simulations.run import resume as resume_run
from simulations.scenario import Scenario, load_scenario

CONFIGS = Path(__file__).parent.parent / "configs"
_out, _err = Console(), Console(stderr=True)


@dataclass(frozen=True)
class Request:
    """What was asked of `fedgraft simulate`."""

    study: Path | None
    scenario: str | None
    out: Path | None
    resume: Path | None
    overrides: tuple[str, ...]


def read(path: Path, overrides: tuple[str, ...] = ()) -> tuple[Study, str | None]:
    """A study by path, or by the name of one that ships, and the scenario that it names."""
    shipped = CONFIGS / "studies" / f"{path}.yaml"
    return read_study(shipped if not path.exists() and path.parent == Path() and shipped.exists() else path, overrides)


def engine(name: str, workers: int, threads: int) -> Engine:
    """The engine by name; InputError for one that does not exist."""
    try:
        return Engine.model_validate({"name": name, "workers": workers, "threads": threads})
    except ValidationError as error:
        raise InputError("; ".join(describe(error))) from None


def simulate(request: Request, engine: Engine, *, as_json: bool) -> None:
    """Set up a run or continue one, show its progress, and say what came out."""
    if request.resume is not None:
        if request.study or request.scenario or request.out or request.overrides:
            raise InputError("--resume takes no other study, scenario, --out or --set.")
        run = request.resume
        if not (run / "simulation.json").is_file():
            raise InputError(f"{run} is no simulated run.", fix="Give the folder that `fedgraft simulate` wrote.")
        study = RunFolder(run).study()
    else:
        study, run = _set_up(request)
    console = _err if as_json else _out
    with shown(run, study, console):
        try:
            resume_run(run, engine)
        except RunError as error:
            raise type(error)(f"{error}{_site_log(run)}") from None
    result = read_json(run / "result.json")
    if as_json:
        sys.stdout.write(json.dumps(result | {"run": str(run), "sums": None}) + "\n")
    else:
        _show_result(run, result)


def _set_up(request: Request) -> tuple[Study, Path]:
    if request.study is None:
        raise InputError("Which study?", fix="Give a study file, or --resume with a run's folder.")
    study, named = read(request.study, request.overrides)
    scenario_name = request.scenario or named
    if scenario_name is None:
        raise InputError(f"{request.study} names no scenario.", fix="Say which hospitals to simulate: --scenario FILE.")
    check_study(study, str(request.study))
    base = request.study.parent if request.scenario is None else Path()
    relative = base / scenario_name
    scenario = load_scenario(relative if relative.is_file() else scenario_name)
    run = request.out or Path("runs") / study.name
    if run.exists() and any(run.iterdir()):
        raise InputError(f"{run} is not empty.", fix="Choose another --out, or continue that run with --resume.")
    prepare(study, hospitals(scenario), run)
    return study, run


def hospitals(scenario: Scenario) -> Hospitals:
    """The scenario's hospitals, generated if they are phantoms and not there yet."""
    folder = home() / "phantoms" / f"{scenario.name}-{scenario.digest[:12]}"
    cohorts = make_hospitals(scenario, folder)
    faults = {site.name: site.faults for site in scenario.sites if site.faults is not None}
    policies = {site.name: site.policy for site in scenario.sites if site.policy is not None}
    return Hospitals(cohorts, faults, policies=policies, synthetic=scenario.synthetic)


def make_data(name: str, out: Path) -> None:
    """Write a scenario's phantom hospitals."""
    scenario = load_scenario(name)
    cohorts = make_hospitals(scenario, out)
    for site, cohort in cohorts.items():
        _say(f"{site}: {cohort.kind} in {cohort.root}")


def explain_study(path: Path, overrides: tuple[str, ...], patients: tuple[int, ...], *, as_json: bool) -> None:
    """Show a study stage by stage, and what it would cost sites of so many `patients`."""
    study, _ = read(path, overrides)
    explained = explain(study, str(path))
    prices = [price(study, count) for count in patients]
    if as_json:
        facts = {"study": study.name, "digest": study.digest, "plan": explained.rows}
        sys.stdout.write(json.dumps(facts | {"prices": [asdict(one) for one in prices]}) + "\n")
        return
    source = explained.start.manifest.id if explained.start.manifest else "random entries"
    _say(f"Study {study.name}, digest {study.digest}")
    _say(f"Model: {study.model.backbone} from {source}, heads {study.heads}")
    for number, (stage, row) in enumerate(zip(study.plan, explained.rows, strict=True), start=1):
        _say(f"{number}. {stage.name}: {sentence(stage, row)}")
    tags = explained.start.model.tags()
    plain = [stage.name for stage in study.plan if releases_plainly(stage, tags)]
    if plain:
        _say(
            f"No differential privacy in {', '.join(plain)}: whoever receives what leaves there can invert it, "
            "up to single images."
        )
    if any(private_stages(study)):
        _show_prices(prices)


def _show_prices(prices: Sequence[Price]) -> None:
    """One row per site size and private stage."""
    table = Table("patients", "delta", "stage", "noise / clip", "patients a step", "steps", "epsilon")
    for one in prices:
        for number, line in enumerate(one.lines):
            size = [str(one.patients), f"{one.delta:.1e}"] if number == 0 else ["", ""]
            step = f"{line.sample * one.patients:.0f} ({line.sample:.0%})"
            table.add_row(*size, line.stage, f"{line.sigma:.2f}", step, str(line.steps), f"{line.epsilon:.2f}")
        if len(one.lines) > 1:
            table.add_row("", "", "all stages", "", "", "", f"{one.epsilon:.2f}")
    _out.print(table)
    _say("Epsilon for adding or removing one patient (or image, where the study says so), by Renyi accounting.")


def plan_privacy(path: Path, overrides: tuple[str, ...], patients: int, *, as_json: bool) -> None:
    """Epsilon of a study against its length and the share of patients in each step, with the noise as it is."""
    study, _ = read(path, overrides)
    check_study(study, str(path))
    if not any(private_stages(study)):
        raise InputError(f"{path}: no stage is private, so there is nothing to price.", fix="See docs/privacy.md.")
    steps, shares = (0.25, 0.5, 1.0, 2.0, 4.0), (0.25, 0.5, 1.0, 2.0)
    grid = {length: [price(study, patients, longer=length, larger=share) for share in shares] for length in steps}
    if as_json:
        rows = [asdict(one) | {"longer": length} for length, row in grid.items() for one in row]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    _show_prices([price(study, patients)])
    table = Table("rounds x", *(f"patients a step x {share:g}" for share in shares), title="epsilon with this noise")
    for length, row in grid.items():
        table.add_row(f"{length:g}", *(f"{one.epsilon:.2f}" for one in row))
    _out.print(table)


def list_weights(*, as_json: bool) -> None:
    """All weights at hand."""
    from common.weights import list_weights as found

    manifests = found()
    if as_json:
        sys.stdout.write(json.dumps([manifest.model_dump(mode="json") for manifest in manifests]) + "\n")
        return
    table = Table("id", "backbone", "trained on", "licence")
    for manifest in manifests:
        label = " (synthetic)" if manifest.synthetic else ""
        table.add_row(manifest.id + label, manifest.backbone, manifest.trained_on, manifest.licence)
    _out.print(table)


def import_weights(source: Source, name: str) -> None:
    """Take in weights, and say what became of every entry."""
    manifest, report = take_in(source, name)
    _say(
        f"{manifest.id}: {len(report.loaded)} entries of {manifest.backbone} taken in, {len(report.ignored)} left out "
        f"({', '.join(report.ignored) or 'none'})"
    )


def pretrain(path: Path, out: Path, name: str, licence: str, overrides: tuple[str, ...]) -> None:
    """Run a study and keep its model as weights of their own, with the figures that it reached."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out.")
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as temporary:
        run = Path(temporary) / "run"
        simulate(Request(path, None, run, None, overrides), Engine(), as_json=False)
        result = read_json(run / "result.json")
        manifest, arrays = load_weights(str(run))
        figures = ", ".join(
            f"{task} test AUROC {values['macro']['auroc']:.3f}, accuracy {values['macro']['accuracy']:.3f}"
            for task, values in result["metrics"].items()
        )
        facts = manifest.model_dump(exclude={"sha256", "keys", "format"}) | {
            "id": name,
            "licence": licence,
            "how": f"fedgraft weights pretrain {path.name}; {manifest.how}; {figures}",
        }
        backbone = {key: array for key, array in arrays.items() if key.startswith("backbone.")}
        save_weights(out, backbone, facts | {"classes": {}})
    _say(f"Weights {name} are in {out}")


def doctor(*, as_json: bool) -> None:
    """The environment, and what is wrong with it."""
    facts: dict[str, Any] = environment(0, "none")
    facts |= {"cores": os.cpu_count(), "home": str(home()), "problems": _problems()}
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        for key, value in facts.items():
            if key != "problems":
                _say(f"{key}: {value}")
        for problem in facts["problems"]:
            _say(f"problem: {problem}")
    if facts["problems"]:
        raise RunError(f"{len(facts['problems'])} problem(s) found.")


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


def _site_log(run: Path) -> str:
    return f" Details: {run / 'run.log'}" if (run / "run.log").exists() else ""


def _show_result(run: Path, result: dict[str, Any]) -> None:
    _say(f"{result['status']}: {result['headline']}")
    for task, values in result["metrics"].items():
        table = Table(f"{task} (test)", "cases", "AUROC", "accuracy", "balanced accuracy")
        for site, row in values["sites"].items():
            table.add_row(site, *_cells(row))
        table.add_section()
        table.add_row(
            "macro mean",
            "",
            *(_number(values["macro"][key]) for key in ("auroc", "accuracy", "balanced_accuracy")),
        )
        table.add_row("all cases", *_cells(values["pooled"]))
        _out.print(table)
    _say(f"Report: {run / 'report.html'}")
    if result["synthetic"]:
        _say("Phantoms prove the machinery, not clinical benefit.")


def _cells(row: dict[str, Any]) -> list[str]:
    return [str(int(row["n"])), *(_number(row[key]) for key in ("auroc", "accuracy", "balanced_accuracy"))]


def _say(text: str) -> None:
    """One line as it is: paths can be copied, and brackets in names mean nothing."""
    _out.print(text, highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
