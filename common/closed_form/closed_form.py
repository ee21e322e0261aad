"""Solutions from sums: what pooled data would give, computed from the sites' sums alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.penalty import RIDGE_PENALTIES, cross_validated, prior
from fedgraft.common.protocol.instructions import NOISE, Arrays
from fedgraft.common.study.stages.aggregates import Discriminant, NearestMean, Ridge

_TINY = 1e-12
_HALF = 0.5
"""Fewer cases than this are none, and what was counted is noise."""
_COUNT_DEVIATION = 2.0
"""The noise in counts of noised columns, over that in their sums: they are given half as much of the bound."""
_SQUARES_DEVIATION = 1.5
"""The same of sums of squares, which are made of two of them."""
_NARROWEST = 0.02
"""The least deviation of a column that noised sums can tell, over half of its range."""
_NEVER = -1e4
"""A bias that no case's features make up for."""


def ridge_head(
    gram: np.ndarray, cross: np.ndarray, ridge_penalty: float, noise: float = 0.0, *, standardise: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of one-hot labels on standardised features with a free intercept, from sums.

    `gram` = sum z z' (d+1, d+1) and `cross` = sum z y' (d+1, C) with z = [features; 1]; `ridge_penalty` is the penalty
    per case. With mu and s the pooled mean and deviation of the features and G their centred second moments, it solves
    (G / ss' + n ridge penalty I) V = (B_d - mu b') / s. Returns weight (C, d) and bias (C,) for raw features. Equals
    the solution on the pooled cases up to rounding. Features without spread get weight 0. Without `standardise` s is 1,
    so that a feature that hardly moves gets hardly any say.

    `noise` is the variance on the gram's diagonal of symmetric Gaussian noise, half of that beside it. Then what is
    negative in G is cut off, features are scaled the more alike the more noise there is, and the penalty grows by the
    noise's spectral norm, sqrt(2 d noise), in raw units, so that directions that hold only noise get no say.
    """
    from scipy import linalg  # a study is checked without

    n, mean, centred = _centred(gram, noise)
    dim, level = len(mean), np.sqrt(2 * len(mean) * noise)
    variance, trust = _variances(n, centred, level)
    centred += (1 - trust) * n * np.outer(mean, mean)
    spread = variance > _TINY * np.maximum(1.0, np.diag(gram)[:dim] / n)
    scale = np.where(spread, np.sqrt(np.where(spread, variance, 1.0)) if standardise else 1.0, np.inf)
    left = centred / np.outer(scale, scale) + np.diag(n * ridge_penalty + level / scale**2)
    right = (cross[:dim] - np.outer(mean, cross[-1])) / scale[:, None]
    weight = linalg.solve(left, right, assume_a="pos") / scale[:, None]
    bias = cross[-1] / n - mean @ weight
    return weight.T, bias


def nearest_mean_head(
    gram: np.ndarray, cross: np.ndarray, scale: float, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits -scale |f - mu_c|^2 / 2 over the features' mean variance, up to what all classes share.

    Sums as of `ridge_head`. Returns weight (C, d) and bias (C,). A class without cases gets a bias out of reach.
    """
    n, _, centred = _centred(gram, noise)
    means, counts = _class_means(cross)
    unit = max(float(np.trace(centred)) / (n * len(centred)), _TINY)
    bias = np.where(counts >= _HALF, -0.5 * (means**2).sum(axis=1) * scale / unit, _NEVER)
    return means * scale / unit, bias


def discriminant_head(
    gram: np.ndarray, cross: np.ndarray, shrink: float, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Linear discriminant analysis: Gaussian classes of one covariance, which is shrunk towards a multiple of one.

    With Sigma the within-class covariance and v its mean variance, weight = mu_c' S and bias = log pi_c - mu_c' S mu_c
    / 2 where S is the inverse of (1 - shrink) Sigma + shrink v I. Sums and `noise` as of `ridge_head`.
    """
    from scipy import linalg  # a study is checked without

    n, mean, centred = _centred(gram, noise)
    means, counts = _class_means(cross)
    counts, dim = np.maximum(counts, 0.0), len(mean)
    apart = means - mean
    level = np.sqrt(2 * dim * noise)
    within = _positive((centred - (apart.T * counts) @ apart) / n)
    variance = max(float(np.trace(within)) / dim, _TINY)
    within += (1 - _variances(n, centred, level)[1]) * np.outer(mean, mean)
    ridge = shrink * variance + level / n
    precise = linalg.solve((1 - shrink) * within + ridge * np.eye(dim), means.T, assume_a="pos").T
    prior = np.log(np.maximum(counts, _TINY) / max(float(counts.sum()), _TINY))
    bias = np.where(counts >= _HALF, prior - 0.5 * (precise * means).sum(axis=1), _NEVER)
    return precise, bias


def _variances(n: float, centred: np.ndarray, level: float) -> tuple[np.ndarray, float]:
    """The features' variances, all the more alike the less they can be trusted, and how far that is, from 0 to 1.

    The mean is noised too, which tilts `centred` along it. Where there is no trust, that direction is to be held down.
    """
    variance = np.diag(centred) / n
    common = max(float(variance.mean()), level / n * _TINY)
    trust = n * common / (n * common + level) if level else 1.0
    return trust * variance + (1 - trust) * common, trust


def _centred(gram: np.ndarray, noise: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Cases, mean, and centred second moments of the features; noise leaves neither less than a case nor negatives."""
    n, dim = float(gram[-1, -1]), len(gram) - 1
    n = max(n, 1.0) if noise > 0 else n
    mean = gram[:dim, -1] / n
    centred = gram[:dim, :dim] - n * np.outer(mean, mean)
    return n, mean, _positive(centred) if noise > 0 else centred


def _positive(moments: np.ndarray) -> np.ndarray:
    """The nearest matrix without negative directions."""
    from scipy import linalg  # a study is checked without

    values, vectors = linalg.eigh((moments + moments.T) / 2)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _class_means(cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean features (C, d) and cases (C,) by class."""
    counts = cross[-1]
    return (cross[:-1] / np.maximum(counts, 1.0)).T, counts


def standard_scale(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column from sums; a column without values or spread gets mean as is and deviation 1."""
    known = np.maximum(count, 1)
    mean = total / known
    variance = np.maximum(squares / known - mean**2, 0.0)
    flat = variance <= _TINY * np.maximum(1.0, mean**2)
    return mean, np.where(flat, 1.0, np.sqrt(np.where(flat, 1.0, variance)))


def noised_scale(sums: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column from noised sums of values between -1 and 1.

    As many made-up patients as the noise of a count deviates by, spread evenly over the range, join the real ones: with
    many patients they do not count, and where there is little but noise they are the answer. A deviation is never
    smaller than what noise could make of none: too large a one does less harm.
    """
    noise = float(np.sqrt(sums[NOISE][0]))
    made_up = _COUNT_DEVIATION * noise
    patients = np.maximum(sums["count"], 0.0) + made_up
    mean = np.clip(sums["sum"] / patients, -1.0, 1.0)
    second = (sums["squares"] + made_up / 3) / patients
    least = np.maximum(_NARROWEST**2, _SQUARES_DEVIATION * noise / patients)
    return mean, np.sqrt(np.clip(second - mean**2, least, 1.0))


def tasks_in(sums: Arrays) -> list[str]:
    """Names of the tasks that sums are of, sorted."""
    return sorted({key.partition("/")[0] for key in sums if "/" in key})


def heads_from_sums(
    sums: Arrays,
    aggregate: Ridge | NearestMean | Discriminant,
    state: Arrays,
    ridge_penalties: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Entries of the heads that solve the problem of the sums `TASK/gram` and `TASK/cross`, typed as in `state`.

    `TASK/value` in place of `cross` is that of a value, and a gram of three dimensions has one for each of several
    labels. `NOISE` among them is the variance of the noise in them. `ridge_penalties` by task replace that of
    `aggregate`. RunError if there is not a single label.
    """
    heads = {}
    noise = float(sums[NOISE][0]) if NOISE in sums else 0.0
    if isinstance(aggregate, Ridge) and not ridge_penalties and aggregate.ridge_penalty == "auto":
        ridge_penalties = automatic_penalties(sums)
    for task in tasks_in(sums):
        grams, crosses, scaled = problems_of(sums, task)
        own = aggregate
        if isinstance(aggregate, Ridge):
            changes = {"ridge_penalty": (ridge_penalties or {}).get(task, aggregate.ridge_penalty)} | (
                {} if scaled else {"scale": 1.0}
            )
            own = aggregate.model_copy(update=changes)
        parts = []
        for gram, cross in zip(grams, crosses, strict=True):
            if gram[-1, -1] == 0:
                raise RunError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
            parts.append(_solved(own, gram, cross, noise))
        for at, name in enumerate(("weight", "bias")):
            key = f"heads.{task}.{name}"
            heads[key] = np.concatenate([part[at] for part in parts]).astype(state[key].dtype)
    return heads


def automatic_penalties(sums: Arrays, penalties: Sequence[float] = RIDGE_PENALTIES) -> dict[str, float]:
    """By task the ridge penalty per case, of these, that follows from the total of the sums (see `penalty`).

    Of noised sums, and of values, the prior one: errors that are measured on noise would choose the noise.
    """
    found = {}
    for task in tasks_in(sums):
        grams, crosses, logits = problems_of(sums, task)
        measurable = logits and NOISE not in sums
        classes = sums[f"{task}/gram"].ndim == 2
        found[task] = cross_validated(grams, crosses, penalties, classes=classes) if measurable else prior(grams)
    return found


def problems_of(sums: Arrays, task: str) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
    """A task's grams and crosses, one of each per problem to solve, and whether what comes out are logits."""
    gram, value = sums[f"{task}/gram"], sums.get(f"{task}/value")
    cross = sums[f"{task}/cross"] if value is None else value
    if gram.ndim == 2:
        return [gram], [cross], value is None
    return list(gram), [cross[:, at : at + 1] for at in range(len(gram))], True


def _solved(
    aggregate: Ridge | NearestMean | Discriminant, gram: np.ndarray, cross: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    match aggregate:
        case Ridge(ridge_penalty=ridge_penalty, scale=scale):
            if isinstance(ridge_penalty, str):
                raise RunError("The ridge penalty of the ridge is not chosen yet.", fix="Give it as a number.")
            weight, bias = ridge_head(gram, cross, ridge_penalty, noise)
            return weight * scale, bias * scale
        case NearestMean(scale=scale):
            return nearest_mean_head(gram, cross, scale, noise)
        case Discriminant(shrink=shrink):
            return discriminant_head(gram, cross, shrink, noise)


def scale_from_sums(sums: Arrays, state: Arrays) -> dict[str, np.ndarray]:
    """Entries of the standardising layer from the sums `count`, `sum` and `squares` of columns, typed as in `state`.

    With `NOISE` among them, sums are of values in units of what is in `state`: the middle and half the width of the
    columns' public ranges.
    """
    keys = {name: next(key for key in state if key.endswith(f".{name}")) for name in ("mean", "std")}
    if NOISE in sums:
        middle, half = (state[keys[name]].astype(np.float64) for name in ("mean", "std"))
        mean, std = noised_scale(sums)
        told = sums["squares"] != 0.0  # categories are not summed and stay as they are
        mean, std = np.where(told, middle + half * mean, middle), np.where(told, half * std, half)
    else:
        mean, std = standard_scale(sums["count"], sums["sum"], sums["squares"])
    values: Arrays = {"mean": mean, "std": std}
    return {key: values[name].astype(state[key].dtype) for name, key in keys.items()}
