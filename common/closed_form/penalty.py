"""How much a ridge shrinks, decided from the total of the sums: it must grow with the number of features.

Generalised cross-validation (Golub, Heath and Wahba 1979) is leave-one-out with every case's leverage replaced by the
mean one. With n cases, residual sum of squares RSS and df the trace of the hat matrix, intercept included,

    GCV = n RSS / (n - df)^2,

and all three follow from sum z z' and sum z y' once sum y^2 is known, as it is of labels. It asks for no site left
out, so that it also works on masked sums, and at a site alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedgraft.common.study.plan import Stage, Statistics

RIDGE_PENALTIES: tuple[float, ...] = tuple(float(value) for value in np.logspace(-4, 2, 13))
"""What is tried: half powers of ten, per case."""
_LEAST_OF_SINGLE = 0.1
_TINY = 1e-12
_LEAST_FREE = 0.1
"""The least share of the cases that a fit leaves free. Beyond, it nearly interpolates: what is left and what is free
both vanish, and the last digits of the sums, of which there are few in single precision, would choose."""


def penalties_for(stage: Stage) -> tuple[float, ...]:
    """What is tried on the sums of this stage.

    Rounded to seven digits, the second moments of features that hardly differ have negative directions, which less than
    .1 a case does not lift: honest sums would be refused as garbage.
    """
    single = isinstance(stage.local, Statistics) and stage.local.precision == "single"
    return tuple(value for value in RIDGE_PENALTIES if not single or value > _LEAST_OF_SINGLE * 0.999)


def cross_validated(
    grams: Sequence[np.ndarray],
    crosses: Sequence[np.ndarray],
    penalties: Sequence[float] = RIDGE_PENALTIES,
    *,
    classes: bool,
) -> float:
    """The one of these penalties per case with the least GCV over a task's problems; of equals the larger.

    `grams` (d+1, d+1) and `crosses` (d+1, C) are one of each per problem, of one-hot labels if `classes`, else of
    labels that are 1 or -1. Problems without two cases say nothing; if none does, `prior` decides.
    """
    errors = np.zeros(len(penalties))
    told = [(gram, cross) for gram, cross in zip(grams, crosses, strict=True) if gram[-1, -1] >= 2]
    for gram, cross in told:
        squares = cross[-1] if classes else np.full(cross.shape[1], gram[-1, -1])
        errors += _errors(gram, cross, squares, penalties)
    if not told:
        return prior(grams)
    return penalties[len(errors) - 1 - int(np.argmin(errors[::-1]))]


def prior(grams: Sequence[np.ndarray]) -> float:
    """Features per case: the penalty of a prior under which the features explain as much as they leave unexplained.

    For sums that errors cannot be had from: noised ones, and those of values, whose squares are not sent.
    """
    return (len(grams[0]) - 1) / max(1.0, float(np.mean([gram[-1, -1] for gram in grams])))


def _errors(gram: np.ndarray, cross: np.ndarray, squares: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """GCV by penalty, the mean over the columns of `cross`, whose labels' sums of squares are `squares` (C,)."""
    from scipy import linalg  # a study is checked without

    n, dim = float(gram[-1, -1]), len(gram) - 1
    mean = gram[:dim, -1] / n
    centred = gram[:dim, :dim] - n * np.outer(mean, mean)
    spread = np.diag(centred) > n * _TINY * np.maximum(1.0, np.diag(gram)[:dim] / n)
    scale = np.sqrt(np.diag(centred)[spread] / n)
    values, vectors = linalg.eigh(centred[np.ix_(spread, spread)] / np.outer(scale, scale))
    values = np.maximum(values, 0.0)
    along = vectors.T @ ((cross[:dim] - np.outer(mean, cross[-1]))[spread] / scale[:, None])
    total = float((squares - cross[-1] ** 2 / n).sum())
    power = (along**2).sum(axis=1)
    found = []
    for penalty in penalties:
        shrunk = values + n * penalty
        rest = max(0.0, total - float((power * (values + 2 * n * penalty) / shrunk**2).sum()))
        freedom = 1 + float((values / shrunk).sum())
        free = n - freedom
        found.append(n * rest / free**2 / cross.shape[1] if free >= _LEAST_FREE * n else np.inf)
    return np.array(found)
