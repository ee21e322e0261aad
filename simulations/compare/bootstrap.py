"""What the differences between arms are worth: bootstrap over patients and replicates, Holm, equivalence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from fedgraft.common.base.seeds import derive
from fedgraft.common.metrics.plugged import plugged_metric
from fedgraft.common.metrics.sums.score_histogram import ranks, weighted_auroc
from fedgraft.simulations.compare.running.models import Answers

Floats = NDArray[np.float64]
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


def metric(name: str, answers: Answers, weights: Floats) -> Floats:
    """The metric for each row of case weights, (rows,); NaN where it is undefined. As in `common.metrics`."""
    if not len(answers.targets):
        return np.full(len(weights), np.nan)
    if name == "auroc":
        found, classes = ranks(answers.logits).T, answers.logits.shape[1]
        asked = range(1, 2) if classes == 2 else range(classes)
        each = [weighted_auroc(bins, answers.targets == row, weights) for bins, row in zip(found, asked, strict=True)]
        return _mean_known(np.stack(each))
    hit = (answers.logits.argmax(axis=1) == answers.targets).astype(np.float64)
    if name == "accuracy":
        return _ratio(weights @ hit, weights.sum(axis=1))
    if name == "balanced_accuracy":
        true = [answers.targets == label for label in range(answers.logits.shape[1])]
        return _mean_known(np.stack([_ratio(weights @ (hit * own), weights @ own.astype(float)) for own in true]))
    if name == "brier":
        return _ratio(weights @ _brier(answers), weights.sum(axis=1))
    return _plugged(name, answers, weights)


def _plugged(name: str, answers: Answers, weights: Floats) -> Floats:
    one = plugged_metric(name)
    sums = weights @ one.cases(answers.logits, answers.targets)
    values = [one.value(own) if weight > 0 else None for own, weight in zip(sums, weights.sum(axis=1), strict=True)]
    return np.array([np.nan if value is None else value for value in values])


def over_replicates(values: Mapping[Replicate, Floats], seed: int = 0) -> Interval:
    """The mean over replicates, from each one's (draws + 1,) values: the estimate first, then its draws.

    Of R replicates R - 1 are drawn with replacement, with which a bootstrap mean has the variance of the mean's usual
    estimate (Rao and Wu 1988), and not one smaller by (R - 1) / R.
    """
    table = np.stack([values[replicate] for replicate in sorted(values)])
    count, draws = len(table), table.shape[1] - 1
    rng = np.random.default_rng(derive(seed, "replicates"))
    chosen = rng.integers(count, size=(draws, max(1, count - 1)))
    drawn = np.nanmean(table[chosen, np.arange(1, draws + 1)[:, None]], axis=1)
    drawn = drawn[np.isfinite(drawn)]
    estimate = float(np.nanmean(table[:, 0]))
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


def verdict(difference: Interval, adjusted: float, margin: float, *, seeds: int, lower_is_better: bool = False) -> str:
    """In words: better, worse, as good within the margin (both one-sided tests at 5 %), or not decided.

    Not to be significant is never taken for equal. Of one seed nothing is said: what another order of batches would
    change is in no interval that is made of patients alone.
    """
    if seeds < 2:
        return ONE_SEED
    equal = -margin < difference.low90 and difference.high90 < margin
    if adjusted < 0.05:
        word = "better" if (difference.value > 0) != lower_is_better else "worse"
        return f"{word}, within {margin:g}" if equal else word
    return f"as good within {margin:g}" if equal else "not decided"


def across(sites: Sequence[Floats], how: str) -> Floats:
    """`macro` mean over the sites where the metric is defined, or the `worst`, lowest, of them, draw by draw."""
    table: Floats = np.stack(sites)
    if how == "macro":
        return _mean_known(table)
    lowest = np.asarray(np.where(np.isnan(table), np.inf, table).min(axis=0))
    lowest[np.isinf(lowest)] = np.nan
    return lowest


def _brier(answers: Answers) -> Floats:
    logits = answers.logits.astype(np.float64)
    shares = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    error = ((shares - np.eye(logits.shape[1])[answers.targets]) ** 2).sum(axis=1)
    return np.asarray(error / (2 if logits.shape[1] == 2 else 1))


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _mean_known(table: Floats) -> Floats:
    known = ~np.isnan(table)
    return _ratio(np.where(known, table, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))
