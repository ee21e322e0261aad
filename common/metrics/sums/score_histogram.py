"""Sparse, mergeable histograms of scores, for every metric that asks how well the scores rank the cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import InputError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_SIGN = 0x7FFF_FFFF
_OFFSET = 1 << 31
_ROW_SHIFT = 32
_KEY_MASK = (1 << _ROW_SHIFT) - 1
_LARGEST = 3e38
COARSE_SPREAD = 4.0
"""Log-odds per step of the logistic grid of `coarsen`: wide enough that 64 bins tell .999 from .9999."""
GRID = 8192
"""Steps of score in `grid`: 128 KB a row."""
_GRID_SCALE, _GRID_REACH = 0.5, 1e6
"""Log-odds where its steps begin to grow, and where they end."""


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of cases by score and truth, one histogram per row (a class against the rest).

    A score is a log-odds, never a probability, which saturates. Its bin is the 31 leading bits of the float32 nearest
    to it, so bins are narrow (2^-22 of the value) wherever scores cluster, and only bins that hold cases are kept.

    `keys`: row << 32 | bin << 1 | truth, strictly increasing; `counts`: cases per key, at least 1.
    """

    rows: int
    keys: Counts
    counts: Counts

    @classmethod
    def zero(cls, rows: int) -> ScoreHistogram:
        """Histograms of no cases, one for each of `rows`: what `+` begins with."""
        empty = np.zeros(0, np.int64)
        return cls(rows, empty, empty)

    @classmethod
    def of(cls, scores: Floats, truth: NDArray[np.bool_]) -> ScoreHistogram:
        """Histograms of finite scores (N, rows) with their truth (N, rows)."""
        rows = scores.shape[1]
        keys = _bins(scores) << 1 | truth
        keys += np.arange(rows, dtype=np.int64) << _ROW_SHIFT
        return _summed(rows, keys.ravel(), None)

    @classmethod
    def from_arrays(cls, bins: Counts, counts: Counts, sizes: Counts) -> ScoreHistogram:
        """From `arrays`; InputError if this is no histogram."""
        if len(bins) != len(counts) or sizes.sum() != len(bins):
            raise InputError("Metric sums: score keys, counts and rows differ in length.")
        if (bins > _KEY_MASK).any() or (counts < 1).any():
            raise InputError("Metric sums: a score key or count is out of range.")
        keys = bins + (np.repeat(np.arange(len(sizes), dtype=np.int64), sizes) << _ROW_SHIFT)
        if (np.diff(keys) <= 0).any():
            raise InputError("Metric sums: score keys are not in order.")
        return cls(len(sizes), keys, counts)

    @classmethod
    def stacked(cls, parts: Sequence[ScoreHistogram]) -> ScoreHistogram:
        """One histogram of as many rows as there are `parts`, of one row each."""
        keys = [part.keys + (row << _ROW_SHIFT) for row, part in enumerate(parts)]
        return cls(len(parts), np.concatenate(keys), np.concatenate([part.counts for part in parts]))

    def arrays(self) -> tuple[Counts, Counts, Counts]:
        """Keys without their rows, counts, and the number of keys of each row."""
        sizes = np.bincount(self.keys >> _ROW_SHIFT, minlength=self.rows).astype(np.int64)
        return self.keys & _KEY_MASK, self.counts, sizes

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if self.rows != other.rows:
            raise InputError(f"Metric sums of {self.rows} and {other.rows} score rows cannot be added.")
        if not len(other.keys):
            return self
        keys = np.concatenate([self.keys, other.keys])
        return _summed(self.rows, keys, np.concatenate([self.counts, other.counts]))

    def totals(self) -> Counts:
        """Cases by row and truth, (rows, 2): negatives, then positives."""
        cell = (self.keys >> _ROW_SHIFT) << 1 | (self.keys & 1)
        totals = np.bincount(cell, self.counts, minlength=2 * self.rows)
        return totals.astype(np.int64).reshape(self.rows, 2)

    def ranked(self, row: int) -> tuple[Floats, Floats]:
        """Positives and negatives of one row by score, highest score first; ties share an entry."""
        first, last = np.searchsorted(self.keys, [row << _ROW_SHIFT, (row + 1) << _ROW_SHIFT])
        keys, counts = self.keys[first:last], self.counts[first:last]
        bins, place = np.unique(keys >> 1, return_inverse=True)
        positive = np.bincount(place, counts * (keys & 1), minlength=len(bins))
        negative = np.bincount(place, counts * (1 - (keys & 1)), minlength=len(bins))
        return positive[::-1].astype(np.float64), negative[::-1].astype(np.float64)

    def scored(self, row: int) -> tuple[Floats, Floats, Floats]:
        """As `ranked`, after the scores themselves: log-odds, of which no case of the entry has less."""
        first, last = np.searchsorted(self.keys, [row << _ROW_SHIFT, (row + 1) << _ROW_SHIFT])
        bins = np.unique((self.keys[first:last] & _KEY_MASK) >> 1)
        return (_scores(bins)[::-1], *self.ranked(row))

    def coarsen(self, bins: int, spread: float = COARSE_SPREAD) -> ScoreHistogram:
        """The same cases on a grid of `bins` scores, the same for all sites, so that what is coarse still adds up.

        Bins are equal steps of sigmoid(log-odds / `spread`).
        """
        if bins < 1:
            raise InputError(f"{bins} score bins are too few.", fix="Keep at least one.")
        share = 0.5 + 0.5 * np.tanh(0.5 * _scores((self.keys & _KEY_MASK) >> 1) / spread)
        place = np.minimum(np.floor(share * bins), bins - 1)
        centre = (place + 0.5) / bins
        keys = _bins(spread * np.log(centre / (1 - centre))) << 1 | (self.keys & 1)
        return _summed(self.rows, keys + (self.keys & ~_KEY_MASK), self.counts)

    def grid(self) -> Counts:
        """Cases by row, score and truth, (rows, GRID, 2): the same shape whatever the cases.

        Steps of score are 0.002 wide about 0 and grow with the score, to 0.4 % of it.
        """
        reach = math.asinh(_GRID_REACH / _GRID_SCALE)
        share = np.arcsinh(_scores((self.keys & _KEY_MASK) >> 1) / _GRID_SCALE) / reach
        place = np.clip(np.floor((0.5 + 0.5 * share) * GRID), 0, GRID - 1).astype(np.int64)
        cell = ((self.keys >> _ROW_SHIFT) * GRID + place) << 1 | (self.keys & 1)
        counts = np.bincount(cell, self.counts, minlength=2 * GRID * self.rows)
        return counts.astype(np.int64).reshape(self.rows, GRID, 2)

    @classmethod
    def from_grid(cls, grid: Counts) -> ScoreHistogram:
        """From `grid`, or from the sum of several; each case takes the middle of its step as its score."""
        row, place, truth = np.nonzero(grid)
        reach = math.asinh(_GRID_REACH / _GRID_SCALE)
        middle = _GRID_SCALE * np.sinh((2 * (place + 0.5) / GRID - 1) * reach)
        keys = _bins(middle) << 1 | truth
        return _summed(len(grid), keys + (row << _ROW_SHIFT), grid[row, place, truth])


def against_rest(score: Floats, odds: Floats, total: Floats, guess: Counts) -> Floats:
    """Log-odds of each class against all others, from logits whose highest is 0."""
    rows = np.arange(len(score))
    # For the likeliest class `total - odds` would cancel to nothing: its rest is summed on its own scale.
    rest = score.copy()
    rest[rows, guess] = -np.inf
    second = rest.max(axis=1)
    odds[rows, guess] = 0
    others = total[:, None] - odds
    log_odds = score - np.log(others)
    log_odds[rows, guess] = -(second + np.log(np.exp(rest - second[:, None]).sum(axis=1)))
    return log_odds


def log_odds(logits: Floats) -> Floats:
    """Of finite logits (N, C) each class against the rest, (N, C); of two classes class 1 alone, (N, 1)."""
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    score = logits - logits.max(axis=1, keepdims=True)
    odds = np.exp(score)
    return against_rest(score, odds, odds.sum(axis=1), score.argmax(axis=1))


def ranks(logits: Floats) -> Counts:
    """The bins of `log_odds`, in order of the scores: cases in one bin are ties, whoever works out how they rank."""
    return _bins(log_odds(logits.astype(np.float64)))


def bins_of(scores: Floats) -> Counts:
    """The bins of scores as they are, such as labels' logits (N,); cases in one bin are ties, as in a histogram."""
    return _bins(scores)


def auroc(positive: Floats, negative: Floats) -> float | None:
    """Chance that a positive case scores above a negative one, ties counting half; None without both."""
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return None
    above = np.cumsum(positive) - 0.5 * positive
    return float(negative @ above / pairs)


def weighted_auroc(bins: NDArray[np.int64], mine: NDArray[np.bool_], weights: Floats) -> Floats:
    """The AUROC of cases (N,) in the bins of `ranks`, `mine` being positive, for each row of weights (rows, N).

    NaN where a row has no case of either kind.
    """
    positive, negative = _ranked(bins, mine, weights)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    part = (positive * (below + negative / 2)).sum(axis=1)
    return np.asarray(np.divide(part, pairs, out=np.full(len(part), np.nan), where=pairs > 0))


def weighted_average_precision(bins: NDArray[np.int64], mine: NDArray[np.bool_], weights: Floats) -> Floats:
    """The average precision of the same, for each row of weights (rows, N). NaN where a row lacks either kind."""
    positive, negative = (side[:, ::-1] for side in _ranked(bins, mine, weights))
    hits = np.cumsum(positive, axis=1)
    seen = hits + np.cumsum(negative, axis=1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    whole = np.where(negative.sum(axis=1) > 0, positive.sum(axis=1), 0.0)
    part = (positive * precision).sum(axis=1)
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))


def _ranked(bins: NDArray[np.int64], mine: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Positives and negatives by row of weights and bin, lowest score first."""
    order = np.argsort(bins, kind="stable")
    firsts = np.flatnonzero(np.diff(bins[order], prepend=-1) != 0)
    positive = np.add.reduceat(weights[:, order] * mine[order], firsts, axis=1)
    negative = np.add.reduceat(weights[:, order] * ~mine[order], firsts, axis=1)
    return positive, negative


def average_precision(positive: Floats, negative: Floats) -> float | None:
    """Precision averaged over the steps of recall; None unless there are both positive and negative cases."""
    if positive.sum() == 0 or negative.sum() == 0:
        return None
    hits = np.cumsum(positive)
    return float(positive @ (hits / (hits + np.cumsum(negative))) / positive.sum())


def ranking(pairs: Sequence[tuple[Floats, Floats]], *, exact: bool) -> list[tuple[Floats, Floats]]:
    """Those that rank their cases: coarse counts in a single bin do not, and would look like a model that is at chance.

    Exact scores that are all one are what the model says.
    """
    return [pair for pair in pairs if exact or len(pair[0]) != 1]


def roc_points(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """False and true positive rates from (0, 0) to (1, 1); empty unless there are both kinds of cases."""
    if positive.sum() == 0 or negative.sum() == 0:
        return np.zeros(0), np.zeros(0)
    false = np.concatenate([[0.0], np.cumsum(negative) / negative.sum()])
    return false, np.concatenate([[0.0], np.cumsum(positive) / positive.sum()])


def _bins(scores: Floats) -> Counts:
    # The bit patterns of floats are in order for one sign; those of negative numbers run backwards.
    # Adding 0.0 turns -0.0, which has a pattern of its own, into 0.0.
    near = np.clip(scores, -_LARGEST, _LARGEST).astype(np.float32) + np.float32(0)
    bits = near.view(np.int32).astype(np.int64)
    return ((bits ^ ((bits >> 31) & _SIGN)) + _OFFSET) >> 1


def _scores(bins: Counts) -> Floats:
    order = (bins << 1) - _OFFSET
    bits = order ^ ((order >> 31) & _SIGN)
    return np.nan_to_num(bits.astype(np.int32).view(np.float32).astype(np.float64))


def _summed(rows: int, keys: Counts, counts: Counts | None) -> ScoreHistogram:
    if counts is None:
        found, times = np.unique(keys, return_counts=True)
        return ScoreHistogram(rows, found, times.astype(np.int64))
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else order
    return ScoreHistogram(rows, keys[first], np.add.reduceat(counts, first) if len(keys) else counts)
