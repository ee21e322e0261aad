"""`--plugin` of the commands that run studies: loaded while the command line is read, before anything else."""

from __future__ import annotations

from typing import Annotated

import typer


def _load(places: list[str] | None) -> list[str] | None:
    from fedgraft.common.plugins.loading import load_plugins  # --help does without

    load_plugins(places or ())
    return places


Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", callback=_load, help="A Python file, or a module, with code of your own to load."),
]
"""A command's parameter `_plugin`: nothing is left to do with it when the command runs."""
