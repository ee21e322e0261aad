"""Where real data lie: paths that begin with a variable of the environment, such as `$FEDGRAFT_REAL_DATA`."""

from __future__ import annotations

import os
from pathlib import Path

from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError


class AbsentData(InputError):
    """Data that a scenario names are not on this machine."""


def placed(path: str, folder: Path) -> str:
    """A path as a scenario names it: below the variable that it begins with, or below `folder`.

    What begins with a variable that is not set stays as it is, so that the scenario can be read without its data.
    """
    if not path.startswith("$"):
        return str(folder / Path(path).expanduser())
    variable, _, rest = path[1:].partition("/")
    there = os.environ.get(variable)
    return path if there is None else str(Path(there) / rest)


def demand_there(cohorts: dict[str, CohortSpec], originals: str) -> None:
    """AbsentData for data that are not on this machine, with `originals`: where they are, and how to convert them."""
    for name, spec in cohorts.items():
        for path in (spec.root, spec.labels):
            if path is None or path.exists():
                continue
            text = str(path)
            if text.startswith("$"):
                variable = text[1:].partition("/")[0]
                raise AbsentData(f"{name}: ${variable}, the folder with its data, is not set.", fix=originals)
            if originals:
                raise AbsentData(f"{name}: there is no {path}.", fix=originals)
