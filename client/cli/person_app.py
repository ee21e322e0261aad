"""`fedgraft person`: who may decide at a site, or for a server, and with which key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgraft.client.cli.app import By, Home, PassphraseFile
from fedgraft.common.base.console.command_line import command_group

app = command_group("Persons who sign approvals and releases.")


@app.command("add")
def add(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    home: Home,
    name: Annotated[str, typer.Argument(help="The person's name, as it stands in records and passports.")],
    ssh_agent: Annotated[
        bool, typer.Option("--ssh-agent", help="Take an ed25519 key of ssh-agent, also of a hardware token.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="Which of the agent's keys, as `ssh-add -l` shows it.")
    ] = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the new key's passphrase here instead of asking.")
    ] = None,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Add a person, with a new key under a passphrase. Whoever comes after the first is added by one who is there."""
    from fedgraft.client.cli import person_commands as persons

    voucher = (by, passphrase_file)
    if ssh_agent:
        persons.add_from_agent(home, name, key, voucher)
    else:
        persons.add_with_passphrase(home, name, new_passphrase_file, voucher)


@app.command("remove")
def remove(
    home: Home,
    name: Annotated[str, typer.Argument(help="Who leaves, or has lost their key.")],
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Withdraw the approvals that they have signed, too.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Nobody else can sign: the removal is on record as in nobody's name.")
    ] = False,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a person's key out of use for ever. Another person signs it; what was signed until now stands."""
    from fedgraft.client.cli import person_commands as persons

    persons.remove(home, name, (by, passphrase_file), revoke=revoke, force=force)


@app.command("list")
def show(home: Home) -> None:
    """Who is in the book, by which key, who added them, and who was removed."""
    from fedgraft.client.cli import person_commands as persons

    persons.show(home)
