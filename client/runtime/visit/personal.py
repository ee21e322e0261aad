"""What a site trains for itself alone, and whether it uses that in place of the model that it has with others.

It does where that is better on its own validation cases. Neither the entries nor the choice leave the site, and nothing
that does depends on them: what is evaluated for the coordinator is the model without them, whatever was chosen. Figures
of the chosen model beside those of the common one would say which of the two it is.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.evaluation import counted
from fedgraft.client.runtime.visit.local_state import LocalState
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.common.base.errors import ENDS
from fedgraft.common.base.files import read_sealed, sealed, write_json
from fedgraft.common.methods.memory.carried import in_place
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.metrics.plugged import values_of
from fedgraft.common.metrics.shown import shown
from fedgraft.common.metrics.table import Metric
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.routing import Tags, forms_of
from fedgraft.common.study.study import Study

FOLDER = "personal"
"""Within the folder of the entries that a site keeps, so that a course that is set aside takes it along."""
_CHOICE = "choice.json"
_LATEST = 1 << 40


class Personal:
    """The entries of one site's own model in one study, by exchange, and what was chosen at the end."""

    def __init__(self, kept: Path, *, sync: bool = True) -> None:
        """`kept` is the folder of what the site keeps of the study; `sync` is as for `LocalState`."""
        self._folder = kept / FOLDER
        self._entries = LocalState(self._folder, sync=sync)

    def before(self, exchange: int) -> dict[str, np.ndarray]:
        """The entries as they were before this exchange; none at first."""
        return self._entries.before(exchange)

    def save(self, exchange: int, entries: Arrays) -> None:
        """Keep the entries as they are after `exchange`."""
        self._entries.save(exchange, entries)

    def choose(self, place: Workplace, turn: Turn, local_state: Arrays, log: logging.Logger) -> None:
        """At the end of the study: the site's own model, if it is better on the validation cases; never raises.

        Without a figure of either the model that all have is used: too few validation cases, or an answer that is no
        number.
        """
        entries = self.before(turn.exchange)
        if not entries:
            return
        try:
            place.answering(turn.before, local_state)
            common = _figure(place, place.used)
            mine = _figure(place, place.used | entries)
        except ENDS:
            raise
        except BaseException:  # what goes wrong with the one model is no reason that anybody hears of
            log.exception("the site's own model could not be tried, and is not used")
            common, mine = None, None
        asked = _headline(place.study)
        better = common is not None and mine is not None and asked.goodness(mine) > asked.goodness(common)
        figures = {"metric": asked.name, "own": mine, "common": common, "cases": len(place.loader.labelled("val"))}
        write_json(self._folder / _CHOICE, sealed({"uses_own": better, **figures}), private=True)
        used = "its own" if better else "the common one"
        log.info("validation: own model %s, common model %s: the site uses %s", mine, common, used)

    def chosen(self) -> dict[str, np.ndarray]:
        """The entries that the site uses of its own model: all of them, or none."""
        path = self._folder / _CHOICE
        return self.before(_LATEST) if path.is_file() and read_sealed(path)["uses_own"] is True else {}


def kept_at_the_end(kept: Path, study: Study, tags: Tags, state: Arrays) -> dict[str, np.ndarray]:
    """What a site has in place of the common entries, `state`, after a study: what it keeps, or its own model.

    `kept` is the folder of what it keeps of the study.
    """
    last = next((stage for stage in reversed(study.plan) if stage.personalise != "best"), None)
    found = LocalState(kept).before(_LATEST)
    keeps = {} if last is None else in_place(Ground(study, last, tags, forms_of(state)), found, state)
    return keeps | {key: array for key, array in Personal(kept).chosen().items() if key in tags}


def _headline(study: Study) -> Metric:
    return shown(study, study.tasks[0].name).first


def _figure(place: Workplace, entries: Arrays) -> float | None:
    """The first task's figure on the validation cases."""
    place.local_model.load(entries)
    task = place.study.tasks[0]
    sums = counted(place, predictions(place.local_model, place.loader, "val", passes=True, alike=place.alike))
    value = values_of(sums[task.name]).get(_headline(place.study).name)
    return None if value is None or not np.isfinite(value) else float(value)
