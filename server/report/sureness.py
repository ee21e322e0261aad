"""How sure a figure is, as text beside it: the cases it rests on, its interval, or that they are too few to say."""

from __future__ import annotations

from collections.abc import Sequence

from fedgraft.server.report.history import Row, mapping, number, sequence

_MOST_CLASSES = 6


def with_interval(value: str, interval: object) -> str:
    """A figure, and below it the two ends of its interval, if it has one."""
    low, high = ends(interval)
    return value if low is None or high is None else f"{value}\n{low:.3f} to {high:.3f}"


def ends(interval: object) -> tuple[float | None, float | None]:
    """The ends of an interval, as a pair or as a mapping with `low` and `high`."""
    if isinstance(interval, Sequence) and not isinstance(interval, str) and len(interval) == 2:
        return number(interval[0]), number(interval[1])
    found = mapping(interval)
    return number(found.get("low")), number(found.get("high"))


def of_site(metrics: Row, site: str) -> tuple[Row, Row]:
    """A site's support and intervals, from one task's metrics."""
    supports, intervals = (mapping(mapping(metrics.get(key)).get("sites")) for key in ("support", "intervals"))
    return mapping(supports.get(site)), mapping(intervals.get(site))


def of_pooled(metrics: Row) -> tuple[Row, Row]:
    """The same of all cases together."""
    support, intervals = (mapping(mapping(metrics.get(key)).get("pooled")) for key in ("support", "intervals"))
    return support, intervals


def is_too_few(support: Row) -> bool:
    """Whether the cases are fewer than the study's floor."""
    return support.get("enough") is False


def sides(support: Row, kind: str) -> str:
    """Positives and negatives, or the cases of each class; nothing of a task that asks for a value."""
    positives, negatives = (
        [int(number(one) or 0) for one in sequence(support.get(k))] for k in ("positives", "negatives")
    )
    if not positives or kind == "regression" or len(positives) > _MOST_CLASSES:
        return ""
    if kind == "multilabel":
        return ", ".join(f"{yes} + {no} −" for yes, no in zip(positives, negatives, strict=False))
    return f"{positives[0]} + {negatives[0]} −" if len(positives) == 1 else ", ".join(map(str, positives))
