"""How workers of pytest-xdist share the tests: file by file, so that what a file sets up is set up once.

A file of the deployment tier founds a consortium, which takes half a minute; dealt out test by test, every worker would
found its own. Those files wait for servers, for sites and for deadlines and leave the cores idle, so one worker at a
time goes through them, from the start, and the others compute meanwhile. When all that computes is given out they help.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController

WAITING = "tests/deployment/"


class Apart(LoadFileScheduling):
    """Files as they were collected, in the order of their names, which puts the deployment tier first."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        if any(self._waits(other) for other in self.nodes if other is not node):
            computing = next((file for file in self.workqueue if not file.startswith(WAITING)), None)
            if computing is not None:
                self.workqueue.move_to_end(computing, last=False)
        super()._assign_work_unit(node)

    def _waits(self, node: WorkerController) -> bool:
        """Whether a file of the deployment tier is this worker's, and not yet over."""
        given = self.assigned_work[node].items()
        return any(file.startswith(WAITING) and not all(done.values()) for file, done in given)


def by_file(config: Any, log: Any) -> LoadFileScheduling:
    """The scheduler for this session."""
    config.option.loadscopereorder = False
    return Apart(config, log)
