"""The front door: one command. What a subcommand needs is imported only when it runs, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedgraft.client.cli.app import app as site
from fedgraft.client.cli.passport_app import app as passport
from fedgraft.client.cli.person_app import app as person
from fedgraft.common.base.console.command_line import command_group, examples, run_command
from fedgraft.common.base.switches import set_switches
from fedgraft.common.plugins.option import Plugins
from fedgraft.server.cli.app import app as server
from fedgraft.server.cli.kit_app import app as kit
from fedgraft.server.cli.login_app import app as login
from fedgraft.simulations.cli.app import AsJson, Sets, StudyFile, poc, privacy, study
from fedgraft.simulations.cli.weights_app import weights

set_switches()

app = command_group("Federated transfer learning for medical imaging across hospitals.")
data = command_group("Phantom hospitals, and public data as hospitals.")
_RUN, _PLAN, _USE, _DEPLOY = "Run on this machine", "Before a run", "Use what came out", "Run at real hospitals"
app.add_typer(study, name="study", rich_help_panel=_PLAN)
app.add_typer(privacy, name="privacy", rich_help_panel=_PLAN)
app.add_typer(weights, name="weights", rich_help_panel=_PLAN)
app.add_typer(data, name="data", rich_help_panel=_PLAN)
app.add_typer(poc, name="poc", rich_help_panel=_DEPLOY)
app.add_typer(passport, name="passport", rich_help_panel=_USE)
app.add_typer(server, name="server", rich_help_panel=_DEPLOY)
server.add_typer(login, name="login")
app.add_typer(kit, name="kit", rich_help_panel=_DEPLOY)
app.add_typer(site, name="site", rich_help_panel=_DEPLOY)
app.add_typer(person, name="person", rich_help_panel=_DEPLOY)


def _say_version(asked: bool) -> None:
    if asked:
        from fedgraft.common.base.environment import fedgraft_version

        typer.echo(f"fedgraft {fedgraft_version()}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Keep the trace of an error in a private file.")] = False,
    version: Annotated[  # noqa: ARG001 - it is answered before anything else is looked at
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    global _debug  # noqa: PLW0603 - the one switch that must reach main() past typer
    _debug = debug


_debug = False


@app.command(
    rich_help_panel=_RUN,
    epilog=examples(
        "fedgraft simulate quickstart --out runs/one",
        "fedgraft simulate my.yaml --scenario hospitals.yaml --engine pool --workers 4",
        "fedgraft simulate --resume runs/one",
        "fedgraft simulate my.yaml --engine ray --ray-address 10.0.0.1:6379",
    ),
)
def simulate(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: Annotated[Path | None, typer.Argument(metavar="STUDY", help="The study's YAML file.")] = None,
    scenario: Annotated[str | None, typer.Option(help="The hospitals: a scenario file, or the name of one.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/STUDY if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    engine: Annotated[str, typer.Option(help="inprocess, pool (worker processes) or ray.")] = "inprocess",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes of pool and ray: 2, or on a cluster all that fit.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="torch threads per site.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster, HOST:PORT or auto, in place of this machine; or RAY_ADDRESS.")
    ] = None,
    track: Annotated[list[str] | None, typer.Option(help="csv, tensorboard, mlflow, or one of your own.")] = None,
    release: Annotated[
        Literal["sign", "refuse"] | None,
        typer.Option(help="What the people of hospitals decide whose policy says `release: hold`."),
    ] = None,
    agreement: Annotated[
        Path | None, typer.Option(help="What the sites answered to `study ask`: the run begins only if it still holds.")
    ] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """Run a study over simulated hospitals on this machine."""
    from fedgraft.simulations.cli import commands

    commands.simulate(
        commands.SimulateRequest(
            study_file, scenario, out, resume, tuple(set_ or ()), tuple(track or ()), agreement, release
        ),
        commands.engine(engine, workers, threads, ray_address),
        as_json=as_json,
    )


@app.command(
    rich_help_panel=_RUN,
    epilog=examples(
        "fedgraft init my_images",
        "fedgraft init cases.csv --out first",
        "fedgraft init --notebook own_images",
    ),
)
def init(
    folder: Annotated[Path | None, typer.Argument(help="Your data: a folder, or a .csv or .npz file.")] = None,
    out: Annotated[Path, typer.Option(help="Where study.yaml and hospitals.yaml go, or the notebook.")] = Path(),
    notebook: Annotated[
        str | None, typer.Option(help="A notebook to begin with: own_images, chest_xrays or privacy.")
    ] = None,
) -> None:
    """Look at your data, and write a first study and scenario that run. Nothing is overwritten."""
    from fedgraft.simulations.starting.command import begin

    begin(folder, notebook, out)


@app.command(
    rich_help_panel=_RUN,
    epilog=examples(
        "fedgraft compare quickstart --arm study --arm local --arm pooled --seeds 3",
    ),
)
def compare(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study_file: StudyFile,
    out: Annotated[Path | None, typer.Option(help="Folder; continued if it exists. runs/STUDY-compare.")] = None,
    scenario: Annotated[str | None, typer.Option(help="The hospitals: a scenario file, or the name of one.")] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="study, scratch, local, pooled, ..., or an arm of the study's file.")
    ] = None,
    cases: Annotated[
        list[int] | None, typer.Option(min=1, help="At most so many training cases a site, where the file says it.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Ask only this question of the study's file.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Paired seeds; 3, or as the file says.")] = None,
    quick: Annotated[bool, typer.Option(help="A first look: few seeds, wide intervals.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="torch threads per run.")] = 1,
    track: Annotated[list[str] | None, typer.Option(help="csv, tensorboard, mlflow, or one of your own.")] = None,
    set_: Sets = None,
    as_json: AsJson = False,
    _plugin: Plugins = None,
) -> None:
    """Run a study and its alternatives on the same splits and seeds, and say what the difference is worth."""
    from fedgraft.simulations.compare.command import CompareRequest
    from fedgraft.simulations.compare.command import compare as carry_out

    asked = CompareRequest(
        study_file,
        out,
        scenario,
        tuple(set_ or ()),
        seeds,
        tuple(arm or ()),
        tuple(only or ()),
        quick,
        workers,
        threads,
        tuple(cases or ()),
        tuple(track or ()),
    )
    carry_out(asked, as_json=as_json)


@app.command(
    rich_help_panel=_USE,
    epilog=examples(
        "fedgraft predict runs/one images --out said --heat cam",
        "fedgraft predict runs/one images --out said --site runs/one/sites/north",
        "fedgraft predict runs/one images --out said --dicom sr --dicom seg",
        "fedgraft predict runs/one volumes --out said --cohort runs/one/sites/north",
        "fedgraft predict runs/one images --out said --sets north",
    ),
)
def predict(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or weights with heads.")],
    data: Annotated[
        Path, typer.Argument(help="A folder of DICOM, NIfTI or image files, or a file: .npz, table, features.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the table and the overlays.")],
    heat: Annotated[list[str] | None, typer.Option(help="cam (LayerCAM) or occlusion: overlays.")] = None,
    task: Annotated[str | None, typer.Option(help="The task of the overlays; the first if not given.")] = None,
    of: Annotated[str | None, typer.Option("--class", help="The class of the overlays; the likeliest.")] = None,
    site: Annotated[Path | None, typer.Option(help="A site's folder: use its own norm layers and heads.")] = None,
    adapt: Annotated[bool, typer.Option(help="Take norm statistics from these images (AdaBN).")] = False,
    accept: Annotated[list[str] | None, typer.Option(help="A kind of derived DICOM objects to use as well.")] = None,
    dicom: Annotated[list[str] | None, typer.Option(help="Objects: seg of masks, sr of answers, sc of maps.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="What the data are, if names do not tell: a plug-in's reader.")
    ] = None,
    cohort: Annotated[Path | None, typer.Option(help="A site's folder: read the data as it reads its own.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: as a cohort has it, such as plane=coronal.")
    ] = None,
    sets: Annotated[
        str | None, typer.Option(help="Conformal sets as well: of this site of the run, or all (under masks).")
    ] = None,
    _plugin: Plugins = None,
) -> None:
    """What a model says of data of any kind that a cohort can be of, as a table, and where it looks."""
    from fedgraft.client.inference import command

    more = tuple(accept or ()), tuple(dicom or ()), kind, cohort, tuple(set_ or ()), sets
    command.predict(command.PredictRequest(model, data, out, site, tuple(heat or ()), task, of, adapt, *more))


@app.command(
    rich_help_panel=_USE,
    epilog=examples(
        "fedgraft export runs/one --to onnx --out model",
    ),
)
def export(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or weights with heads.")],
    to: Annotated[str, typer.Option(help="onnx, torchscript, safetensors or monai-bundle.")],
    out: Annotated[Path, typer.Option(help="A new folder for the model and what is to be known of it.")],
    site: Annotated[Path | None, typer.Option(help="A site's folder: use its own norm layers and heads.")] = None,
    _plugin: Plugins = None,
) -> None:
    """Write a finished model in a form that other programs read."""
    from fedgraft.client.inference.command import export_model

    export_model(model, to, out, site)


@app.command(
    rich_help_panel=_USE,
    epilog=examples(
        "fedgraft report runs/one",
    ),
)
def report(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Build the HTML report of a run again."""
    from fedgraft.server.report import build_report

    typer.echo(build_report(run))


@app.command(
    rich_help_panel=_USE,
    epilog=examples(
        "fedgraft dossier runs/one",
    ),
)
def dossier(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Write model card, data-flow sheet, facts for a DPIA and technical files from a run, and what is missing."""
    from fedgraft.server.dossier.write import write_dossier

    for path in write_dossier(run):
        typer.echo(path)


@app.command(
    rich_help_panel=_RUN,
    epilog=examples(
        "fedgraft doctor --json",
    ),
)
def doctor(as_json: AsJson = False) -> None:
    """Versions, device and settings, and what is wrong with them."""
    from fedgraft.simulations.cli import commands

    commands.doctor(as_json=as_json)


@data.command("make")
def data_make(
    scenario: Annotated[str, typer.Argument(help="A scenario file, or the name of one that ships.")],
    out: Annotated[Path, typer.Option(help="Where the hospitals' folders go.")],
) -> None:
    """Write phantom hospitals as real DICOM files and tables."""
    from fedgraft.simulations.cli import commands

    commands.make_data(scenario, out)


@data.command("convert")
def data_convert(
    kind: Annotated[str, typer.Argument(help="nih-cxr14, kermany, uci-heart, medmnist or flamby-heart.")],
    source: Annotated[Path, typer.Argument(help="The folder that was unpacked, or for medmnist the .npz file.")],
    out: Annotated[Path, typer.Option(help="Where the tables and images go; X-rays can be added to others.")],
    size: Annotated[int, typer.Option(min=16, help="Longest side of the images, in pixels.")] = 128,
) -> None:
    """Bring public data into the form that the shipped comparisons read. Nothing is downloaded."""
    from fedgraft.simulations.real_data.convert.command import convert

    convert(kind, source, out, size)


def main() -> None:
    """Run the command. However it ends, people see a message of a line, and programs an exit code."""
    sys.exit(run_command(app, lambda: _debug))


if __name__ == "__main__":
    main()
