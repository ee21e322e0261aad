"""`fedgraft site`: its subcommands. What one needs is imported only when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="A hospital's site: join, check, approve, start.", no_args_is_help=True)

# The default needs no import of what the site needs.
HOME = Path(os.environ.get("FEDGRAFT_HOME") or Path.home() / ".fedgraft") / "site"
Home = Annotated[Path, typer.Option(envvar="FEDGRAFT_SITE", help="The site's folder.")]


@app.command()
def join(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    kit: Annotated[Path, typer.Argument(help="The kit: a zip file, or the folder it was unpacked to.")],
    data: Annotated[Path, typer.Option(help="The folder with the images, or for --kind table the CSV file.")],
    labels: Annotated[Path | None, typer.Option(help="The CSV file with the labels.")] = None,
    kind: Annotated[Literal["dicom", "images", "table"], typer.Option(help="What the data are.")] = "dicom",
    key_column: Annotated[str | None, typer.Option(help="The column of the labels that names a patient.")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(help="Read the passphrase here instead of asking.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A YAML file with what the site allows.")] = None,
    home: Home = HOME,
) -> None:
    """Unpack a kit into the site's folder."""
    from client import deployed

    cohort = {"kind": kind, "root": data.resolve(), "labels": labels and labels.resolve(), "key_column": key_column}
    deployed.join(kit, home, _passphrase(passphrase_file), cohort, policy)


@app.command()
def rejoin(
    kit: Annotated[Path, typer.Argument(help="The renewed kit.")],
    passphrase_file: Annotated[Path | None, typer.Option(help="Read the passphrase here instead of asking.")] = None,
    home: Home = HOME,
) -> None:
    """Take over a renewed kit; data, state and approvals stay as they are."""
    from client import deployed

    deployed.rejoin(kit, home, _passphrase(passphrase_file))


@app.command()
def roster(
    file: Annotated[Path, typer.Argument(help="The roster.json that the coordinator sent.")],
    accept: Annotated[list[str] | None, typer.Option(help="A site whose new identity you compared with it.")] = None,
    home: Home = HOME,
) -> None:
    """Take over a newer list of members, signed by the consortium's authority."""
    from client import deployed

    deployed.roster(file, home, accept or ())


@app.command()
def start(
    home: Home = HOME, json_logs: Annotated[bool, typer.Option(help="Logs as JSON, a line per event.")] = False
) -> None:
    """Take part, until stopped by Ctrl-C or SIGTERM; the order at hand is finished first."""
    from client import deployed

    deployed.start(home, as_json=json_logs)


def _passphrase(path: Path | None) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8").strip()
    return str(typer.prompt("Passphrase of the kit", hide_input=True)).strip()
