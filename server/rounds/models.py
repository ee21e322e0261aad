"""The models of a run: one for all sites, or from some stage on one for each cluster of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fedgraft.common.base.seeds import derive
from fedgraft.common.checks.faults.check_clusters import has_own
from fedgraft.common.closed_form.likeness import SiteSums, clustered, pairs
from fedgraft.common.closed_form.shapes import cross_name
from fedgraft.common.methods.memory.carried import sent_shapes, up_shapes
from fedgraft.common.models.initialise import initialise
from fedgraft.common.protocol.choosing import choices, side_by_side
from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.protocol.packed_symmetric import unpacked
from fedgraft.common.protocol.routing import Tags, releases_plainly
from fedgraft.common.protocol.states import States
from fedgraft.common.study.clusters import (
    AnyClusters,
    ByLoss,
    NamedClusters,
    begins_at,
    groups_of,
    numbered,
    rests_on,
)
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import Step
from fedgraft.common.study.stages.aggregates import Sums
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.server.aggregation.aggregator import Aggregator, HeadAggregator, aggregator_for
from fedgraft.server.aggregation.gathered import Gathered
from fedgraft.server.aggregation.memory import Memory
from fedgraft.server.rounds.exchange.validation import Limits
from fedgraft.server.rounds.outcome import Totals

ALL = ""
"""The name of the one model of all sites."""


class RunModel:
    """One model: its entries, and what the coordinator remembers of it, some of which goes out beside it."""

    def __init__(self, study: Study, tags: Tags, start: Arrays, state: Arrays, remembered: Arrays) -> None:
        self.state = dict(state)
        self.memory = Memory(study, tags, start)
        self.memory.states = States(remembered)
        self.sent: dict[str, np.ndarray] = {}
        """All that went out in this exchange."""

    def prepare(self, stage: Stage, step: Step) -> None:
        """Get ready what goes out in an exchange."""
        self.memory.states.begin(stage.name)
        self.sent = self.state | (self.memory.go_down(stage) if step.work else {})

    @property
    def kept(self) -> Iterator[np.ndarray]:
        """What sites hold of it from one exchange to the next."""
        yield from self.state.values()
        yield from self.memory.sent.values()


class RunModels:
    """All models of one run. Until clusters begin there is one, of which each cluster then takes a copy."""

    def __init__(self, study: Study, tags: Tags, start: Arrays, totals: Totals) -> None:
        self._study = study
        self._tags = tags
        self._start = dict(start)
        self.totals = totals
        self.of_cluster = {ALL: RunModel(study, tags, start, start, {})}
        """By name of the cluster; one of the name `ALL` where there are none."""
        self.shared = States()
        """What the aggregation of entries that clusters share remembers."""
        self._for_anybody = False
        self._together: dict[str, np.ndarray] = {}
        """All models, in an exchange in which sites choose."""

    def __iter__(self) -> Iterator[RunModel]:
        return iter(self.of_cluster.values())

    @property
    def apart(self) -> bool:
        """Whether clusters have models of their own by now."""
        return ALL not in self.of_cluster

    def has(self, site: str) -> bool:
        """Whether there is a model for the site."""
        return not self.apart or self._for_anybody or any(site in sites for sites in self.totals.clusters.values())

    def name_of(self, site: str) -> str:
        """The name of the cluster whose model the site has, `ALL` while there is one model; "" for none either.

        Where sites choose, one that has not done so yet has the first.
        """
        none = next(iter(self.of_cluster)) if isinstance(self._study.clusters, ByLoss) else ALL
        found = (name for name, sites in self.totals.clusters.items() if site in sites)
        return next(found, none) if self.apart else ALL

    def of(self, site: str) -> RunModel:
        """The model of a site. KeyError if it is in no cluster."""
        return self.of_cluster[self.name_of(site)]

    def going(self, site: str, *, work: bool) -> Mapping[str, np.ndarray]:
        """All that a site gets in this exchange, for work or to be measured: its model, or all to choose from."""
        model = self.of(site)
        return self._together or (model.sent if work else model.state)

    def chose(self, chosen: Mapping[str, str]) -> None:
        """Note which models sites have taken, by site; all others keep the one that they had."""
        for site, name in chosen.items():
            for own, sites in self.totals.clusters.items():
                self.totals.clusters[own] = sorted({*sites, site} if own == name else {*sites} - {site})

    def limits(self, stage: Stage) -> dict[str, Limits]:
        """By cluster what the updates of its sites are held against."""
        found, largest = {}, self._study.rounds.largest_change
        for name, model in self.of_cluster.items():
            on = model.memory.ground(stage)
            found[name] = Limits(stage, self._tags, model.sent, sent_shapes(on, model.state), largest, on)
        return found

    def limits_of(self, site: str, limits: Mapping[str, Limits]) -> Mapping[str, Limits]:
        """Those of a site, by the choice that comes with its update: "" where it has none."""
        return limits if self._together else {"": limits[self.name_of(site)]}

    def masking(self, sites: Sequence[str]) -> dict[str, list[str]]:
        """These sites by the group that masks among itself: a cluster, or a part of one, by name; or all."""
        told = groups_of(self._study.clusters) or {ALL: tuple(sites)}
        return {name: [site for site in sites if site in own] for name, own in told.items()}

    def of_group(self, group: str) -> str:
        """The name of the cluster that a group of `masking` is in."""
        sites = groups_of(self._study.clusters).get(group)
        return ALL if sites is None else self.name_of(sites[0])

    def prepare(self, stage: Stage, step: Step) -> None:
        """Get ready what goes out in an exchange; where clusters begin with it, each gets its model first."""
        clusters = self._study.clusters
        if clusters is not None and not self.apart and step.stage >= begins_at(clusters, self._study.plan):
            self._begin(clusters)
        self.shared.begin(stage.name)
        for model in self:
            model.prepare(stage, step)
        self._for_anybody = isinstance(clusters, ByLoss) and step.work and releases_plainly(stage, self._tags)
        self._together = {}
        if clusters is not None and choices(self._study, step, self._tags):
            sent = {name: model.sent for name, model in self.of_cluster.items()}
            self._together = side_by_side(sent, clusters.own.keys(self._tags))

    def _begin(self, clusters: AnyClusters) -> None:
        """Give each cluster its model: a copy of the one that all had, or one with random entries of its own."""
        if isinstance(clusters, NamedClusters):
            self.totals.clusters = {name: list(sites) for name, sites in clusters.sites.items()}
        elif isinstance(clusters, ByLoss):
            self.totals.clusters = {name: self.totals.clusters.get(name, []) for name in clusters.names}
        one = self.of_cluster.pop(ALL)
        for at, name in enumerate(self.totals.clusters):
            state = one.state
            if at and isinstance(clusters, ByLoss) and clusters.stage is None:
                fresh = initialise(self._study, derive(self._study.seed, "clusters", name)).state()
                new = [key for key in clusters.own.keys(self._tags) if np.array_equal(state[key], self._start[key])]
                state = state | {key: fresh[key] for key in new}  # and what stages before have made stays
            self.of_cluster[name] = self._model(state, one.memory.states.arrays())

    def form(self, stage: Stage, sums: Mapping[str, Arrays]) -> None:
        """Put together who is alike by the sums of this stage, if it is the one that clusters rest on.

        `sums` are by site, or by the name of a group of sites that stay together.
        """
        clusters = self._study.clusters
        if clusters is None or isinstance(clusters, NamedClusters) or stage.name != clusters.stage:
            return
        by_site = {site: self._of_first_task(own) for site, own in sums.items()}
        found, groups = clustered(by_site, clusters.count), groups_of(clusters)
        self.totals.clusters = {
            name: sorted(site for one in own for site in groups.get(one, (one,)))
            for name, own in zip(numbered(len(found)), found, strict=True)
        }
        self.totals.likeness = [
            {"one": pair.one, "other": pair.other, "distance": pair.distance, "by_chance": pair.by_chance}
            for pair in pairs(by_site)
        ]

    def aggregation(self, stage: Stage) -> RoundAggregation:
        """What takes in the updates of one round of this stage."""
        return RoundAggregation(self, stage, self._tags, self._study.clusters)

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """All entries, and all that is remembered, by name of cluster and key, for a checkpoint."""
        if not self.apart:
            return self.of_cluster[ALL].state, self.of_cluster[ALL].memory.states.arrays()
        state: dict[str, np.ndarray] = {}
        memory = {f"{ALL}/{key}": array for key, array in self.shared.arrays().items()}
        for name, model in self.of_cluster.items():
            state |= {f"{name}/{key}": array for key, array in model.state.items()}
            memory |= {f"{name}/{key}": array for key, array in model.memory.states.arrays().items()}
        return state, memory

    def restore(self, state: Arrays, memory: Arrays, totals: Totals) -> None:
        """Go on from what `arrays` gave for a checkpoint."""
        self.totals = totals
        if state.keys() == self._start.keys():
            self.of_cluster = {ALL: self._model(state, memory)}
            return
        self.of_cluster = {name: self._model(_part(state, name), _part(memory, name)) for name in totals.clusters}
        self.shared = States(_part(memory, ALL))

    def _model(self, state: Arrays, remembered: Arrays) -> RunModel:
        return RunModel(self._study, self._tags, self._start, state, remembered)

    def _of_first_task(self, arrays: Arrays) -> SiteSums:
        """The sums by which sites are compared: of the first task with classes, or the first of all; see `likeness`."""
        tasks = sorted(
            (task for task in self._study.tasks if task.name in self._study.heads),
            key=lambda task: not isinstance(task, Task),
        )
        gram = arrays[f"{tasks[0].name}/gram"]
        cross = arrays[cross_name(tasks[0])] if isinstance(tasks[0], Task) else None
        return SiteSums(gram if gram.ndim == 2 else gram[0], cross)


def _part(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    return {key.partition("/")[2]: array for key, array in arrays.items() if key.partition("/")[0] == name}


class RoundAggregation:
    """Aggregates the updates of one round: each cluster's own entries by themselves, those that they share together."""

    def __init__(self, models: RunModels, stage: Stage, tags: Tags, clusters: AnyClusters | None) -> None:
        self._models = models
        self.of_cluster = {
            name: aggregator_for(stage, tags, model.memory.states, model.memory.ground(stage).study.input)
            for name, model in models.of_cluster.items()
        }
        self.gathered = {
            name: Gathered(own, up_shapes(models.of_cluster[name].memory.ground(stage)))
            for name, own in self.of_cluster.items()
        }
        """What sums its methods get of each cluster's sites."""
        self.sums: dict[str, Arrays] = {}
        """By site or group what it sent, where clusters are made of that."""
        self._groups = groups_of(clusters)
        self._keeps = rests_on(clusters) == stage.name
        self._shared: Aggregator | None = None
        ways: dict[str, Callable[[Update], None]] = {name: one.add for name, one in self.gathered.items()}
        if clusters is not None and models.apart and (own := frozenset(clusters.own.keys(tags))) != tags.keys():
            self._shared = aggregator_for(stage, tags, models.shared)
            ways = {name: partial(_split, mine, self._shared, own) for name, mine in self.of_cluster.items()}
            if isinstance(stage.aggregate, Sums):
                together = not has_own(stage, tags, clusters)
                ways = {n: (self._shared if together else mine).add for n, mine in self.of_cluster.items()}
        self._ways = ways
        self._heard: dict[str, int] = dict.fromkeys(ways, 0)

    def take(self, update: Update, site: str) -> None:
        """Take in the update of a site."""
        group = next((name for name, sites in self._groups.items() if site in sites), site)
        self._take(update, update.cluster or self._models.name_of(site), group)

    def take_sum(self, update: Update, group: str) -> None:
        """Take in what all sites that mask together have sent, as one update."""
        self._take(update, self._models.of_group(group), group)

    def _take(self, update: Update, cluster: str, group: str) -> None:
        if self._keeps:
            own = unpacked(update.tensors)
            before = self.sums.get(group, {})
            self.sums[group] = {key: array + before[key] if key in before else array for key, array in own.items()}
        self._heard[cluster] += 1
        self._ways[cluster](update)

    def results(self) -> dict[str, dict[str, np.ndarray]]:
        """By cluster the entries that change. A cluster none of whose sites answered keeps its own as they are."""
        models = self._models.of_cluster
        shared = {} if self._shared is None else self._shared.result(next(iter(models.values())).state)
        return {
            name: shared | (own.result(models[name].state) if name == ALL or self._heard[name] else {})
            for name, own in self.of_cluster.items()
        }

    @property
    def ridge_penalties(self) -> dict[str, float]:
        """By task the ridge penalty, where the sums have decided it; by cluster and task where there are clusters."""
        every = {ALL: self._shared} | self.of_cluster
        heads = {name: own for name, own in every.items() if isinstance(own, HeadAggregator)}
        return {
            f"{name}/{task}" if name else task: penalty
            for name, own in heads.items()
            for task, penalty in own.ridge_penalties.items()
        }

    @property
    def kept(self) -> list[Arrays]:
        """What each site sent, in their order, where the study says that it is kept: of one model of all sites."""
        return [arrays for own in self.of_cluster.values() if isinstance(own, HeadAggregator) for arrays in own.kept]


def _split(mine: Aggregator, shared: Aggregator, own: frozenset[str], update: Update) -> None:
    """Give the entries that a cluster has of its own to its aggregation, and the others to that of all."""
    mine.add(replace(update, tensors={key: array for key, array in update.tensors.items() if key in own}))
    shared.add(replace(update, tensors={key: array for key, array in update.tensors.items() if key not in own}))
