"""Methods that put finished models together: their average, a stack of them, and one student of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedgraft.common.study.methods.recipes import NamedMethod, rounds_of, with_losses
from fedgraft.common.study.plan import Stage, Statistics, named
from fedgraft.common.study.stages.aggregates import Newton, Temper
from fedgraft.common.study.stages.losses import Distill

_STEPS = 5


def average(method: NamedMethod) -> tuple[Stage, ...]:  # noqa: ARG001 - one form for all methods
    """Each base model's temperature; an ensemble answers with the mean of its base models' probabilities anyway."""
    return (_temper_base_models(),)


def stack(method: NamedMethod) -> tuple[Stage, ...]:
    """From the base models' average, steps towards a logistic head over their answers, and one temperature at the end.

    Each step is a ridge of what is still wrong, with a ridge penalty chosen on sites left out: where nothing can be
    gained, the average stays. All on validation cases: on those that a base model has learnt by heart, it would seem
    the best.
    """
    steps = Stage(
        name="stack",
        where="labelled",
        local=Statistics(of="residuals", split="val", private=method.sums),
        share=named("heads"),
        aggregate=Newton(),
        rounds=_STEPS,
    )
    return _temper_base_models(), steps, temper()


def distill(method: NamedMethod) -> tuple[Stage, ...]:
    """A student learns labels, where there are any, and a teacher's answers to all images."""
    if method.teacher is None:
        raise ValueError("distill needs a `teacher`: a finished run's folder, weights with heads, or an ensemble")
    taught = rounds_of(with_losses(method, Distill(teacher=method.teacher)), "all")
    return (taught.model_copy(update={"where": "all"}),)


def temper() -> Stage:
    """One temperature for each task's answers."""
    local = Statistics(of="answers", split="val")
    return Stage(name="temper", where="labelled", local=local, share=named("heads"), aggregate=Temper())


def _temper_base_models() -> Stage:
    local = Statistics(of="base_models", split="val")
    return Stage(name="temper_base_models", where="labelled", local=local, aggregate=Temper())


ENSEMBLES: Mapping[str, tuple[str, Callable[[NamedMethod], tuple[Stage, ...]]]] = {
    "average_ensemble": (
        "the mean of an ensemble's probabilities, each base model with its own temperature (Guo et al. 2017)",
        average,
    ),
    "stacked_ensemble": (
        "a logistic head over an ensemble's answers in a few exchanges, and one temperature after it (Wolpert 1992)",
        stack,
    ),
    "distill": ("a student learns labels and the answers of finished models (Hinton et al. 2015)", distill),
}
"""Presets that need finished models: base models of an ensemble, or a teacher."""
