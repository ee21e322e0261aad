"""A study before it runs: is it possible, and what will it train, share and move, in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedgraft.common.base.errors import FedgraftError, StudyError
from fedgraft.common.checks.adapter_words import mean_of_adapters
from fedgraft.common.checks.check import check
from fedgraft.common.checks.check_input import input_faults
from fedgraft.common.checks.check_plugins import check_plugins, loss_faults
from fedgraft.common.checks.faults.check_adapters import check_separated
from fedgraft.common.checks.faults.check_methods import check_memory
from fedgraft.common.checks.local_work import describe_local
from fedgraft.common.checks.sums_in_words import solved, sums
from fedgraft.common.methods.memory.carried import methods_of
from fedgraft.common.models.architecture import Architecture, blueprint
from fedgraft.common.models.architecture_cache import architecture_of
from fedgraft.common.models.provenance import Provenance, learnt, pretrained
from fedgraft.common.protocol.routing import Tags, changed, sends_sums, sent
from fedgraft.common.study.plan import (
    Gradient,
    Harmonise,
    Recalibrate,
    Select,
    Stage,
    Statistics,
)
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import (
    AnyTask,
    Multilabel,
    Regression,
    Segmentation,
)


@dataclass(frozen=True)
class Checked:
    """What a run of the study would start from: what its model is made of, and where its entries come from."""

    architecture: Architecture
    provenance: Provenance


@dataclass(frozen=True)
class Explained:
    """The study's start and one row per stage, as in a run's result."""

    start: Checked
    rows: list[dict[str, Any]]


def check_study(study: Study, source: str) -> Checked:
    """Read the weights that the study names, and refuse what cannot work; StudyError with every reason."""
    if faults := list(check_plugins(study)):
        raise StudyError(source, faults)
    try:
        begin = _begin(study)
    except FedgraftError as error:
        raise StudyError(source, [f"model: {error}"]) from None
    entries = begin.architecture.entries
    faults = check(study, begin.architecture.tags)
    faults += check_separated(study, begin.architecture.tags, begin.architecture.unseparated)
    faults += loss_faults(study)
    if not faults:
        forms = {key: (entry.shape, entry.dtype) for key, entry in entries.items()}
        faults += check_memory(study, begin.architecture.tags, forms)
    manifest = begin.provenance.manifest
    if manifest is not None and manifest.input is not None and manifest.input != study.input:
        faults += input_faults(study, manifest.input)
    if faults:
        raise StudyError(source, faults)
    return begin


def _begin(study: Study) -> Checked:
    """What a run would begin with. InputError or WeightsError if it could not."""
    own = architecture_of(blueprint(study, study.model))
    _, provenance = pretrained(study, study.model, own)
    for teacher in filter(None, map(study.teacher_of, study.plan)):
        learnt(study, teacher, architecture_of(blueprint(study, teacher, plain=True)))
    return Checked(own, provenance)


def explain(study: Study, source: str) -> Explained:
    """What each stage will do; StudyError if the study cannot work."""
    begin = check_study(study, source)
    return Explained(begin, plan_table(study, begin.architecture.tags, begin.architecture.sizes))


def plan_table(
    study: Study, tags: Tags, sizes: Mapping[str, int], rows: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One row per stage: what is done, trained and shared, in entries counted as numbers, and bytes if known.

    `rows` is the history of a run, if there is one.
    """
    table = []
    for index, stage in enumerate(study.plan):
        of_stage = [row for row in rows or [] if row["stage_index"] == index and row["stage"] == stage.name]
        table.append(
            {
                "name": stage.name,
                "where": stage.where,
                "local": describe_local(stage),
                "trains": _trains(stage),
                "shares": _name(stage.share),
                "keeps": _name(stage.keep),
                "aggregate": _aggregate(stage),
                "rounds": stage.rounds,
                "trained_parameters": sum(sizes[key] for key in changed(stage, tags)),
                "shared_parameters": sum(sizes[key] for key in sent(stage, tags)),
                "bytes_up_per_round": round(sum(r["bytes_up"] for r in of_stage) / len(of_stage)) if of_stage else None,
                "bytes_down_per_round": round(sum(r["bytes_down"] for r in of_stage) / len(of_stage))
                if of_stage
                else None,
            }
        )
    return table


_USED = {"always": "", "best": "; it uses that only where it is better on its validation cases, and tells nobody"}


def describe_task(task: AnyTask) -> str:
    """A task's name, what is predicted (and its unit), and its weight where it is not 1."""
    match task:
        case Segmentation():
            what = "a mask, drawn by a decoder"
        case Regression():
            what = f"a value in {task.unit}, about {task.mean:g} give or take {task.std:g}"
        case Multilabel():
            what = f"yes or no to each of {', '.join(task.labels)}"
        case _:
            what = f"one of {', '.join(task.classes)}"
    return f"{task.name}: {what}" + (f", weight {task.weight:g}" if task.weight != 1 else "")


def _ends(stage: Stage) -> str:
    """How the stage ends, if not with its last round."""
    if stage.early_stopping is not None:
        return (
            f"; ends early, with the best model so far, once the sites' mean {stage.early_stopping.metric} on "
            f"validation has not risen for {stage.early_stopping.patience} rounds"
        )
    if stage.weight_averaging is None:
        return ""
    how = {
        "swa": f"mean of the last {stage.weight_averaging.over:.0%} of the rounds",
        "ema": "running mean over the rounds",
    }
    return f"; ends with the {how[stage.weight_averaging.rule]}"


_WHO = {
    "all": "All sites",
    "labelled": "Sites with labels",
    "unlabelled": "Sites without labels",
    "source": "Sites that hold the source",
}


def sentence(stage: Stage, row: dict[str, Any]) -> str:
    """One stage in plain words."""
    who = _WHO[stage.where]
    if stage.joint_lambda is not None:
        who += f" (counting {stage.joint_lambda:g}) and the source (counting 1)"
    what = _does(stage, row)
    if isinstance(stage.local, Statistics):
        return f"{who} {what}; the coordinator solves {solved(stage, stage.local)}."
    beside = "".join(f"; {method.travels}" for method in methods_of(stage) if method.travels)
    if row["shared_parameters"] == 0:
        leaves = "no entry" if sends_sums(stage) else "nothing"
        return f"{who} {what}; {leaves} leaves the site{beside}{_USED[stage.personalise]}."
    kept = row["trained_parameters"] - row["shared_parameters"]
    rest = f"; {kept:,} stay at the site" if kept else ""
    travels = f"{row['shared_parameters']:,} numbers travel each round{_compressed(stage)}{rest}{beside}"
    return f"{who} {what}; {travels}; aggregated by {row['aggregate']}{mean_of_adapters(stage)}{_ends(stage)}."


def _compressed(stage: Stage) -> str:
    """In how many bytes changes come back, where not whole."""
    match stage.compress.kind:
        case "none":
            return ""
        case "topk":
            return f", back as the {stage.compress.share:.0%} of each large entry that changed most"
        case kind:
            return f", back as changes in {kind}"


def _does(stage: Stage, row: dict[str, Any]) -> str:
    """What the sites do."""
    match stage.local:
        case Gradient():
            private = " with differential privacy" if stage.local.private is not None else ""
            return (
                f"train {row['trains']} ({row['trained_parameters']:,} numbers){private} by {row['local']}, "
                f"{stage.rounds} round{'s' * (stage.rounds > 1)}"
            )
        case Statistics():
            return sums(stage.local, stage.rounds)
        case Recalibrate():
            return "set norm statistics from their own images, no labels needed"
        case Harmonise():
            return "find what they measure otherwise than the others, from their own cases, no labels needed"


def _trains(stage: Stage) -> str:
    if isinstance(stage.local, Gradient):
        return _name(stage.local.train)
    return {"recalibrate": "norm_stats", "harmonise": "site_effects"}.get(stage.local.kind, "none")


def _aggregate(stage: Stage) -> str:
    aggregate = stage.aggregate.model_dump()
    kind = aggregate.pop("kind")
    return kind if not aggregate else f"{kind} ({', '.join(f'{key} {value}' for key, value in aggregate.items())})"


def _name(select: Select) -> str:
    value = select.model_dump()
    return value if isinstance(value, str) else json.dumps(value)
