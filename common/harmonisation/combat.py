"""ComBat from sums (Johnson et al. 2007, "Adjusting batch effects in microarray expression data"), a site as a batch.

A value is `level + slopes (covariates - centre) + site's shift + site's factor x spread x error`. What is common to all
follows from sums over sites, equal to the fit on pooled cases: with a mean of its own for each site, slopes and
residuals depend on nothing but what each site has around its own means. A site's shift and factor are shrunk towards
those of its other columns by priors that its own cases give, so that it finds them alone. Who has its sums can do so
too: they are hidden only where sums are masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.routing import Shapes

Floats = NDArray[np.float64]
FEWEST_SITES = 2
"""With a single site there is nothing to tell its effects from."""
_ROUNDING, _COLLINEAR = 1e-9, 1e-8
_STILL, _MOST_STEPS = 1e-12, 10_000


def sums_of(values: Floats, covariates: Floats) -> dict[str, Floats]:
    """A site's sums over its cases, from values (N, p) and covariates (N, q), NaN where one is missing.

    By column, over cases that have its value and all covariates: `count`, `sum`, `sites` (1 where there is such a case)
    and `squares` around the site's mean, each (p,); where there are covariates also `covariates` (p, q), and, around
    the site's means, `products` of covariates (p, q, q) and `cross` of covariates with values (p, q).
    """
    whole = ~np.isnan(covariates).any(axis=1)
    rows = []
    for column in values.T:
        use = whole & ~np.isnan(column)
        y, x = column[use], covariates[use]
        own, beside = (y - y.mean(), x - x.mean(axis=0)) if len(y) else (y, x)
        rows.append((float(len(y)), y.sum(), float(len(y) > 0), own @ own, x.sum(0), beside.T @ beside, beside.T @ own))
    names = ("count", "sum", "sites", "squares", "covariates", "products", "cross")
    told = names if covariates.shape[1] else names[:4]
    return {name: np.array([row[at] for row in rows], dtype=np.float64) for at, name in enumerate(told)}


def sum_shapes(columns: int, covariates: int) -> Shapes:
    """Of the sums of so many columns and covariates."""
    p, q = columns, covariates
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("count", "sum", "sites", "squares"), (p,))
    if q:
        shapes |= {"covariates": (p, q), "products": (p, q, q), "cross": (p, q)}
    return {name: (shape, "float64") for name, shape in shapes.items()}


def common_from_sums(
    sums: Mapping[str, Floats], names: Sequence[str] = (), columns: Sequence[str] = ()
) -> dict[str, Floats]:
    """What is common to all sites, from their sums: `level`, `spread` (p,); with covariates `slopes` (p, q), `centre`.

    A column that fewer than two sites have gets spread 0, and is left as it is. ValueError for sums that no cases have.
    RunError if a covariate's effect cannot be told from the sites'; `names` are those of the covariates.
    """
    count, sites = sums["count"], sums["sites"]
    known = (sites >= FEWEST_SITES) & (count > 0)
    number = np.where(count > 0, count, 1.0)
    if (sums["squares"] < 0).any() or (sites > count).any() or (sites < 0).any():
        raise ValueError("sums that no cases have")
    left, slopes = sums["squares"].copy(), np.zeros((len(count), 0))
    level = sums["sum"] / number
    found: dict[str, Floats] = {}
    if "products" in sums:
        centre = sums["covariates"].sum(0) / max(count.sum(), 1.0)
        slopes = np.array([_slopes(sums, at, bool(known[at]), names, columns) for at in range(len(count))])
        left -= (slopes * sums["cross"]).sum(1)
        level += ((centre - sums["covariates"] / number[:, None]) * slopes).sum(1)
        found = {"slopes": np.where(known[:, None], slopes, 0.0), "centre": centre}
    if (left < -_ROUNDING * sums["squares"]).any():
        raise ValueError("sums that no cases have")
    real = known & (left > _ROUNDING * sums["squares"])
    return {
        "level": np.where(known, level, 0.0),
        "spread": np.where(real, np.sqrt(np.maximum(left, 0) / number), 0.0),
    } | found


def _slopes(sums: Mapping[str, Floats], at: int, told: bool, names: Sequence[str], columns: Sequence[str]) -> Floats:
    """Of one column (q,); 0 for a covariate that is 0 in every case, as a word that nobody has."""
    products, total = sums["products"][at], sums["covariates"][at]
    around = np.diagonal(products)
    if (around < 0).any():
        raise ValueError("sums that no cases have")
    there = (total != 0) | (around > 0)
    flat = there & (around <= _ROUNDING * total**2 / max(sums["count"][at], 1.0))
    slopes = np.zeros(len(products))
    if not there.any():
        return slopes
    one = products[np.ix_(there, there)]
    scale = np.sqrt(np.where(np.diagonal(one) > 0, np.diagonal(one), 1.0))
    parts, ways = np.linalg.eigh(one / np.outer(scale, scale))
    if (parts < -_COLLINEAR).any():
        raise ValueError("sums that no cases have")
    if told and (flat.any() or (parts < _COLLINEAR).any()):
        tied = flat if flat.any() else np.isin(np.arange(len(there)), np.flatnonzero(there)[np.abs(ways[:, 0]) > 0.1])
        _refuse(tied, at, names, columns, alone=bool(flat.any()))
    slopes[there] = np.linalg.pinv(one / np.outer(scale, scale), hermitian=True) @ (sums["cross"][at][there] / scale)
    slopes[there] /= scale
    return slopes


def _refuse(tied: NDArray[np.bool_], at: int, names: Sequence[str], columns: Sequence[str], *, alone: bool) -> None:
    words = ", ".join(names[number] if names else str(number + 1) for number in np.flatnonzero(tied).tolist())
    where = f" among the cases that have {columns[at]!r}" if columns else ""
    why = "is the same for all cases of each site" if alone else "follow from each other within the sites"
    raise RunError(
        f"ComBat: {words} {why}{where}, so that its effect cannot be told from the sites' own.",
        fix="Leave it out of input.harmonise.covariates."
        if alone
        else "Leave one out of input.harmonise.covariates; let a category's first word be one that sites have.",
    )


@dataclass(frozen=True)
class SiteEffects:
    """Of each column (p,): what a site's values lie above the common level, in the column's unit, and its factor."""

    shift: Floats
    factor: Floats
    told: NDArray[np.bool_]
    """Whether the site's cases could tell; where not, shift is 0 and factor 1."""


def site_effects(values: Floats, expected: Floats, spread: Floats) -> SiteEffects:
    """A site's effects by empirical Bayes, from values (N, p) and what is expected of each by its covariates.

    NaN is a value, or a covariate, that is missing. Columns of which the site has fewer than two different values, or
    of which nothing is common (spread 0), are left as they are. A single column is not shrunk: it has no others.
    """
    use = ~np.isnan(values) & ~np.isnan(expected)
    n = use.sum(0).astype(np.float64)
    z = np.where(use, values - expected, 0.0) / np.where(spread > 0, spread, 1.0)
    differs = np.where(use, values, -np.inf).max(0, initial=-np.inf) > np.where(use, values, np.inf).min(
        0, initial=np.inf
    )
    mean = z.sum(0) / np.maximum(n, 1)
    variance = (np.where(use, z - mean, 0.0) ** 2).sum(0) / np.maximum(n - 1, 1)
    told = (n >= 2) & (spread > 0) & differs & (variance > 0)
    shift, factor = np.zeros(len(spread)), np.ones(len(spread))
    if told.any():
        gamma, delta = _shrunk(np.where(use, z, np.nan)[:, told], mean[told], variance[told])
        shift[told], factor[told] = spread[told] * gamma, np.sqrt(delta)
    return SiteEffects(shift, factor, told)


def _shrunk(z: Floats, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Posterior means and variances, with a normal and an inverse gamma prior whose moments are those over columns."""
    if len(mean) < 2:
        return mean, variance
    n = (~np.isnan(z)).sum(0)
    of_means, own = mean.mean(), mean.var(ddof=1)
    middle, width = variance.mean(), variance.var(ddof=1)
    if width <= _ROUNDING * middle**2:  # all columns vary alike: the prior is this number
        return (n * own * mean + middle * of_means) / (n * own + middle), np.full(len(mean), middle)
    a, b = 2 + middle**2 / width, middle + middle**3 / width
    gamma, delta = mean, variance
    for _ in range(_MOST_STEPS):
        before = gamma, delta
        gamma = (n * own * mean + delta * of_means) / (n * own + delta)
        delta = (b + np.nansum((z - gamma) ** 2, axis=0) / 2) / (n / 2 + a - 1)
        if max(np.abs(gamma - before[0]).max(), np.abs(delta / before[1] - 1).max()) < _STILL:
            break
    return gamma, delta
