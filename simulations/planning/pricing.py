"""What a study would cost a site of so many patients, before anyone runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedgraft.common.base.errors import InputError
from fedgraft.common.privacy.accountant import (
    Event,
    default_delta,
    epsilon,
    noise_for,
)
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study

METRICS = "metrics"
"""Stands for a stage's name where the price is that of metrics."""


@dataclass(frozen=True)
class PriceLine:
    """One private stage: its noise multiplier, the share of patients in a step, its steps, and its epsilon alone."""

    stage: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    epsilon: float


@dataclass(frozen=True)
class Price:
    """What a study costs a site: its private stages, and all of them together at the site's delta."""

    patients: int
    delta: float
    lines: tuple[PriceLine, ...]
    epsilon: float


def private_stages(study: Study) -> Iterator[tuple[Stage, Private | PrivateSums, int]]:
    """The stages that train or sum with noise, what they ask for, and their steps over all rounds."""
    for stage in study.plan:
        if (asked := privacy_request(stage)) is not None:
            steps = (stage.local.steps or 0) if isinstance(stage.local, Gradient) else 1
            yield stage, asked, steps * stage.rounds


def price(
    study: Study, patients: int, *, longer: float = 1, larger: float = 1, metrics_epsilon: float | None = None
) -> Price:
    """The price for a site with `patients` in training and delta min(1e-3, N^-1.1).

    `longer` multiplies the steps and `larger` the share of patients in each, while the noise stays: what if?
    `metrics_epsilon` is that of a policy with `metrics: noised`, which counts test cases once, at the end.
    """
    if patients < 1:
        raise InputError(f"A site of {patients} patients cannot be priced.", fix="Give the number of one, from 1.")
    delta = default_delta(patients)
    lines = []
    for stage, private, steps in private_stages(study):
        noise_multiplier = private.noise_multiplier
        if noise_multiplier is None:
            assert private.epsilon is not None
            noise_multiplier = noise_for(private.epsilon, delta, private.sample_rate, steps)
        repeats = longer if isinstance(private, Private) else 1  # sums leave once, however long training is
        event = Event(noise_multiplier, min(1.0, private.sample_rate * larger), max(1, round(steps * repeats)))
        lines.append(PriceLine(stage.name, noise_multiplier, event.sample_rate, event.steps, epsilon([event], delta)))
    if metrics_epsilon is not None and not study.secure_aggregation:
        event = Event(noise_for(metrics_epsilon, delta, 1.0, 1), 1.0, 1)
        lines.append(
            PriceLine(METRICS, event.noise_multiplier, event.sample_rate, event.steps, epsilon([event], delta))
        )
    return Price(patients, delta, tuple(lines), epsilon(_events(lines), delta))


def _events(lines: Sequence[PriceLine]) -> list[Event]:
    return [Event(line.noise_multiplier, line.sample_rate, line.steps) for line in lines]
