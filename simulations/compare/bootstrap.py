"""What the differences between arms are worth: bootstrap over patients and replicates, Holm, equivalence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedgraft.common.base.seeds import derive
from fedgraft.simulations.compare.measures.answers import Answers
from fedgraft.simulations.compare.measures.measure import Measure
from fedgraft.simulations.compare.measures.shares import Floats, mean_known

Replicate = tuple[int, int]
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % and 90 % percentile intervals, and the two-sided p of being 0."""

    value: float
    low: float
    high: float
    low90: float
    high90: float
    p: float


def draw_patients(answers: Answers, replicate: Replicate, site: str, draws: int = DRAWS) -> Floats:
    """How often each case counts, (draws + 1, N): patients drawn with replacement; all once in the first row.

    The same replicate, site and patients give the same draws, so that arms are compared on the same patients.
    """
    count = int(answers.patients.max(initial=-1)) + 1
    rng = np.random.default_rng(derive(replicate[0], "bootstrap", replicate[1], site))
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws) if count else np.zeros((draws, 0))
    counts: Floats = np.concatenate([np.ones((1, count)), drawn])
    return counts[:, answers.patients]


def over_replicates(values: Mapping[Replicate, Floats], seed: int = 0) -> Interval:
    """The mean over replicates, from each one's (draws + 1,) values: the estimate first, then its draws.

    Of R replicates R - 1 are drawn with replacement, with which a bootstrap mean has the variance of the mean's usual
    estimate (Rao and Wu 1988), and not one smaller by (R - 1) / R.
    """
    table = np.stack([values[replicate] for replicate in sorted(values)])
    count, draws = len(table), table.shape[1] - 1
    rng = np.random.default_rng(derive(seed, "replicates"))
    chosen = rng.integers(count, size=(draws, max(1, count - 1)))
    drawn = mean_known(table[chosen, np.arange(1, draws + 1)[:, None]].T)
    drawn = drawn[np.isfinite(drawn)]
    estimate = float(mean_known(table[:, 0]))
    if not len(drawn):
        return Interval(estimate, *[float("nan")] * 5)
    low, low90, high90, high = np.percentile(drawn, (2.5, 5, 95, 97.5)).tolist()
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(estimate, low, high, low90, high90, float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p by name: the chance of any false alarm in the whole family stays below the level (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda one: p[one])):
        largest = max(largest, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = largest
    return adjusted


ONE_SEED = "one seed decides nothing"


def verdict(difference: Interval, adjusted: float, measure: Measure, *, seeds: int) -> str:
    """In words: better, worse, as good within the margin (both one-sided tests at 5 %), or not decided.

    Not to be significant is never taken for equal. Of one seed nothing is said: what another order of batches would
    change is in no interval that is made of patients alone.
    """
    if seeds < 2:
        return ONE_SEED
    margin = measure.margin
    equal = -margin < difference.low90 and difference.high90 < margin
    if adjusted < 0.05:
        word = "better" if (difference.value > 0) != measure.lower_is_better else "worse"
        return f"{word}, within {margin:g}" if equal else word
    return f"as good within {margin:g}" if equal else "not decided"


def macro(sites: Sequence[Floats]) -> Floats:
    """The mean over the sites where the metric is defined, each alike, draw by draw."""
    return mean_known(np.stack(sites))


def worst(sites: Sequence[Floats], measure: Measure) -> Floats:
    """The lowest of the sites, or of a metric that should be low the highest, draw by draw; NaN where none has one."""
    table = measure.sign * np.stack(sites)
    lowest = np.where(np.isnan(table), np.inf, table).min(axis=0)
    return np.asarray(measure.sign * np.where(np.isinf(lowest), np.nan, lowest))
