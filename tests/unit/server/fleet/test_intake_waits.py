"""A run that waits for replies goes on when the bell rings, and once for each time that it has rung."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedgraft.server.fleet.bell import Bell
from fedgraft.server.fleet.intake import WalledIntake


def lasted(intake: WalledIntake, seconds: float) -> float:
    began = time.monotonic()
    intake.wait(seconds)
    return time.monotonic() - began


def test_a_run_that_waits_goes_on_when_it_rings_and_does_not_go_round_in_circles_after_that(tmp_path: Path) -> None:
    bell = Bell(tmp_path / "up.bell")
    grid: Any = SimpleNamespace(_runtime_client=None, run=SimpleNamespace(run_id=1))
    intake = WalledIntake(grid, 1 << 20, None, bell)
    assert lasted(intake, 0.3) >= 0.3
    bell.ring()
    assert lasted(intake, 60.0) < 30.0, "it rang before it was waited for"
    assert lasted(intake, 0.3) >= 0.3, "and it counts once"
    threading.Timer(0.2, bell.ring).start()
    assert lasted(intake, 60.0) < 30.0
    intake.close()
