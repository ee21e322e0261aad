"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from fedgraft.server.watch.progress import shown

METRIC = {"cls": "auroc"}
EVENTS = [
    {"event": "greeted", "sites": ["east", "north"], "absent": {"south": "unreachable"}},
    {"event": "exchange", "exchange": 1, "stage": "finetune", "sites": 2},
    {"event": "reply", "exchange": 1, "site": "east"},
    {
        "event": "done",
        "exchange": 1,
        "macro": {"cls": 0.8125},
        "metric": {"cls": "auroc"},
        "missing": {"north": "deadline"},
    },
    {"event": "notice", "text": "a checkpoint [is] damaged"},
    {"event": "waiting", "exchange": 2, "sites": ["east", "north"], "needed": 1},
    {"event": "waiting", "exchange": 2, "sites": ["north"], "needed": 1},
    {"event": "joined", "sites": ["south"]},
    {"event": "exchange", "exchange": 2, "stage": "finetune", "sites": 2},
    {"event": "done", "exchange": 2, "macro": {"cls": None}, "metric": {"cls": "auroc"}, "missing": {}},
]


def watch(run: Path, study, *, terminal: bool) -> str:
    """What is shown for EVENTS; an event of an earlier run in the same folder is not shown again."""
    run.mkdir()
    old = {"event": "done", "exchange": 1, "macro": {"cls": 0.123}, "metric": {"cls": "auroc"}, "missing": {}}
    (run / "events.jsonl").write_text(json.dumps(old) + "\n")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=140)
    with shown(run, study, console), (run / "events.jsonl").open("a") as file:
        for event in EVENTS:
            whole = json.dumps(event) + "\n"
            file.write(whole[:9])  # half a line must wait for its other half
            file.flush()
            time.sleep(0.15)
            file.write(whole[9:])
            file.flush()
    assert "0.123" not in screen.getvalue()
    return screen.getvalue()


@pytest.mark.slow
def test_plain_lines_where_there_is_no_terminal(make_study, tmp_path):
    lines = watch(tmp_path / "run", make_study(), terminal=False).splitlines()
    assert lines == [
        "2 sites ready; missing: south, unreachable",
        "1/3 finetune  cls AUROC 0.812; missing: north, deadline",
        "a checkpoint [is] damaged",
        "exchange 2 waits for 1 of east, north, and is repeated then",
        "exchange 2 waits for north, and is repeated then",
        "south: there now",
        "2/3 finetune",
    ]


@pytest.mark.slow
def test_a_bar_with_stage_sites_metric_and_time_on_a_terminal(make_study, tmp_path):
    text = watch(tmp_path / "run", make_study(), terminal=True)
    for part in (
        "finetune",
        "1/3",
        "2/3",
        "1/2 sites",
        "cls AUROC 0.812",
        "2 sites ready; missing: south, unreachable",
        "missing: north, deadline",
        "south: there now",
        "[is] damaged",
        "waits for 1 of",
        "0:00:0",
    ):
        assert part in text, part
