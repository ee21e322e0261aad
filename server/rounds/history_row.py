"""One exchange as a line of a run's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.study.schedule import Step, place_before, split_at, stage_of
from fedgraft.common.study.study import Study
from fedgraft.server.rounds.exchange.collect import Collected
from fedgraft.server.rounds.scores import Scores


def history_row(
    study: Study, step: Step, sites: Sequence[str], got: Collected, scores: Scores, ended: Mapping[str, int]
) -> dict[str, Any]:
    """Who was asked and answered, what was measured and moved; `ended` as of the run's totals."""
    stage = stage_of(study, step)
    return {
        "exchange": step.exchange,
        "stage": stage.name if step.work else "evaluate",
        "stage_index": step.stage,
        "round": step.round,
        "rounds": stage.rounds,
        "bytes_up": got.bytes_up,
        "bytes_down": got.bytes_down,
        "sites_asked": list(sites),
        "sites_aggregated": sorted(got.aggregated),
        "missing": {site: code.value for site, code in sorted(got.missing.items())},
        "train": dict(sorted(got.train.items())),
        "spent": dict(sorted(got.spent.items())),
        "train_pooled": got.train_pooled,
        "chosen": dict(sorted(got.chosen.items())),
        "repeats": got.repeats,
        "ridge_penalties": got.ridge_penalties,
        "evaluated": _evaluated(study, step, ended) if got.metrics or got.pooled or got.observed else None,
        "split": split_at(study, step) if got.metrics or got.pooled else None,
        "metrics": scores.values(),
        "observers": Scores(study, got.observed).values(),
    }


def _evaluated(study: Study, step: Step, ended: Mapping[str, int]) -> dict[str, Any]:
    """Which model went out in this exchange: the one that the exchange before left behind."""
    place = place_before(study, step)
    if place is None:
        return {"stage": "start", "round": 0}
    stage = study.plan[place]
    if step.work and place == step.stage:
        return {"stage": stage.name, "round": step.round - 1}
    return {"stage": stage.name, "round": ended.get(stage.name, stage.rounds)}
