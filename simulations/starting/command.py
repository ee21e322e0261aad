"""`fedgraft init`: look, propose, check, and write two files that a person can read and change."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from fedgraft.client.data.spec import PATHS
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study
from fedgraft.simulations.phantoms.scenario import Scenario
from fedgraft.simulations.starting.look import demand_something, places
from fedgraft.simulations.starting.notebooks import bring
from fedgraft.simulations.starting.propose import propose

STUDY, SCENARIO = "study.yaml", "hospitals.yaml"


def begin(folder: Path | None, notebook: str | None, out: Path) -> None:
    """Begin with the data in a folder, or with a notebook. InputError if both are given, or neither."""
    if folder is not None and notebook is None:
        init(folder, out)
    elif notebook is not None and folder is None:
        bring(notebook, out)
    else:
        given = "Both a folder and --notebook are given" if folder is not None else "No folder with data is given"
        raise InputError(f"{given}.", fix="Give your data (fedgraft init FOLDER), or --notebook own_images alone.")


def init(folder: Path, out: Path) -> None:
    """Write a study and a scenario for the data in a folder, or for one file, and say what was guessed.

    InputError if there is nothing to begin with, or one of the files exists: nothing is overwritten.
    """
    if not folder.exists():
        raise InputError(f"{folder}: does not exist.", fix="Give the folder with your data, or a .csv or .npz file.")
    for name in (STUDY, SCENARIO):
        if (out / name).exists():
            raise InputError(f"{out / name}: exists, and is not overwritten.", fix="Choose another --out.")
    found = places(folder.resolve())
    demand_something(found, folder)
    made = propose(found, _name(folder))
    Scenario.parse(made.scenario)
    check_study(Study.parse({key: value for key, value in made.study.items() if key != "scenario"}), str(out / STUDY))
    out.mkdir(parents=True, exist_ok=True)
    _write(out / SCENARIO, _relative(made.scenario, out), ["The hospitals of a simulation, as they were found."])
    _write(out / STUDY, made.study, ["A first study, as it was guessed from what is there:", *made.said])
    for line in made.said:
        say(line)
    say(f"Written: {out / STUDY} and {out / SCENARIO}. Read them, and change what was guessed wrong.")
    say(f"Then: fedgraft study explain {out / STUDY}")
    say(f"      fedgraft study suggest {out / STUDY}")
    say(f"      fedgraft simulate {out / STUDY} --out runs/{made.study['name']}")


def _name(folder: Path) -> str:
    """A study's name after the folder's."""
    plain = re.sub(r"[^a-z0-9_-]+", "_", folder.resolve().stem.lower()).strip("_-")
    return plain[:64] or "mine"


def _write(path: Path, content: Mapping[str, Any], head: list[str]) -> None:
    lines = [row for line in head for row in wrap(line, 118, initial_indent="# ", subsequent_indent="#   ")]
    text = "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    write_atomic(path, text.encode())


def _relative(scenario: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The same with the paths of all cohorts relative to the folder of the file."""
    whole = dict(scenario)
    for holder in [*whole.get("sites", []), *([whole["partition"]] if "partition" in whole else [])]:
        for key in PATHS:
            if key in holder["cohort"]:
                holder["cohort"][key] = os.path.relpath(holder["cohort"][key], out.resolve())
    return whole
