"""What is kept of a federated run's rounds when its folder goes: its history, and its result without the sums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.common.base.files import is_there, make_folder, read_json, write_atomic, write_json
from fedgraft.server.runs.run_folder import RunFolder

Row = Mapping[str, Any]
_HISTORY, _RESULT = "history.jsonl", "result.json"


def keep_rounds(run: Path, folder: Path) -> None:
    """Copy both from the run's folder; nothing where no run came to its end there, as of sites that train alone."""
    if is_there(run / _RESULT):
        make_folder(folder)
        write_atomic(folder / _HISTORY, (run / _HISTORY).read_bytes())
        write_json(folder / _RESULT, read_json(run / _RESULT) | {"sums": None})


def kept_rounds(folder: Path) -> tuple[list[Row], Row] | None:
    """The history and the result; None where there are none."""
    if not is_there(folder / _RESULT):
        return None
    rows: list[Row] = [*RunFolder(folder).history()]
    return rows, read_json(folder / _RESULT)
