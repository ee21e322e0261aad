"""A model's entries as a site has fitted them to itself: private files in its folder, known by the model's digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    digest_arrays,
    load_tensors,
    make_folder,
    read_sealed,
    save_tensors,
    sealed,
    write_json,
)
from fedgraft.common.protocol.instructions import Arrays

_FOLDER = "adapted"


def write_adapted(state: Path, model: str, entries: Arrays, facts: Mapping[str, Any]) -> None:
    """Put what a site has changed in the model of that digest into its folder; an earlier fit is replaced."""
    path = _path(state, model)
    make_folder(path.parent)
    save_tensors(path, dict(entries), private=True)
    content = {"model": model, "entries": digest_arrays(entries), **facts}
    write_json(path.with_suffix(".json"), sealed(content), private=True)


def read_adapted(state: Path, model: str) -> dict[str, np.ndarray] | None:
    """What `write_adapted` put there; None if nothing. InputError if it is damaged."""
    path = _path(state, model)
    if not path.with_suffix(".json").is_file():
        return None
    again = "Run `fedgraft site adapt` again."
    try:
        facts, entries = read_sealed(path.with_suffix(".json")), load_tensors(path)
    except InputError as error:
        raise InputError(str(error), fix=again) from None
    if facts.get("model") != model or facts.get("entries") != digest_arrays(entries):
        raise InputError(f"{path}: is not what was fitted to this model.", fix=again)
    return entries


def _path(state: Path, model: str) -> Path:
    return state / _FOLDER / f"{model[:16]}.safetensors"
