"""Figures that policy lets out once in a study: asked for again, with other models and after whatever is in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from fedgraft.common.protocol.instructions import Answer, Update
from fedgraft.simulations.audit.checks import NOBODY
from fedgraft.simulations.audit.home.hospital import CLOSED, PRIVATE, Hospital, home_study
from fedgraft.simulations.audit.lying.oracle import leaves

_COLUMNS, _PATIENTS, _ROUNDS = 4, 200, 4
_RULES = ("noised", "suppressed")


def figures_shown_once(folder: Path) -> Iterator[str]:
    """After the study's end another model comes: at once, after all rounds came again, and after answers were lost."""
    study, end = home_study(_COLUMNS, PRIVATE | {"rounds": _ROUNDS}), _ROUNDS + 1
    for rule in _RULES:
        policy = CLOSED.model_copy(update={"metrics": rule})
        site = Hospital(folder / rule, study, range(_PATIENTS), policy)
        site.restart()
        site.greet()
        answers = [site.ask(exchange) for exchange in range(1, end + 1)]
        first = _figures(answers[-1])
        if not first:
            yield NOBODY
            continue
        for words in ("at once", "after all rounds came again", "after a new start", "after answers were lost"):
            if words == "after all rounds came again":
                site.greet()
                for exchange in range(1, end):
                    site.ask(exchange)
            elif words != "at once":
                site.restart()
                if words == "after answers were lost":
                    shutil.rmtree(site.home / "state" / "replies")
                site.greet()
            again = _figures(site.ask(end, 1.0))
            if again and again != first:
                yield f"with metrics: {rule}, other figures of the same cases left {words}"
        site.restart()


def _figures(answer: Answer) -> dict[str, object]:
    return (
        {path: value for path, value in leaves(answer).items() if path.startswith("/metrics")}
        if isinstance(answer, Update)
        else {}
    )
