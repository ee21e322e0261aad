"""Clusters of sites, each with a model of its own from some stage on. Values, no behaviour.

Sattler et al. 2019, "Clustered federated learning"; Ghosh et al. 2020, "An efficient framework for clustered federated
learning".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedgraft.common.base.value import Value, unless
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.plan import Gradient, Select, Stage, named

_NAME = r"^[a-z][a-z0-9_]{0,31}$"
Groups = dict[Annotated[str, Field(pattern=_NAME)], Annotated[tuple[str, ...], Field(min_length=1)]]
"""The names of sites, by the name of what they are together in."""


class NamedClusters(Value):
    """The study names the sites of each cluster: those that are alike, as far as anybody knows.

    From stage `begin` on, the first if absent, each has its own of the entries `own`; the others are aggregated over
    the sites of all clusters. A site that is in no cluster takes no part.
    """

    by: Literal["name"]
    sites: Annotated[Groups, Field(min_length=2)]
    """The names of the sites of each cluster, by the name of the cluster."""
    begin: Annotated[str | None, Field(exclude_if=unless(None))] = None
    own: Annotated[Select, Field(exclude_if=unless(named("all")))] = named("all")

    @model_validator(mode="after")
    def _each_in_one(self) -> NamedClusters:
        _once(self.sites, "cluster")
        return self

    @property
    def description(self) -> str:
        """Who trains together, in a sentence."""
        named = _in_words(self.sites)
        when = f"From stage {self.begin} on each" if self.begin else "Each"
        return f"{when} cluster of sites has a model of its own{_shared(self.own)}: {named}. No other site takes part."


class BySums(Value):
    """Sites whose features are alike, by the sums that each sends in stage `stage`, which stay as they were.

    Clusters begin with the stage after it: `count` of them, or, without, as few as there may be without two sites in
    one that differ by more than chance, and by half a deviation at least. `own` as where they are told.
    """

    by: Literal["sums"]
    stage: str
    count: Annotated[int | None, Field(ge=2, exclude_if=unless(None))] = None
    groups: Annotated[Groups, Field(default_factory=dict, exclude_if=unless({}))]
    """Sites that stay together in any case, by the name of the group: groups are compared by the sums of each, as
    masks want it, and clusters are made of whole ones. A site that is in no group takes no part."""
    own: Annotated[Select, Field(exclude_if=unless(named("all")))] = named("all")

    @model_validator(mode="after")
    def _each_in_one(self) -> BySums:
        _once(self.groups, "group")
        return self

    @property
    def description(self) -> str:
        """Who trains together, in a sentence."""
        how_many = "as many as differ" if self.count is None else str(self.count)
        who = "groups of sites" if self.groups else "sites"
        groups = f" The groups are {_in_words(self.groups)}. No other site takes part." if self.groups else ""
        return (
            f"After stage {self.stage} the coordinator compares the {who} by the sums of each, and puts those that are "
            f"alike into a cluster, {how_many} in all; each has a model of its own{_shared(self.own)}, and the report "
            f"says who is in which.{groups}"
        )


def _once(groups: Mapping[str, Sequence[str]], what: str) -> None:
    """ValueError if a site is in two of these."""
    names = [site for own in groups.values() for site in own]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)}: can be in one {what} alone")


def _in_words(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name} ({', '.join(sites)})" for name, sites in groups.items())


def _shared(own: Select) -> str:
    """What clusters have together all the same."""
    name = own.model_dump()
    return (
        "" if own == named("all") else f" in {name if isinstance(name, str) else 'some entries'}, and all else together"
    )


class ByLoss(Value):
    """Sites that one model fits: each round a site takes, of `count` models, the one of the lowest loss on its cases.

    It trains that one, and sends which it was with what it has trained (IFCA). The models begin with the first stage
    that trains and sends, each with other random entries where nothing has come from weights or training yet; or, with
    `stage`, as those of clusters by the sums of that stage, and then sites choose from the second round on. `own` as
    where clusters are told: with heads, say, the models have one backbone.
    """

    by: Literal["loss"]
    count: Annotated[int, Field(ge=2, le=16)]
    stage: Annotated[str | None, Field(exclude_if=unless(None))] = None
    own: Annotated[Select, Field(exclude_if=unless(named("all")))] = named("all")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models that there are."""
        return numbered(self.count)

    @property
    def description(self) -> str:
        """Who trains together, in a sentence."""
        begin = (
            "They begin with other random entries each"
            if self.stage is None
            else f"They begin as those of sites that are alike by the sums of stage {self.stage}"
        )
        return (
            f"There are {self.count} models, each with entries of its own{_shared(self.own)}. {begin}; then each round "
            "a site tries all on its training cases, trains the one of the lowest loss, and says with what it sends "
            "which it was. It is measured with the one that it took last, and the report says who is with whom."
        )


def numbered(count: int) -> tuple[str, ...]:
    """The names of clusters that nobody has named."""
    return tuple(f"cluster_{at}" for at in range(1, count + 1))


AnyClusters = NamedClusters | BySums | ByLoss
Clusters = Annotated[AnyClusters, Field(discriminator="by")]


def groups_of(clusters: AnyClusters | None) -> Mapping[str, tuple[str, ...]]:
    """The sites that the study puts together, by name; none where it leaves that to the run, or has no clusters."""
    match clusters:
        case NamedClusters():
            return clusters.sites
        case BySums():
            return clusters.groups
    return {}


def group_of(clusters: AnyClusters | None, site: str) -> str | None:
    """The name of the group that the study puts a site into; None if it is in none."""
    return next((name for name, sites in groups_of(clusters).items() if site in sites), None)


def rests_on(clusters: AnyClusters | None) -> str | None:
    """The stage from whose sums clusters are made; None if from none."""
    return None if clusters is None or isinstance(clusters, NamedClusters) else clusters.stage


def begins_at(clusters: AnyClusters, plan: Sequence[Stage]) -> int:
    """The place in the plan of the first stage in which clusters have models of their own.

    ValueError if the plan has no stage of the name that is given, or none for clusters.
    """
    places = {stage.name: at for at, stage in enumerate(plan)}
    key, name = ("begin", clusters.begin) if isinstance(clusters, NamedClusters) else ("stage", clusters.stage)
    if name is not None and name not in places:
        raise ValueError(f"clusters.{key}: no stage is called {name}{instead(name, places)}")
    place = 0 if name is None else places[name] + (key == "stage")
    if isinstance(clusters, ByLoss) and name is None:
        place = next((at for at, stage in enumerate(plan) if _sends_entries(stage)), len(plan))
    if place == len(plan):
        raise ValueError("clusters: no stage is left in which clusters could have models of their own")
    return place


def _sends_entries(stage: Stage) -> bool:
    """Whether sites train in it, and not each for itself alone."""
    return isinstance(stage.local, Gradient) and stage.share != named("none")
