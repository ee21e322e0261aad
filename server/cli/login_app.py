"""`fedgraft server login`: who may read the live page. No password is an argument, which others on the machine see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgraft.common.base.console.command_line import command_group
from fedgraft.server.cli.app import HOME, By, Home, PassphraseFile

app = command_group("Who may read the live page.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    home: Home = HOME,
    password_file: Annotated[
        Path | None, typer.Option(help="Read the password here, on the first line, instead of asking.")
    ] = None,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Give a person a password for the page; again, another one, which ends what they have open."""
    from fedgraft.server.cli import login_commands as logins

    logins.add(home, name, password_file, (by, passphrase_file))


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="What the program is called, such as prometheus.")],
    out: Annotated[Path, typer.Option(help="A new file for the token, which is nowhere else.")],
    home: Home = HOME,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Let a program read the page's figures, and nothing else, with a token."""
    from fedgraft.server.cli import login_commands as logins

    logins.add_program(home, name, out, (by, passphrase_file))


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A person or a program.")],
    home: Home = HOME,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Shut somebody out of the page, at once."""
    from fedgraft.server.cli import login_commands as logins

    logins.remove(home, name, (by, passphrase_file))


@app.command("list")
def show(home: Home = HOME) -> None:
    """Who may read the page, and since when."""
    from fedgraft.server.cli import login_commands as logins

    logins.show(home)
