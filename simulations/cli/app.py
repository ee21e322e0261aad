"""`fedgraft study` and `fedgraft privacy`: what can be known of a study before it runs, and attacks on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgraft.common.base.console.command_line import command_group, examples
from fedgraft.common.plugins.option import Plugins
from fedgraft.server.cli.app import By, PassphraseFile

if TYPE_CHECKING:
    from fedgraft.common.study.study import Study

study = command_group("Look at a study before it runs.")
privacy = command_group("Price and attack a study.")
poc = command_group("A local consortium: a whole deployment on this machine, to see how one works.")

StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file, or the name of one that ships.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value: override a key of the study.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]


@study.command("check")
def study_check(study_file: StudyFile, set_: Sets = None, _plugin: Plugins = None) -> None:
    """All faults of a study, or its digest if there are none."""
    _, digest = _checked(study_file, set_)
    typer.echo(f"{study_file}: no faults; digest {digest}")


@study.command("show")
def study_show(study_file: StudyFile, set_: Sets = None, _plugin: Plugins = None) -> None:
    """The study with its method expanded to stages and all defaults written out."""
    from fedgraft.common.checks.check_plugins import read_pinned

    typer.echo(read_pinned(study_file, tuple(set_ or ()))[0].to_yaml(), nl=False)


@study.command("explain")
def study_explain(
    study_file: StudyFile,
    patients: Annotated[list[int] | None, typer.Option(min=1, help="Price privacy for sites of this size.")] = None,
    metrics_epsilon: Annotated[
        float | None, typer.Option(min=1e-3, help="Price noised metrics too, at what the sites' policies say.")
    ] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """What will be trained, shared and moved, stage by stage, and what privacy it costs sites of some sizes."""
    from fedgraft.simulations.cli import study_commands

    sizes = tuple(patients or (100, 300, 1000, 3000))
    sites = study_commands.AssumedSites(sizes, metrics_epsilon)
    study_commands.explain_study(study_file, tuple(set_ or ()), sites, as_json=as_json)


@study.command(
    "ask",
    epilog=examples(
        "fedgraft study ask quickstart --out asked",
        "fedgraft study ask my.yaml --home kits/server --out asked",
    ),
)
def study_ask(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: StudyFile,
    out: Annotated[Path | None, typer.Option(help="A new folder for the answers; runs/STUDY-ask if not given.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Simulated hospitals: a scenario file, or its name.")] = None,
    home: Annotated[Path | None, typer.Option(help="The server's folder: ask the real sites that it knows.")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Ask with so many sites online; all if not given.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for them.")] = 300.0,
    set_: Sets = None,
    as_json: AsJson = False,
    by: By = None,
    passphrase_file: PassphraseFile = None,
    _plugin: Plugins = None,
) -> None:
    """Ask the sites what they could supply, before anything is trained or approved: one table, and a verdict."""
    from fedgraft.simulations.cli import ask_commands

    signer = (by, passphrase_file)
    asked = ask_commands.AskRequest(study_file, tuple(set_ or ()), out, scenario, home, sites, wait, signer)
    ask_commands.ask(asked, as_json=as_json)


@study.command("suggest")
def study_suggest(
    study_file: StudyFile,
    scenario: Annotated[str | None, typer.Option(help="The hospitals: a scenario file, or the name of one.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="Candidates; all that are at hand if not given.")] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """What to start from: candidates ranked before any training, and what the sites' differences suggest."""
    from fedgraft.simulations.planning.suggest import suggest

    suggest(study_file, tuple(set_ or ()), scenario, tuple(weights or ()), as_json=as_json)


@privacy.command("plan")
def privacy_plan(
    study_file: StudyFile,
    patients: Annotated[int, typer.Option(min=1, help="Patients with training cases at the site.")] = 1000,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """What a study would cost a site if it were longer, or if its steps saw more patients."""
    from fedgraft.simulations.cli import study_commands

    study_commands.plan_privacy(study_file, tuple(set_ or ()), patients, as_json=as_json)


@privacy.command("curve")
def privacy_curve(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder of the runs, the figures and the plot; continued if it exists.")],
    train: Annotated[list[str] | None, typer.Option(help="heads, norm_and_heads, last_block or all.")] = None,
    epsilon: Annotated[list[float] | None, typer.Option(min=0.01, help="Budgets.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """Accuracy against epsilon: run a private study at several budgets, and without noise."""
    from fedgraft.simulations.cli import curve_commands
    from fedgraft.simulations.planning.curve import Grid

    grid = Grid(tuple(train or ("heads", "norm_and_heads")), tuple(epsilon or (8.0, 3.0, 1.0)), seeds)
    curve_commands.privacy_curve(study_file, tuple(set_ or ()), grid, out, as_json=as_json)


@privacy.command("audit")
def privacy_audit(
    study_file: StudyFile,
    patients: Annotated[
        int, typer.Option(min=1, help="Patients in training at the site, which decide its noise.")
    ] = 1000,
    out: Annotated[Path | None, typer.Option(help="A new folder, or a run of this study; runs/STUDY-audit.")] = None,
    allow_plain: Annotated[bool, typer.Option(help="Accept stages that release without noise.")] = False,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """Attack a study: what it claims of privacy, tried on the code that sites run. Exit code 1 if a claim fails."""
    from fedgraft.common.checks.check_plugins import read_pinned
    from fedgraft.simulations.audit.command import audit

    found, _ = read_pinned(study_file, tuple(set_ or ()))
    audit(found, str(study_file), out, patients, allow_plain=allow_plain, as_json=as_json)


@poc.command(
    "up",
    epilog=examples(
        "fedgraft poc up --sites 3",
        "fedgraft poc up --study private --sites 5 --out trial --stay",
    ),
)
def poc_up(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: Annotated[
        Path, typer.Option("--study", help="The study's YAML file, or the name of one that ships.")
    ] = Path("quickstart"),
    sites: Annotated[int, typer.Option(min=1, help="How many hospitals: the first ones of the scenario.")] = 3,
    out: Annotated[Path, typer.Option(help="A new folder for kits, sites, logs and the run.")] = Path("consortium"),
    scenario: Annotated[str | None, typer.Option(help="The hospitals: a scenario file, or the name of one.")] = None,
    web: Annotated[int, typer.Option(min=0, max=65535, help="The web page's port; any that is free if 0.")] = 0,
    stay: Annotated[bool, typer.Option("--stay", help="Leave it running after the study, until Ctrl-C.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the folder at the end, unless it failed.")] = False,
    set_: Sets = None,
    _plugin: Plugins = None,
) -> None:
    """Provision, join, enrol, approve and start a consortium on loopback, run a study on it, and end it all.

    Ctrl-C or a part that fails ends it too. Exit code 0 only if the study completed.
    """
    from fedgraft.simulations.poc.command import UpRequest
    from fedgraft.simulations.poc.command import up as carry_out

    carry_out(UpRequest(study_file, sites, out, scenario, tuple(set_ or ()), web, stay, remove))


def _checked(study_file: Path, set_: list[str] | None) -> tuple[Study, str]:
    from fedgraft.common.checks.check_plugins import read_pinned
    from fedgraft.common.checks.explain import check_study

    found, _ = read_pinned(study_file, tuple(set_ or ()))
    check_study(found, str(study_file))
    return found, found.digest
