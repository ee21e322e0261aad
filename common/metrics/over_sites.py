"""One metric over sites: its mean, each site counting the same, and the site that it is worst at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgraft.common.metrics.table import Metric


def macro_mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean of one metric over sites, each counting the same; sites where it is undefined are left out."""
    known = [value for row in rows if (value := row.get(key)) is not None]
    return float(sum(known) / len(known)) if known else None


def worst(sites: Mapping[str, Mapping[str, Any]], metric: Metric) -> tuple[str, float] | None:
    """The site with the worst value of one metric, the first by name of equals; None if none has one."""
    known = {site: value for site, row in sites.items() if (value := row.get(metric.name)) is not None}
    if not known:
        return None
    site = min(sorted(known), key=lambda one: metric.goodness(known[one]))
    return site, known[site]
