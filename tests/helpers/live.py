"""A run's folder that grows as a run does: the coordinator's own files, line by line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedgraft.common.study.study import Study
from helpers.runs import write_run

SITES = ("east", "north", "south")


class LiveRun:
    """A finished run in `source`, told again into `folder` as it happened."""

    def __init__(self, folder: Path, source: Path, study: Study) -> None:
        self.folder = folder
        write_run(source, SITES, stages=(("finetune", 3),))
        self.rows = [json.loads(line) for line in (source / "history.jsonl").read_text().splitlines()]
        self._result = (source / "result.json").read_text()
        self._study = study

    def begin(self) -> None:
        self.folder.mkdir()
        (self.folder / "study.yaml").write_text(self._study.to_yaml())
        (self.folder / "simulation.json").write_text("{}")
        self.event("greeting")
        self.event("greeted", sites=list(SITES), absent={})

    def event(self, kind: str, **facts: Any) -> None:
        self._append("events.jsonl", {"time": time.time(), "event": kind, **facts})

    def start(self, exchange: int) -> None:
        self.event("exchange", exchange=exchange, stage=self.rows[exchange - 1]["stage"], sites=len(SITES))

    def done(self, exchange: int, **changes: Any) -> None:
        row = self.rows[exchange - 1] | changes
        self._append("history.jsonl", row)
        self.event("done", exchange=exchange, macro={}, missing=row["missing"])

    def finish(self) -> None:
        (self.folder / "result.json").write_text(self._result)
        self.event("finished")

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(row) + "\n")
