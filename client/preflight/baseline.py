"""What a site reaches with its own data alone, by the study's own plan: the answer to "do we gain by taking part?"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.preflight.report import Findings
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.client.training.statistics import column_sums, frozen_sums
from fedgraft.common.base.errors import FedgraftError, WeightsError
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.closed_form import heads_from_sums, scale_from_sums
from fedgraft.common.closed_form.logistic import logistic_heads
from fedgraft.common.closed_form.newton import stepped_heads
from fedgraft.common.closed_form.temperature import tempered
from fedgraft.common.metrics.sums.task_metrics import TaskSums
from fedgraft.common.metrics.table import headlines
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.routing import changed
from fedgraft.common.study.plan import Gradient, Recalibrate, Stage, Statistics
from fedgraft.common.study.stages.aggregates import (
    ClosedForm,
    Logistic,
    Newton,
    Ridge,
    Standardise,
    Temper,
)
from fedgraft.common.study.stages.losses import SUPERVISED, Requirement
from fedgraft.common.study.study import Study

Say = Callable[[str], None]
_STEP_ALONE = 0.1
"""Of a step of Newton's method whose ridge penalty would be chosen on other sites."""


@dataclass(frozen=True)
class Baseline:
    """Metric sums by split and task, and whether training began from the study's pretrained weights."""

    sums: dict[str, dict[str, TaskSums]]
    pretrained: bool


def check_baseline(study: Study, cohort: Cohort, device: torch.device, say: Say) -> Findings:
    """Train alone and say how good that is. Nothing is kept, nothing leaves."""
    found = Findings()
    try:
        baseline = train_alone(study, cohort, device, say)
    except TooFewCases:
        found.fails("baseline", "too few training cases", "Add cases, or labels to those that have none.")
        return found
    except (Diverged, FedgraftError) as error:
        found.private.append(f"baseline: {error!r}")
        found.fails("baseline", "training alone did not succeed", "See check-details.txt of the site's folder.")
        return found
    except (MemoryError, torch.OutOfMemoryError):
        found.fails("baseline", "not enough memory", "Stop other programs, or ask for a smaller batch_size.")
        return found
    if not baseline.sums:
        found.fails("baseline", "no labelled case to measure it on", "Name `labels` in site.yaml, or add patients.")
        return found
    for task, asked in study.tasks_by_name.items():
        keys = headlines(asked)
        values = {split: sums[task].values() for split, sums in baseline.sums.items()}
        figures = {split: {key: _rounded(row[key]) for key in ("n", *keys)} for split, row in values.items()}
        description = "; ".join(f"{split}: {_said(row, keys)}" for split, row in values.items())
        found.fine(f"baseline_{task}", description, **figures)
    if study.model.weights is not None and not baseline.pretrained:
        found.note(
            "baseline_start",
            "the study's pretrained weights are not here, so training alone began from random entries",
            f"Ask the coordinator for the weights {study.model.weights} (fedgraft weights import) to compare fairly.",
        )
    return found


def train_alone(study: Study, cohort: Cohort, device: torch.device, say: Say) -> Baseline:
    """The study's plan with this site as the only one, and how good the model is that it ends with."""
    local_model, loader, pretrained = fit_alone(study, cohort, device, say)
    splits = [split for split in ("val", "test") if len(loader.labelled(split))]
    return Baseline({split: evaluate(local_model, loader, split) for split in splits}, pretrained)


def fit_alone(study: Study, cohort: Cohort, device: torch.device, say: Say) -> tuple[LocalModel, Loader, bool]:
    """Carry out the study's plan on this cohort alone, without noise since nothing leaves.

    The model as it ends, the cohort's cases, and whether it began from the study's weights. Raises TooFewCases,
    Diverged, or what the study's weights raise.
    """
    local_model, loader = LocalModel(study, device), Loader(cohort, study.input, device)
    pretrained = study.model.weights is not None
    try:
        local_model.load(initialise(study).state())
    except WeightsError:
        pretrained = False
    labelled = len(loader.labelled("train")) > 0
    for stage in study.plan:
        if stage.where == "all" or (stage.where != "source" and labelled == (stage.where == "labelled")):
            _stage(study, cohort.name, stage, (local_model, loader), say)
    return local_model, loader, pretrained


def _stage(study: Study, site: str, stage: Stage, desk: tuple[LocalModel, Loader], say: Say) -> None:
    local_model, loader = desk
    if isinstance(stage.local, Gradient):
        # Nothing comes from elsewhere: losses that need the other sites, or a source, are left out.
        own = tuple(loss for loss in stage.local.losses if not loss.requires - {Requirement.LABELS})
        alone = stage.local.model_copy(update={"losses": own or SUPERVISED})
        for number in range(1, stage.rounds + 1):
            say(f"{stage.name}: round {number} of {stage.rounds}")
            seed = derive(study.seed, site, stage.name, number)
            train(
                local_model, loader, alone, changed(stage, local_model.tags), RoundContext(seed, number, stage.rounds)
            )
    elif isinstance(stage.local, Recalibrate):
        say(stage.name)
        recalibrate(local_model, loader, stage.local)
    elif isinstance(stage.local, Statistics):  # a site alone has none to be harmonised with
        say(stage.name)
        state = state_arrays(local_model.model)
        if isinstance(stage.aggregate, ClosedForm):
            aggregate = stage.aggregate
            if isinstance(aggregate, Ridge) and aggregate.ridge_penalty == "loso":  # no other site to choose it on
                aggregate = aggregate.model_copy(update={"ridge_penalty": "auto"})
            local_model.load(heads_from_sums(frozen_sums(local_model, loader, stage.local), aggregate, state))
        elif isinstance(stage.aggregate, Newton):
            chosen = stage.aggregate.ridge_penalty == "loso"
            step = Newton(ridge_penalty=_STEP_ALONE) if chosen else stage.aggregate
            for _ in range(stage.rounds):
                local_model.load(
                    stepped_heads(frozen_sums(local_model, loader, stage.local), step, state_arrays(local_model.model))
                )
        elif isinstance(stage.aggregate, Logistic):
            for _ in range(stage.rounds):
                sums = frozen_sums(local_model, loader, stage.local)
                local_model.load(logistic_heads(sums, stage.aggregate, state_arrays(local_model.model)))
        elif isinstance(stage.aggregate, Temper):
            local_model.load(tempered(frozen_sums(local_model, loader, stage.local), state))
        elif isinstance(stage.aggregate, Standardise):
            local_model.load(scale_from_sums(column_sums(study, loader), state))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _said(row: dict[str, float | None], keys: Sequence[str]) -> str:
    said = ", ".join(f"{key.replace('_', ' ')} {row[key]:.3f}" for key in keys if row[key] is not None)
    return f"{said} ({int(row['n'] or 0)} cases)"
