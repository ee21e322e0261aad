"""How workers of pytest-xdist share the tests: file by file, so that what a file sets up is set up once.

A file of the deployment tier founds a consortium, which takes half a minute; dealt out test by test, every worker would
found its own. The files come in the order of their names: that tier first, whose tests wait, and quick ones at the end.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler.loadfile import LoadFileScheduling


def by_file(config: Any, log: Any) -> LoadFileScheduling:
    """The scheduler for this session."""
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
