"""The front door: one command. What a subcommand needs is imported only when it runs, so that --help is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from client.cli import app as site
from server.cli import app as server

if TYPE_CHECKING:
    from common.study import Study

# Flower reports home and looks for updates unless told not to; a hospital's machine does neither.
for _switch, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_switch, _value)

app = typer.Typer(help="Federated transfer learning for medical imaging across hospitals.", no_args_is_help=True)
data = typer.Typer(help="Phantom hospitals.", no_args_is_help=True)
weights = typer.Typer(help="Pretrained weights: train, import, look at, verify.", no_args_is_help=True)
study = typer.Typer(help="Look at a study before it runs.", no_args_is_help=True)
privacy = typer.Typer(help="Price and attack a study.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")
app.add_typer(study, name="study")
app.add_typer(privacy, name="privacy")
app.add_typer(server, name="server")
app.add_typer(site, name="site")

StudyFile = Annotated[Path, typer.Argument(help="The study's YAML file, or the name of one that ships.")]
SiteFolder = Annotated[Path, typer.Argument(help="The site's folder; in a simulation sites/NAME of the run.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="key=value: override a key of the study.")]
Prepared = Literal["imagenet", "zscore", "unknown"]
SiteHome = Annotated[Path | None, typer.Option("--home", help="The site's folder; FEDGRAFT_HOME/site if not given.")]
OfferedStudy = Annotated[str, typer.Argument(help="The study's file, or the digest of one that was offered.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]


@app.callback()
def _common(debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False) -> None:
    global _debug  # noqa: PLW0603 - the one switch that must reach main() past typer
    _debug = debug


_debug = False


@app.command()
def simulate(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: Annotated[Path | None, typer.Argument(metavar="STUDY", help="The study's YAML file.")] = None,
    scenario: Annotated[str | None, typer.Option(help="The hospitals: a scenario file, or the name of one.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/STUDY if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    engine: Annotated[str, typer.Option(help="inprocess, pool (worker processes) or ray.")] = "inprocess",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of pool and ray.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="torch threads per site.")] = 1,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Run a study over simulated hospitals on this machine."""
    from simulations import commands

    commands.simulate(
        commands.Request(study_file, scenario, out, resume, tuple(set_ or ())),
        commands.engine(engine, workers, threads),
        as_json=as_json,
    )


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Build the HTML report of a run again."""
    from server.report import build_report

    typer.echo(build_report(run))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, device and settings, and what is wrong with them."""
    from simulations import commands

    commands.doctor(as_json=as_json)


@data.command("make")
def data_make(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one that ships.")],
    out: Annotated[Path, typer.Option(help="Where the hospitals' folders go.")],
) -> None:
    """Write phantom hospitals as real DICOM files and tables."""
    from simulations import commands

    commands.make_data(scenario, out)


@weights.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """All weights that studies can name."""
    from simulations import commands

    commands.list_weights(as_json=as_json)


@weights.command("show")
def weights_show(ref: str) -> None:
    """The manifest of some weights."""
    from common.weights import load_manifest

    typer.echo(load_manifest(ref).model_dump_json(indent=1))


@weights.command("verify")
def weights_verify(refs: Annotated[list[str], typer.Argument(help="Ids or folders.")]) -> None:
    """Check that weights are what their manifest says."""
    from common.weights import verify

    for ref in refs:
        manifest = verify(ref)
        typer.echo(f"{manifest.id}: as its manifest says ({manifest.keys} entries, sha256 {manifest.sha256})")


@weights.command("import")
def weights_import(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    source: Annotated[str, typer.Argument(help="A .safetensors or state-dict .pth file, or Enum.NAME of torchvision.")],
    backbone: Annotated[str, typer.Option(help="The backbone that the weights are for.")],
    id_: Annotated[str, typer.Option("--id", help="The name that studies will use.")],
    licence: Annotated[str, typer.Option(help="Under what licence the weights may be used.")],
    file: Annotated[Path | None, typer.Option(help="With Enum.NAME: the weights file, already here.")] = None,
    trained_on: Annotated[str, typer.Option(help="What they were trained on.")] = "not stated",
    normalise: Annotated[Prepared, typer.Option(help="How images were prepared for them.")] = "unknown",
) -> None:
    """Take in weights from a local file; nothing is ever downloaded."""
    from common.errors import InputError
    from common.weights_import import Source
    from simulations import commands

    by_name = not Path(source).exists() and "." in source and file is not None
    if not by_name and file is not None:
        raise InputError("--file goes with the name of torchvision's weights, such as ResNet18_Weights.IMAGENET1K_V1.")
    path, enum = (file, source) if by_name else (Path(source), None)
    assert path is not None
    commands.import_weights(Source(path, backbone, licence, trained_on, normalise, enum), id_)


@weights.command("pretrain")
def weights_pretrain(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="The new folder for the weights.")],
    id_: Annotated[str, typer.Option("--id", help="The name that studies will use.")],
    licence: Annotated[str, typer.Option(help="Under what licence the weights may be used.")] = "Apache-2.0",
    set_: Sets = None,
) -> None:
    """Train a source model on one site's data and keep it with a manifest."""
    from simulations import commands

    commands.pretrain(study_file, out, id_, licence, tuple(set_ or ()))


@study.command("check")
def study_check(study_file: StudyFile, set_: Sets = None) -> None:
    """All faults of a study, or its digest if there are none."""
    _, digest = _checked(study_file, set_)
    typer.echo(f"{study_file}: no faults; digest {digest}")


@study.command("show")
def study_show(study_file: StudyFile, set_: Sets = None) -> None:
    """The study with its method expanded to stages and all defaults written out."""
    from simulations import commands

    typer.echo(commands.read(study_file, tuple(set_ or ()))[0].to_yaml(), nl=False)


@study.command("explain")
def study_explain(
    study_file: StudyFile,
    patients: Annotated[list[int] | None, typer.Option(min=1, help="Price privacy for sites of this size.")] = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """What will be trained, shared and moved, stage by stage, and what privacy it costs sites of some sizes."""
    from simulations import study_commands

    sizes = tuple(patients or (100, 300, 1000, 3000))
    study_commands.explain_study(study_file, tuple(set_ or ()), sizes, as_json=as_json)


@privacy.command("plan")
def privacy_plan(
    study_file: StudyFile,
    patients: Annotated[int, typer.Option(min=1, help="Patients with training cases at the site.")] = 1000,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """What a study would cost a site if it were longer, or if its steps saw more patients."""
    from simulations import study_commands

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
) -> None:
    """Accuracy against epsilon: run a private study at several budgets, and without noise."""
    from simulations import study_commands
    from simulations.curve import Grid

    grid = Grid(tuple(train or ("heads", "norm_and_heads")), tuple(epsilon or (8.0, 3.0, 1.0)), seeds)
    study_commands.privacy_curve(study_file, tuple(set_ or ()), grid, out, as_json=as_json)


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
) -> None:
    """Attack a study: what it claims of privacy, tried on the code that sites run. Exit code 1 if a claim fails."""
    from simulations import commands
    from simulations.audit.command import audit

    found, _ = commands.read(study_file, tuple(set_ or ()))
    audit(found, str(study_file), out, patients, allow_plain=allow_plain, as_json=as_json)


@site.command("budget")
def site_budget(
    folder: SiteFolder,
    study_file: Annotated[Path | None, typer.Option("--study", help="What would this study cost?")] = None,
    patients: Annotated[int | None, typer.Option(min=1, help="Patients in training, if nothing was spent yet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the account into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Privacy spent and left, study by study, and what a proposed study would cost."""
    from client.commands import show_budget

    proposed = _checked(study_file, None)[0] if study_file else None
    show_budget(folder, proposed, patients, plot, as_json=as_json)


@site.command("egress")
def site_egress(
    folder: SiteFolder,
    show: Annotated[int | None, typer.Option(min=1, help="Show this message in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """All that has left the site, checked line by line."""
    from client.commands import show_egress

    show_egress(folder, show, as_json=as_json)


@site.command("check")
def site_check(
    study_ref: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="The study to check against.")] = None,
    home: SiteHome = None,
    part: Annotated[
        list[str] | None, typer.Option(help="environment, data, training, connection or policy alone.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train on this site's data alone.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check whether this site can take part; the report names nobody and may be shared."""
    from client import decisions

    return decisions.check_site(home, study_ref, part or (), baseline=baseline, as_json=as_json)


@site.command("review")
def site_review(study_ref: OfferedStudy, home: SiteHome = None, as_json: AsJson = False) -> None:
    """What a study would run here, what would leave, and what it costs."""
    from client import decisions

    decisions.review_study(home, study_ref, as_json=as_json)


@site.command("approve")
def site_approve(
    study_ref: OfferedStudy,
    home: SiteHome = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
) -> None:
    """Let a study run here; the site refuses all others."""
    from client import decisions

    (decisions.withdraw_study if withdraw else decisions.approve_study)(home, study_ref)


def _checked(study_file: Path, set_: list[str] | None) -> tuple[Study, str]:
    from common.explain import check_study
    from simulations import commands

    found, _ = commands.read(study_file, tuple(set_ or ()))
    check_study(found, str(study_file))
    return found, found.digest


def main() -> None:
    """Run the command; a known error is one message and its exit code, without a traceback."""
    from common.errors import FedgraftError

    try:
        code = app(standalone_mode=False)
    except FedgraftError as error:
        if _debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        if _debug or not hasattr(error, "exit_code"):
            raise
        show = getattr(error, "show", None)
        if show is not None:
            show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
