"""From the sites' updates to new state entries. Updates are taken one at a time, in a fixed order, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedgraft.common.closed_form.closed_form import automatic_penalties, heads_from_sums, scale_from_sums
from fedgraft.common.closed_form.cox import take_step
from fedgraft.common.closed_form.logistic import logistic_heads
from fedgraft.common.closed_form.moments import FeatureMoments, moments_from_sums
from fedgraft.common.closed_form.newton import stepped_heads
from fedgraft.common.closed_form.ood import DistanceThreshold, threshold
from fedgraft.common.closed_form.penalty import RIDGE_PENALTIES, penalties_for
from fedgraft.common.closed_form.survival import keep_counts
from fedgraft.common.closed_form.temperature import tempered
from fedgraft.common.harmonisation.combat import common_from_sums
from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.protocol.packed_symmetric import unpacked
from fedgraft.common.protocol.routing import DISTANCES, Tags, retains_statistics
from fedgraft.common.protocol.states import States
from fedgraft.common.study.inputs import InputSpec, TableInput
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.aggregates import (
    AdaptersProduct,
    ClippedMean,
    ComBat,
    Cox,
    Discriminant,
    KaplanMeier,
    Krum,
    Logistic,
    Mean,
    Median,
    Moments,
    NearestMean,
    Newton,
    Nothing,
    Ridge,
    Robust,
    ServerOptimiser,
    Standardise,
    Sums,
    Temper,
    Threshold,
    TrimmedMean,
)
from fedgraft.server.aggregation.adapters import AdaptersAggregator
from fedgraft.server.aggregation.clipped import ClippedMeanAggregator
from fedgraft.server.aggregation.mean import MeanAggregator
from fedgraft.server.aggregation.optimiser import ServerOptimiserAggregator
from fedgraft.server.aggregation.ridge_penalty import choose
from fedgraft.server.aggregation.robust import RobustAggregator


class Aggregator(Protocol):
    """Takes updates as they come, keeps only their sum, and turns it into new entries."""

    def add(self, update: Update) -> None:
        """Take in one site's update; its arrays are not kept."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """The entries that change, with the types that they have in `state`."""


def aggregator_for(
    stage: Stage, tags: Tags, states: States | None = None, given: InputSpec | None = None
) -> Aggregator:
    """What aggregates the updates of this stage; in `states` is what it remembers from round to round.

    `given` is the study's input, by which errors name columns.
    """
    states = States() if states is None else states
    match stage.aggregate:
        case Mean():
            return MeanAggregator(stage.aggregate, tags)
        case AdaptersProduct():
            return AdaptersAggregator(stage.aggregate, tags)
        case ServerOptimiser():
            return ServerOptimiserAggregator(stage, stage.aggregate, tags, states)
        case Median() | TrimmedMean() | Krum() | ClippedMean():
            return _robust(stage.aggregate, tags)
        case Nothing():
            return NothingAggregator()
        case _:
            return _of_sums(stage, stage.aggregate, states, given)


def _robust(aggregate: Robust, tags: Tags) -> Aggregator:
    if isinstance(aggregate, ClippedMean):
        return ClippedMeanAggregator(aggregate, tags)
    return RobustAggregator(aggregate, tags)


def _of_sums(stage: Stage, aggregate: Sums, states: States, given: InputSpec | None) -> Aggregator:
    match aggregate:
        case ComBat():
            return ComBatAggregator(given if isinstance(given, TableInput) else None)
        case Standardise():
            return StandardiseAggregator()
        case Temper():
            return TemperAggregator()
        case Moments() | Threshold() | KaplanMeier() | Cox():
            return _of_description(stage, aggregate, states)
        case Logistic():
            return LogisticAggregator(aggregate)
        case _:
            return HeadAggregator(aggregate, penalties_for(stage), keep=retains_statistics(stage))


def _of_description(stage: Stage, aggregate: Moments | Threshold | KaplanMeier | Cox, states: States) -> Aggregator:
    """What changes no entry of the model, but is put among the `states`."""
    match aggregate:
        case Moments():
            return MomentsAggregator(states)
        case Threshold(quantile=quantile):
            return ThresholdAggregator(quantile, states)
        case KaplanMeier():
            return SurvivalAggregator(stage.name, states)
        case Cox():
            return CoxAggregator(stage, states)


class _SumAggregator:
    """Adds up the sites' arrays by name; what is made of the totals is each subclass's."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, update: Update) -> None:
        """Add a site's sums, in float64, halves of symmetric matrices unpacked."""
        for key, array in unpacked(update.tensors).items():
            self._sums[key] = self._sums[key] + array if key in self._sums else array


class HeadAggregator(_SumAggregator):
    """Sums of features and labels, then one head per task, solved from them, or a step of it."""

    def __init__(
        self,
        aggregate: Ridge | NearestMean | Discriminant | Newton,
        penalties: Sequence[float] = RIDGE_PENALTIES,
        *,
        keep: bool = False,
    ) -> None:
        """`penalties` are those that are chosen from, where the sums choose."""
        super().__init__()
        self._aggregate = aggregate
        self._penalties = penalties
        self._keep = keep
        self._sites: list[Arrays] = []
        self.ridge_penalties: dict[str, float] = {}
        """By task the ridge penalty, where it was chosen from the sums: `auto` or `loso`."""

    @property
    def kept(self) -> list[Arrays]:
        """What each site sent, in the order in which it came in; nothing unless the study says that it is kept."""
        return self._sites if self._keep else []

    def add(self, update: Update) -> None:
        """Add the site's sums; each is kept if the study says so, or to choose the ridge penalty on sites left out."""
        super().add(update)
        if self._keep or self._chooses:
            self._sites.append(unpacked(update.tensors))

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Heads that solve the pooled problem. RunError if no site had a label."""
        if self._chooses and self._sites:
            self.ridge_penalties = choose(self._sites, self._penalties, standardise=isinstance(self._aggregate, Ridge))
        if isinstance(self._aggregate, Ridge) and self._aggregate.ridge_penalty == "auto" and self._sums:
            self.ridge_penalties = automatic_penalties(self._sums, self._penalties)
        if isinstance(self._aggregate, Newton):
            return stepped_heads(self._sums, self._aggregate, state, self.ridge_penalties)
        return heads_from_sums(self._sums, self._aggregate, state, self.ridge_penalties)

    @property
    def _chooses(self) -> bool:
        return isinstance(self._aggregate, Ridge | Newton) and self._aggregate.ridge_penalty == "loso"


class LogisticAggregator(_SumAggregator):
    """Sums of slopes and curvatures, then the heads after a step of Newton's method."""

    def __init__(self, aggregate: Logistic) -> None:
        super().__init__()
        self._aggregate = aggregate

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Heads after the pooled step. RunError if no site had a label."""
        return logistic_heads(self._sums, self._aggregate, state)


class StandardiseAggregator(_SumAggregator):
    """Sums of columns, then the mean and deviation of the model's first layer."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Mean and deviation of the columns, as entries of the standardising layer."""
        return scale_from_sums(self._sums, state)


class ComBatAggregator(_SumAggregator):
    """Sums of columns and covariates, then what is common to all sites in the layer that harmonises."""

    def __init__(self, columns: TableInput | None) -> None:
        super().__init__()
        self._columns = columns

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Entries of that layer. RunError if a covariate's effect cannot be told from the sites' own."""
        names = ([], []) if self._columns is None else (self._columns.covariate_names, list(self._columns.harmonised))
        found = common_from_sums(self._sums, *names)
        keys = {name: next(key for key in state if key.endswith(f"harmonise.{name}")) for name in found}
        return {key: found[name].astype(state[key].dtype) for name, key in keys.items()}


class TemperAggregator(_SumAggregator):
    """Sums of losses on a grid of temperatures, then the entries with the best ones in them."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:
        """Base models' temperatures, or heads. RunError if no site had a label."""
        return tempered(self._sums, state)


class MomentsAggregator(_SumAggregator):
    """Sums of features, then their mean and covariance, which later stages find among the `states`."""

    def __init__(self, states: States) -> None:
        super().__init__()
        self._states = states

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entry of the model changes. RunError if there were fewer than two cases."""
        self._states.put("", FeatureMoments(moments_from_sums(self._sums), self._sums))
        return {}


class ThresholdAggregator(_SumAggregator):
    """Counts of distances, then from where on an image is unlike those of the sites, put among the `states`."""

    def __init__(self, quantile: float, states: States) -> None:
        super().__init__()
        self._quantile = quantile
        self._states = states

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entry of the model changes. InputError if no site has a validation image."""
        counts = self._sums[DISTANCES]
        found = threshold(counts, self._quantile)
        facts = {"threshold": found, "quantile": self._quantile, "cases": np.rint(counts.sum())}
        self._states.put("", DistanceThreshold({name: np.array(value) for name, value in facts.items()}))
        return {}


class SurvivalAggregator(_SumAggregator):
    """Counts of who left when, put among the `states`, from which the run's result has its curves."""

    def __init__(self, stage: str, states: States) -> None:
        super().__init__()
        self._stage = stage
        self._states = states

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entry of the model changes."""
        keep_counts(self._stage, self._sums, self._states)
        return {}


class CoxAggregator(_SumAggregator):
    """Sums of who was at risk, then the coefficients after a step of Newton's method, put among the `states`."""

    def __init__(self, stage: Stage, states: States) -> None:
        super().__init__()
        self._stage = stage
        self._states = states

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entry of the model changes. RunError if there was no event."""
        take_step(self._stage, self._sums, self._states)
        return {}


class NothingAggregator:
    """Nothing comes back, nothing changes."""

    def add(self, update: Update) -> None:
        """Ignores the update: the stage shares nothing."""

    def result(self, state: Arrays) -> dict[str, np.ndarray]:  # noqa: ARG002 - the protocol's signature
        """No entries: the state stays as it was."""
        return {}
