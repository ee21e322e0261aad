"""What of a round is a number, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A round's figures: `TASK/MEAN/METRIC` over sites and pooled, `TASK/sites/SITE/METRIC`, losses, bytes, seconds.

    `row` is one of a run's history. What is not known is left out.
    """
    return dict(_numbers(row))


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key in ("seconds", "bytes_up", "bytes_down"):
        yield key, float(row[key])
    yield "sites", float(len(row["sites_aggregated"]))
    for site, facts in row["train"].items():
        if _is_number(facts.get("loss")):
            yield f"train/{site}/loss", float(facts["loss"])
    for task, values in row["metrics"].items():
        means = {mean: values.get(mean) or {} for mean in ("macro", "pooled")}
        sites = {f"sites/{site}": own for site, own in (values.get("sites") or {}).items()}
        for name, figures in (means | sites).items():
            yield from ((f"{task}/{name}/{key}", float(value)) for key, value in figures.items() if _is_number(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
