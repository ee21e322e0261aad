"""`fedgraft passport`: what anybody can do with a hospital's signed evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgraft.common.base.console.command_line import command_group

app = command_group("Signed evidence of hospitals about a run.")


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command("verify")
def verify(
    files: Annotated[list[Path], typer.Argument(help="Passports, as `fedgraft site passport` wrote them.")],
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="NAME=FINGERPRINT: the key that a site's people told you.")
    ] = None,
) -> int:
    """Check that passports are as their sites signed them, and say which part is not."""
    from fedgraft.common.evidence.passport import verify_passports

    return verify_passports(files, fingerprint or ())
