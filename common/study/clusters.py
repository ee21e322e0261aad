"""Clusters of sites, each with a model of its own from some stage on. Values, no behaviour.

Sattler et al. 2019, "Clustered federated learning"; Ghosh et al. 2020, "An efficient framework for clustered federated
learning".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value, unless
from fedgraft.common.study.plan import Select, Stage, named

_NAME = r"^[a-z][a-z0-9_]{0,31}$"


class NamedClusters(Value):
    """The study names the sites of each cluster: those that are alike, as far as anybody knows.

    From stage `begin` on, the first if absent, each has its own of the entries `own`; the others are aggregated over
    the sites of all clusters. A site that is in no cluster takes no part.
    """

    by: Literal["name"]
    sites: Annotated[
        dict[Annotated[str, Field(pattern=_NAME)], Annotated[tuple[str, ...], Field(min_length=1)]],
        Field(min_length=2),
    ]
    """The names of the sites of each cluster, by the name of the cluster."""
    begin: Annotated[str | None, Field(exclude_if=unless(None))] = None
    own: Annotated[Select, Field(exclude_if=unless(named("all")))] = named("all")

    @model_validator(mode="after")
    def _each_in_one(self) -> NamedClusters:
        names = [site for own in self.sites.values() for site in own]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: can be in one cluster alone")
        return self

    @property
    def description(self) -> str:
        """Who trains together, in a sentence."""
        named = "; ".join(f"{name} ({', '.join(sites)})" for name, sites in self.sites.items())
        when = f"From stage {self.begin} on each" if self.begin else "Each"
        return f"{when} cluster of sites has a model of its own{_shared(self.own)}: {named}. No other site takes part."

    def of(self, site: str) -> str | None:
        """The cluster of a site; None if it is in none."""
        return next((name for name, sites in self.sites.items() if site in sites), None)


class BySums(Value):
    """Sites whose features are alike, by the sums that each sends in stage `stage`, which stay as they were.

    Clusters begin with the stage after it: `count` of them, or, without, as few as there may be without two sites in
    one that differ by more than chance, and by half a deviation at least. `own` as where they are told.
    """

    by: Literal["sums"]
    stage: str
    count: Annotated[int | None, Field(ge=2, exclude_if=unless(None))] = None
    own: Annotated[Select, Field(exclude_if=unless(named("all")))] = named("all")

    @property
    def description(self) -> str:
        """Who trains together, in a sentence."""
        how_many = "as many as differ" if self.count is None else str(self.count)
        return (
            f"After stage {self.stage} the coordinator compares the sites by the sums of each, and puts those that are "
            f"alike into a cluster, {how_many} in all; each has a model of its own{_shared(self.own)}, and the report "
            "says who is in which."
        )


def _shared(own: Select) -> str:
    """What clusters have together all the same."""
    name = own.model_dump()
    return (
        "" if own == named("all") else f" in {name if isinstance(name, str) else 'some entries'}, and all else together"
    )


Clusters = Annotated[NamedClusters | BySums, Field(discriminator="by")]


def begins_at(clusters: NamedClusters | BySums, plan: Sequence[Stage]) -> int:
    """The place in the plan of the first stage in which clusters have models of their own.

    ValueError if the plan has no stage of the name that is given, or none for clusters.
    """
    places = {stage.name: at for at, stage in enumerate(plan)}
    key, name = ("stage", clusters.stage) if isinstance(clusters, BySums) else ("begin", clusters.begin)
    if name is not None and name not in places:
        raise ValueError(f"clusters.{key}: no stage is called {name}; there are: {', '.join(places) or 'none'}")
    place = 0 if name is None else places[name] + isinstance(clusters, BySums)
    if place == len(plan):
        raise ValueError("clusters: no stage is left in which clusters could have models of their own")
    return place
