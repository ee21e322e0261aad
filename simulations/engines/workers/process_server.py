"""The process that workers are forked from: it has imported what their work needs, so that each begins at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext

# torch imports the last of these with the first optimiser: 1.3 s of every worker, unless it is there before the fork.
_IMPORTED = ("fedgraft.simulations.engines.workers.worker", "torch._dynamo")


def process_server() -> ForkServerContext:
    """Where workers are started; the server itself starts with the first one, and lasts as long as this process.

    What is in the environment when it starts is in that of all workers, whatever changes later.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def end_with_parent() -> None:
    """In a worker: end as soon as whoever started it is gone, however that ended.

    Else it would work on, for nobody, in folders that the next to continue the work writes as well.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
