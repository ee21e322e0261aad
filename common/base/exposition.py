"""Figures as Prometheus reads them. The package `prometheus_client` writes them (extra `metrics`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedgraft.common.base.errors import InputError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "fedgraft_"


@dataclass(frozen=True)
class Figure:
    """One figure under all its labels. Names carry units; a counter only grows, and its name ends in `_total`."""

    name: str
    says: str
    kind: Literal["gauge", "counter"] = "gauge"
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: str) -> Figure:
        """The same figure with one sample more; what is not known is left out."""
        if value is not None:
            self.samples.append((labels, float(value)))
        return self


def demand_client() -> None:
    """InputError if the package that writes figures is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise InputError("Figures for Prometheus need a package.", fix="pip install 'fedgraft[metrics]'.") from None


def exposition(figures: Iterable[Figure]) -> tuple[str, bytes]:
    """Content type and text of these figures."""
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
    from prometheus_client.core import Metric

    class Asked:
        """What a registry asks."""

        def collect(self) -> Iterator[Metric]:
            """Each figure as the package has it."""
            for figure in figures:
                metric = Metric(PREFIX + figure.name.removesuffix("_total"), figure.says, figure.kind)
                for labels, value in figure.samples:
                    metric.add_sample(PREFIX + figure.name, dict(labels), value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Asked())
    return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)
