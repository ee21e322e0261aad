"""Trackers of a comparison: a run of theirs for each arm and seed, told when it is done, and one for what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgraft.common.base.errors import ENDS
from fedgraft.common.base.files import is_there, make_folder, read_json, write_atomic, write_json
from fedgraft.common.study.study import Study
from fedgraft.server.tracking.tracker import ARM, Tracker, trackers
from fedgraft.simulations.compare.measures.sites import figures_of
from fedgraft.simulations.compare.running.cells import Cell, folder_of, outcome
from fedgraft.simulations.compare.running.rounds import Row, kept_rounds

_FOLDER, _TOLD = "tracked", "told.json"


class ComparisonTrackers:
    """Tells trackers by name. One that fails is heard of once, by `say`, and is told no more: the comparison goes on.

    Each arm and seed has a folder `tracked/QUESTION/ARM-seed-N` in `out`, which a tracker is given as its run's. An arm
    that is one federation is told round by round; of others, whose sites train alone, all in one place, not at all, or
    without one of them in turn, only what their models reach, as one round.
    """

    def __init__(self, names: Sequence[str], out: Path, say: Callable[[str], object]) -> None:
        """InputError for a tracker that is not known, or whose package is not installed."""
        trackers(names)
        self._names, self._out, self._say = list(dict.fromkeys(names)), out, say

    @contextmanager
    def concluding(self, study: Study) -> Iterator[None]:
        """The run that stands for the comparison, while the body carries that out."""
        mine: dict[str, Tracker] = {}
        for name in [*self._names]:
            with self._wall(name):
                (mine[name],) = trackers((name,))
                mine[name].begin(self._out, study)
        ended: Row | None = None
        try:
            yield
            ended = _concluded(self._out)
        finally:
            for name in [name for name in mine if name in self._names]:
                with self._wall(name):
                    mine[name].end(self._out, ended)

    def done(self, cell: Cell, cells: Path) -> None:
        """Tell of an arm's run that is done, those trackers that have not heard all of it."""
        if not self._names:
            return
        run = self._out / _FOLDER / cell.question / _name(cell)
        told = list(read_json(run / _TOLD)["told"]) if is_there(run / _TOLD) else []
        for name in [name for name in self._names if name not in told]:
            with self._wall(name):
                self._tell(name, cell, cells, run)
                told.append(name)
                write_json(run / _TOLD, {"told": told})

    def _tell(self, name: str, cell: Cell, cells: Path, run: Path) -> None:
        study = cell.job.study
        rows, result = kept_rounds(folder_of(cell, cells)) or _as_one_round(cell, cells)
        make_folder(run)
        write_atomic(run / "study.yaml", study.to_yaml().encode())
        write_json(run / ARM, _facts(cell))
        write_json(run / "result.json", dict(result))
        (tracker,) = trackers((name,))
        tracker.begin(run, study)
        for row in rows:
            tracker.round(row)
        tracker.end(run, result)

    @contextmanager
    def _wall(self, name: str) -> Iterator[None]:
        try:
            yield
        except ENDS:
            raise
        except BaseException as error:  # the wall: a comparison is worth more than its tracker
            self._names.remove(name)
            self._say(f"{name} failed and is told no more ({type(error).__name__}); the comparison goes on.")


def _name(cell: Cell) -> str:
    cases = f"-{cell.cases}" if cell.cases else ""
    fold = f"-fold-{cell.fold.number + 1}" if cell.fold else ""
    return f"{cell.arm}{cases}-seed-{cell.seed}{fold}"


def _facts(cell: Cell) -> dict[str, Any]:
    """What the arm's run is of, beside its study; `within` is the comparison's folder, from that of the run."""
    fold = f"{cell.fold.number + 1} of {cell.fold.of}" if cell.fold else None
    facts = {"question": cell.question, "arm": cell.arm, "who": cell.job.who, "cases": cell.cases, "fold": fold}
    return {"name": cell.words(), "within": "../../..", "facts": facts | {"seed": cell.seed}}


def _as_one_round(cell: Cell, cells: Path) -> tuple[list[Row], Row]:
    """What the models of an arm that has no rounds reach, as a round of a run, and as its result."""
    ended, study = outcome(cell, cells), cell.job.study
    row = {
        "exchange": 1,
        "stage": "evaluate",
        "round": 1,
        "split": "test",
        "seconds": ended.seconds,
        "bytes_up": 0,
        "bytes_down": 0,
        "sites_aggregated": [],
        "train": {},
        "metrics": figures_of(ended.found, study),
    }
    said = "; ".join(ended.troubles) or f"{cell.job.who}: measured at all sites"
    result = {"status": "incomplete" if ended.troubles else "completed", "headline": said, "metrics": row["metrics"]}
    return [row], result | {"enough": not ended.troubles}


def _concluded(out: Path) -> Row:
    questions = read_json(out / "compare.json")["questions"]
    arms = sum(len(one["arms"]) for one in questions)
    return {"status": "completed", "headline": f"{len(questions)} questions, {arms} arms", "enough": True}
