"""What simulated sites have written into their logs, for whoever simulates them: why they did not take part."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from fedgraft.common.base.disk import DISK_FULL, in_words
from fedgraft.common.base.errors import FedgraftError, RunError

_TROUBLE = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) (.*)$")
_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d \S+ [A-Z]+ ")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)")
_OURS = re.compile(r"^fedgraft\.[\w.]*: ")
_CODE = re.compile(r": refused, \w+$")
_MOST = 5


class SiteLogs:
    """The logs of the sites of a run, from now on."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._sizes = {path: path.stat().st_size for path in self._paths()}

    def explained(self, error: FedgraftError) -> FedgraftError:
        """The error, and below it the last trouble of each site that had some."""
        told = list(self._troubles())
        if not told:
            return error
        more = [f"and {len(told) - _MOST} sites more"] if len(told) > _MOST else []
        return type(error)("\n  ".join((str(error), *told[:_MOST], *more)))

    def _troubles(self) -> Iterator[str]:
        for path in self._paths():
            with path.open("rb") as file:
                file.seek(min(self._sizes.get(path, 0), path.stat().st_size))
                lines = file.read().decode("utf-8", "replace").splitlines()
            found = list(_entries(lines))
            # The code stands in the error already; the line before says why.
            if words := [one for one in found if not _CODE.search(one)] or found:
                yield f"{path.parent.name}: {words[-1]} ({path})"

    def _paths(self) -> list[Path]:
        return [path for path in sorted(self.run.glob("sites/*/site.log")) if path.is_file()]


def _entries(lines: Sequence[str]) -> Iterator[str]:
    """Each trouble in words; of one with a trace also how that ends, which says what was raised."""
    starts = [at for at, line in enumerate(lines) if _ENTRY.match(line)]
    for start, end in pairwise([*starts, len(lines)]):
        if match := _TROUBLE.match(lines[start]):
            raised = [line for line in lines[start + 1 : end] if _RAISED.match(line)]
            yield f"{match[1]}: {_OURS.sub('', raised[-1])}" if raised else match[1]


@contextmanager
def explained(logs: SiteLogs) -> Iterator[None]:
    """Errors of a run from within say what its sites have said, and how to go on after a full disk."""
    try:
        yield
    except RunError as error:
        raise logs.explained(error) from None
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EFBIG):
            raise
        again = f"Then continue with `fedgraft simulate --resume {shlex.quote(str(logs.run))}`."
        raise RunError(in_words(error), fix=again) from None
