"""Where a Python process that is started here looks for modules: where this one does, and not in the working folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def no_working_folder() -> Iterator[None]:
    """Python processes started meanwhile do not put the working folder first in their search for modules.

    multiprocessing starts its helpers by `python -c`, which does, so that a person's `random.py` would be run in place
    of Python's own. What they are told of this process's path comes after, and stays as it is.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
