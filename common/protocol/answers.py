"""What a site answers before a study begins: who it could supply, as ranges of patients; and how a run holds it to it.

All of it is counts over the whole cohort, and none depends on how a study splits or trains. The classes of a study are
no part of it either: words are told as the site's own table has them, so that asking with other classes tells no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedgraft.common.base.files import canonical_json
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.study import Study

Band = tuple[int, int]
"""The fewest and the most that a count may be; the same number twice where it is told exactly."""

Bands = Mapping[str, Band]


@dataclass(frozen=True)
class TaskSupply:
    """What a site has for one task: patients by word of its own table, as its `label_map` has it.

    `rest` counts patients with words that are too rare to be told, `unknown` those without a known label. `others` is
    what the site's entry `all others` makes of words that are no class. `silent` is why nothing is told: no_column (the
    site has none), not_named (the column has the task's name, and the site's file does not name it), or "".
    """

    words: Bands = field(default_factory=dict)
    rest: Band = (0, 0)
    unknown: Band = (0, 0)
    others: str = ""
    silent: str = ""


@dataclass(frozen=True)
class AskedPrice:
    """What the plan would cost the site by its policy, had it spent nothing yet; `refused` is why it may not be had."""

    epsilon: float
    delta: float
    refused: str = ""


@dataclass(frozen=True)
class SiteAnswer:
    """One site's answer. `facts` are patients by vendor, spacing, sex and age; `missing` are without a column's value.

    `state` stands for the cases that were counted, and `seal` for the answer as a whole: both can be made with a key
    that never leaves the site.
    """

    site: str
    exact: bool
    observer: bool
    patients: Band
    tasks: Mapping[str, TaskSupply]
    facts: Mapping[str, Bands]
    missing: Bands
    price: AskedPrice
    state: str
    seal: str = ""

    def plain(self) -> dict[str, Any]:
        """The same as values of JSON."""
        tasks = {name: supply_plain(supply) for name, supply in self.tasks.items()}
        return {
            "site": self.site,
            "exact": self.exact,
            "observer": self.observer,
            "patients": list(self.patients),
            "tasks": tasks,
            "facts": {name: _plain(bands) for name, bands in self.facts.items()},
            "missing": _plain(self.missing),
            "price": vars(self.price).copy(),
            "state": self.state,
            "seal": self.seal,
        }

    @property
    def counts(self) -> str:
        """SHA-256 of what is told of the cases: two answers that tell the same are one."""
        left_out = {"price", "state", "seal"}
        return _sha256({key: value for key, value in self.plain().items() if key not in left_out})

    @property
    def digest(self) -> str:
        """SHA-256 of all but the seal."""
        return _sha256({key: value for key, value in self.plain().items() if key != "seal"})

    @property
    def pin(self) -> Pin:
        """What a run holds the site to."""
        return Pin(self.digest, self.state, self.seal)


@dataclass(frozen=True)
class Pin:
    """One site's answer in an agreement: its digest, the state of its cohort then, and the site's own seal on both."""

    answer: str
    state: str
    seal: str

    def plain(self) -> dict[str, str]:
        """The same as values of JSON."""
        return vars(self).copy()


def question(study: Study) -> str:
    """SHA-256 of what a study asks of data: tasks and columns, and nothing of plan, split or seed."""
    given = study.input
    asked = ["image"] if isinstance(given, ImageInput) else [given.kind, list(given.numeric), dict(given.categorical)]
    tasks = [task.model_dump(mode="json", exclude={"weight"}) for task in study.tasks]
    return _sha256({"tasks": tasks, "input": asked})


def supply_plain(supply: TaskSupply) -> dict[str, Any]:
    """What a site has for a task, as values of JSON."""
    bands = {"rest": list(supply.rest), "unknown": list(supply.unknown)}
    return {"words": _plain(supply.words), **bands, "others": supply.others, "silent": supply.silent}


def _plain(bands: Bands) -> dict[str, list[int]]:
    return {word: list(band) for word, band in bands.items()}


def _sha256(content: Any) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()
