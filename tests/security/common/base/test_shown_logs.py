"""What a long-lived program shows on a terminal, or in a container's log, of an error: its kind, and no trace."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.common.base.logs import start_logs

SECRET = "orchid-lantern-quartz"


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_trace_of_an_error_is_in_the_private_file_alone(as_json: bool, tmp_path: Path, capsys) -> None:
    file = tmp_path / "logs" / "server.log"
    start_logs(file, as_json=as_json)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("fedgraft.server").exception("%s was not done", "it")
    logging.getLogger("fedgraft.server").info("100%% of %s", "all")
    shown = capsys.readouterr().err
    assert SECRET not in shown
    assert "Traceback" not in shown
    first, second = shown.splitlines()
    assert f"it was not done (ValueError; the trace is in {file})" in first
    assert "100% of all" in second
    kept = file.read_text()
    assert f"ValueError: {SECRET}" in kept
    assert "Traceback" in kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    if as_json:
        assert json.loads(first).keys() == {"time", "level", "logger", "message"}
        assert "traceback" in json.loads(kept.splitlines()[0])
