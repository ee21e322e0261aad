"""`fedgraft server`: its subcommands. What one needs is imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedgraft.common.base.console.command_line import command_group

app = command_group("The coordinator's server: provision, start, run studies, watch.")

Home = Annotated[Path, typer.Option(envvar="FEDGRAFT_SERVER", help="The server's folder, made by provisioning.")]
Out = Annotated[Path, typer.Option(help="The folder of authority, server and kits.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]
By = Annotated[str | None, typer.Option(help="Your name; where the folder has persons, one signs (fedgraft person).")]
PassphraseFile = Annotated[Path | None, typer.Option(help="Read the passphrase of your key here instead of asking.")]
HOME = Path("kits/server")
LOOPBACK = "127.0.0.1"


@app.command()
def provision(
    consortium: Annotated[Path, typer.Argument(help="The consortium's YAML file.")],
    out: Out = Path("kits"),
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make authority, server and a kit per site; again with a longer file: kits for the new sites alone."""
    from fedgraft.server.cli import authority_commands as commands

    commands.provision(consortium, out, (by, passphrase_file))


@app.command()
def start(
    home: Home = HOME,
    grpc_health: Annotated[
        int | None, typer.Option(help="Answer gRPC health checks on this port, on loopback.")
    ] = None,
    json_logs: Annotated[bool, typer.Option(help="Logs as JSON, a line per event.")] = False,
) -> None:
    """Run the server, until it is stopped by Ctrl-C or SIGTERM."""
    from fedgraft.server.cli import commands

    commands.start(home, grpc_health, as_json=json_logs)


@app.command()
def run(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    study: Annotated[Path | None, typer.Argument(help="The study's YAML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/STUDY if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Start with so many sites; all if not given.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for them.")] = 300.0,
    away: Annotated[float, typer.Option(min=0, help="Seconds that a round waits for a site that is away.")] = 180.0,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that it waits for sites without which it cannot count.")
    ] = 1800.0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value: override a key of the study.")] = None,
    track: Annotated[list[str] | None, typer.Option(help="csv, tensorboard, mlflow, or one of your own.")] = None,
    agreement: Annotated[
        Path | None, typer.Option(help="What the sites answered to `study ask`: the run begins only if it still holds.")
    ] = None,
    home: Home = HOME,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Run a study on the running server, and wait for its end: exit code 0 only if it completed."""
    from fedgraft.server.cli import commands
    from fedgraft.server.operations.deploy import Wait

    asked = commands.RunRequest(
        study, out, resume, tuple(set_ or ()), tuple(track or ()), agreement, (by, passphrase_file)
    )
    commands.run(home, asked, Wait(sites, wait, patience, away))


@app.command()
def resolve(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run that kept its sums.")],
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    without: Annotated[list[str] | None, typer.Option(help="A site that leaves.")] = None,
    others: Annotated[list[Path] | None, typer.Option("--with", help="A run whose sites join.")] = None,
) -> None:
    """Let sites leave or join closed-form heads, from kept sums: no site works again."""
    from fedgraft.server.cli import commands

    commands.resolve(run, out, without or (), others or ())


@app.command()
def enrol(
    files: Annotated[list[Path], typer.Argument(help="What `fedgraft site join` wrote at the sites.")],
    out: Out = Path("kits"),
    grace: Annotated[
        float | None, typer.Option(min=0, help="Hours for which a site's old keys hold; 72, or as the file says.")
    ] = None,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take in the public keys of sites, which make their own; each uses up the code of its kit."""
    from fedgraft.server.cli import authority_commands as commands

    commands.enrol(files, out, grace, (by, passphrase_file))


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    out: Out = Path("kits"),
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Shut a site out: its key no longer counts as soon as the new list is on the server."""
    from fedgraft.server.cli import authority_commands as commands

    commands.revoke(site, out, (by, passphrase_file))


@app.command()
def renew(
    site: Annotated[str | None, typer.Argument(help="A site; the server itself if not given.")] = None,
    out: Out = Path("kits"),
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """New certificates for the server, or a new kit and code for a site, which then makes new keys."""
    from fedgraft.server.cli import authority_commands as commands

    commands.renew(site, out, (by, passphrase_file))


@app.command()
def sites(home: Home = HOME, as_json: AsJson = False) -> None:
    """Who is there, and when each was last heard of."""
    from fedgraft.server.cli import commands

    commands.show_sites(home, as_json=as_json)


@app.command()
def status(home: Home = HOME, as_json: AsJson = False) -> None:
    """The server's sites and runs, with rounds and refusals."""
    from fedgraft.server.cli import commands

    commands.show_status(home, as_json=as_json)


@app.command()
def collect(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    files: Annotated[list[Path], typer.Argument(help="Passports that sites handed on.")],
    home: Home = HOME,
) -> None:
    """Check sites' passports of a run, and keep them in its folder for the dossier."""
    from fedgraft.server.cli import commands

    commands.collect(run, files, home)


@app.command()
def watch(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; the server's newest run if not given.")] = None,
    home: Home = HOME,
    web: Annotated[int | None, typer.Option(min=0, max=65535, help="Show it on a web page on this port.")] = None,
    address: Annotated[
        str, typer.Option(help="Where the page listens; elsewhere than on loopback with a login.")
    ] = LOOPBACK,
) -> None:
    """Watch a run live, until it ends or Ctrl-C: deployed or simulated, running, over or not yet begun."""
    from fedgraft.server.cli import commands

    commands.watch(home, run, web, address)


@app.command()
def stop(
    home: Home = HOME,
    server: Annotated[bool, typer.Option("--server", help="Stop the server itself too.")] = False,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Stop the running studies; they can be continued."""
    from fedgraft.server.cli import commands

    commands.stop(home, server_too=server, by=(by, passphrase_file))


@app.command("remove-person")
def remove_person(
    name: Annotated[str, typer.Argument(help="Who leaves, or has lost their key.")],
    home: Annotated[Path, typer.Option(help="A server's folder, or an authority's.")] = HOME,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a person's key out of use for ever. Another person signs it, twice; what was signed until now stands."""
    from fedgraft.server.cli.show_actions import remove_person as carry_out

    carry_out(home, name, (by, passphrase_file))


@app.command()
def actions(home: Annotated[Path, typer.Option(help="A server's folder, or an authority's.")] = HOME) -> int:
    """Who did what with a server or an authority: exit code 1 if a line is not as it was signed."""
    from fedgraft.server.cli.show_actions import show_actions

    return show_actions(home)


@app.command()
def logs(
    home: Home = HOME,
    part: Annotated[Literal["server", "superlink", "superexec", "page"], typer.Option(help="Which log.")] = "server",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of its end.")] = 40,
) -> None:
    """The end of one of the server's logs."""
    from fedgraft.server.cli import commands

    commands.show_logs(home, part, lines)
