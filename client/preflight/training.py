"""Preflight: does the study's work run here? A step of every stage on the site's own cohort; nothing of it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.preflight.memory import PeakMemory
from fedgraft.client.preflight.report import Findings, counted
from fedgraft.client.training.batch_pairs import learnt_from
from fedgraft.client.training.columns.harmonise import harmonisation_sums, harmonise
from fedgraft.client.training.losses.base import RoundContext, VisitContext
from fedgraft.client.training.microbatching import Microbatching
from fedgraft.client.training.model.bound import bound
from fedgraft.client.training.model.errors import Diverged, TooFewCases
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import column_sums, frozen_sums
from fedgraft.client.training.survival import survival_sums
from fedgraft.common.methods.memory.carried import down_shapes
from fedgraft.common.protocol.routing import changed
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Gradient, Harmonise, Recalibrate, Stage
from fedgraft.common.study.stages.losses import Requirement, requirements
from fedgraft.common.study.study import Study

_GB = 1e9
_QUICK_S = 3.0
"""A first step below this is followed by others: the first one also pays for what is set up once."""
_MORE_STEPS = 3
_SOME_CASES = 256
_ROUND = RoundContext(seed=0, round=1, rounds=1)


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step (or batch), and how many of them make a round at this site."""

    seconds: float
    steps: int
    cases: int

    @property
    def round_s(self) -> float:
        """About how many seconds a round takes: those of a step, times the steps."""
        return self.seconds * self.steps


def check_training(study: Study, cohort: Cohort, device: torch.device) -> Findings:
    """Try the work of every stage once, and measure time and memory."""
    found = Findings()
    memory = PeakMemory(device)
    try:
        local_model, loader = LocalModel(study, device), Loader(cohort, study.input, device)
        for stage in study.plan:
            if not _can_be_tried(stage, local_model):
                found.skipped(f"stage_{stage.name}", "needs more than the site's own cases: a source, or its moments")
            elif _takes_part(stage, loader):
                _try(found, study, stage, local_model, loader, cohort)
            else:
                found.skipped(f"stage_{stage.name}", f"is for {stage.where} sites")
    except (MemoryError, torch.OutOfMemoryError):
        _out_of_memory(found, "model", device)
    used, kind = memory.peak(), "GPU memory" if device.type == "cuda" else "memory of the whole process"
    kind += " since it began" if memory.whole_life else ""
    found.fine("peak_memory", f"{used / _GB:.2f} GB {kind}", bytes=used, device=device.type)
    return found


def _can_be_tried(stage: Stage, local_model: LocalModel) -> bool:
    """Whether the work needs nothing but the model and the site's own cases."""
    required = requirements(stage.local.losses) if isinstance(stage.local, Gradient) else frozenset()
    return not required - {Requirement.LABELS} and not down_shapes(local_model.ground(stage))


def _takes_part(stage: Stage, loader: Loader) -> bool:
    labelled = len(loader.labelled("train")) > 0
    return stage.where == "all" or (stage.where != "source" and labelled == (stage.where == "labelled"))


def _try(found: Findings, study: Study, stage: Stage, local_model: LocalModel, loader: Loader, cohort: Cohort) -> None:
    name, deadline = f"stage_{stage.name}", study.rounds.deadline_s
    try:
        measured = _measure(study, stage, local_model, loader, cohort)
    except (MemoryError, torch.OutOfMemoryError):
        _out_of_memory(found, name, local_model.device)
        return
    except TooFewCases:
        found.fails(name, "too few training cases for a single step", "Add cases, or labels to those that have none.")
        return
    except Diverged:
        found.fails(
            name,
            "the first steps end in numbers that are not finite",
            "Look for values far out of range in the data; if there are none, tell the coordinator.",
        )
        return
    description = (
        f"{measured.seconds:.2f} s for {counted(measured.cases, 'case')}; "
        f"a round is {counted(measured.steps, 'step')}, about {measured.round_s:.0f} s"
    )
    if local_model.parts > 1:
        description += f"; the GPU is small, so that batches are worked on in {local_model.parts} parts"
    figures = {"step_s": round(measured.seconds, 3), "steps": measured.steps, "round_s": round(measured.round_s, 1)}
    if deadline is not None and measured.round_s > deadline:
        fix = "Use a GPU or more threads, or ask the coordinator for a longer deadline_s."
        found.fails(name, f"{description}, but the study waits {deadline:g} s", fix, **figures)
    else:
        found.fine(name, description, **figures)


def _out_of_memory(found: Findings, name: str, device: torch.device) -> None:
    where = "the GPU" if device.type == "cuda" else "this machine"
    fix = "Stop other programs on it, or ask the coordinator for a smaller batch_size or image size."
    found.fails(name, f"{where} has not enough memory for it", fix)


def _measure(study: Study, stage: Stage, local_model: LocalModel, loader: Loader, cohort: Cohort) -> StepCost:
    if isinstance(stage.local, Gradient):
        return _measure_gradient(stage, stage.local, local_model, loader, cohort.patients)
    some = cohort.splits["train"][:_SOME_CASES]
    few = Loader(replace(cohort, splits=dict(cohort.splits) | {"train": some}), study.input, local_model.device)
    if isinstance(stage.local, Recalibrate):
        spec = stage.local
        seconds = _timed(lambda: Microbatching(local_model).recalibrate(few, spec), local_model)
    elif isinstance(stage.local, Harmonise):
        seconds = _timed(lambda: harmonise(local_model, few), local_model)
    elif stage.local.of == "columns":
        seconds = _timed(lambda: column_sums(study, few), local_model)
    elif stage.local.of == "harmonisation":
        seconds = _timed(lambda: harmonisation_sums(local_model, few, cohort.patients), local_model)
    elif (asked := stage.local.survival) is not None:
        seconds = _timed(lambda: survival_sums(asked, study, few, cohort.patients), local_model)
    else:
        # Distances take the same pass over the cases as features do.
        of = "features" if stage.local.of == "distances" else stage.local.of
        sums = stage.local.model_copy(update={"split": "train", "of": of})
        seconds = _timed(lambda: frozen_sums(local_model, few, sums), local_model)
    return StepCost(seconds, -(-len(cohort.splits["train"]) // max(1, len(some))), len(some))


def _measure_gradient(
    stage: Stage, spec: Gradient, local_model: LocalModel, loader: Loader, patients: Sequence[str]
) -> StepCost:
    moves = changed(stage, local_model.tags)
    cases = len(learnt_from(loader, spec))
    received = local_model.read(local_model.tags)
    methods = bound(local_model.ground(stage), 1, received, (States(), States()))
    round_context = replace(_ROUND, visit_context=VisitContext(received, methods=methods))

    def steps(count: int) -> Callable[[], object]:
        some = spec.model_copy(update={"epochs": None, "steps": count})
        if spec.private is None:
            return lambda: Microbatching(local_model).train(loader, some, moves, round_context, lambda: None)
        from fedgraft.client.privacy.dp.dpsgd import train_private  # slow to import, and only private work needs it

        # Nothing is released, so nothing is charged, and any noise will do.
        noised = spec.private.model_copy(
            update={
                "noise_multiplier": spec.private.noise_multiplier or 1.0,
                "epsilon": None,
                "expected_units": spec.private.expected_units or max(1, len(set(patients))),
            }
        )
        some = some.model_copy(update={"private": noised})
        return lambda: train_private(local_model, loader, patients, some, moves, round_context)

    seconds = _timed(steps(1), local_model)
    if seconds < _QUICK_S:
        seconds = _timed(steps(_MORE_STEPS), local_model) / _MORE_STEPS
    whole = spec.steps or (spec.epochs or 1) * -(-cases // spec.batch_size)
    if spec.private is not None:
        return StepCost(seconds, whole, max(1, round(spec.private.sample_rate * cases)))
    return StepCost(seconds, whole, min(spec.batch_size, cases))


def _timed(work: Callable[[], object], local_model: LocalModel) -> float:
    started = time.perf_counter()
    work()
    if local_model.device.type == "cuda":
        torch.cuda.synchronize(local_model.device)
    return time.perf_counter() - started
