"""Simulated runs without the page at their end: to draw it takes as long as the run, and few tests look at it.

Those that do call `fedgraft.simulations.engines.run` itself, or draw the page of a run with `helpers.runs.page_of`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from fedgraft.simulations.engines.run import resume as resume_and_draw

resume = partial(resume_and_draw, report=False)


def simulate(study: Study, hospitals: Hospitals, out: Path, engine: Engine | None = None) -> Path:
    """Run `study` in the new folder `out`, and return it with result and model in it."""
    prepare(study, hospitals, out)
    return resume(out, engine)


class Stopped(Exception):
    """A run that is stopped from outside."""


def stopped_at(study: Study, hospitals: Hospitals, out: Path, exchange: int) -> Path:
    """A run that ends before the checkpoint of `exchange` is on the disk: sites have answered, and nobody knows."""
    save = RunFolder.save_checkpoint

    def interrupted(self: RunFolder, number: int, *rest: Any) -> None:
        if number == exchange:
            raise Stopped
        save(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", interrupted)
        with pytest.raises(Stopped):
            simulate(study, hospitals, out)
    return out
