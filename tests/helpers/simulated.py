"""Simulated runs without the page at their end: to draw it takes as long as the run, and few tests look at it.

Those that do call `fedgraft.simulations.engines.run` itself, or draw the page of a run with `helpers.runs.page_of`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from fedgraft.simulations.engines.run import resume as resume_and_draw

resume = partial(resume_and_draw, report=False)


def simulate(study: Study, hospitals: Hospitals, out: Path, engine: Engine | None = None) -> Path:
    """Run `study` in the new folder `out`, and return it with result and model in it."""
    prepare(study, hospitals, out)
    return resume(out, engine)
