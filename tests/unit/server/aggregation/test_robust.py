"""Aggregations that a few sites cannot spoil, against their definitions in a few lines."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.instructions import Update
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Tag,
    named,
)
from fedgraft.common.study.stages.aggregates import (
    Aggregation,
    ClippedMean,
    Krum,
    Mean,
    Median,
    TrimmedMean,
)
from fedgraft.server.aggregation.aggregator import aggregator_for

TAGS = {
    "backbone.w": Tag(Role.BODY, 1),
    "backbone.n": Tag(Role.NORM_STATS, 1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
}
OLD = {
    "backbone.w": np.ones((3, 40), np.float32),
    "backbone.n": np.array(10, np.int64),
    "heads.cls.weight": np.zeros((2, 5), np.float32),
}


def honest(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        {
            key: (old + rng.normal(0.5, 0.1, old.shape)).astype(old.dtype) if old.ndim else old + n
            for key, old in OLD.items()
        }
        for n in range(count)
    ]


def aggregated(
    aggregate: Aggregation, sites: list[dict[str, np.ndarray]], labels: list[float] | None = None
) -> dict[str, np.ndarray]:
    stage = Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=aggregate)
    aggregator = aggregator_for(stage, TAGS)
    for tensors, count in zip(sites, labels or [5.0] * len(sites), strict=True):
        aggregator.add(Update(1, tensors, {"*": 5.0, "cls": count}, {}, {}))
    return aggregator.result(OLD)


def stacked(sites: list[dict[str, np.ndarray]], key: str) -> np.ndarray:
    return np.stack([site[key].astype(np.float64) for site in sites])


def test_the_median_of_each_coordinate() -> None:
    sites = honest(5)
    got = aggregated(Median(), sites)
    for key, old in OLD.items():
        np.testing.assert_array_equal(got[key], np.median(stacked(sites, key), axis=0).astype(old.dtype))
        assert got[key].dtype == old.dtype


@pytest.mark.parametrize(("count", "trim", "cut"), [(5, 0.2, 1), (10, 0.2, 2), (3, 0.1, 1), (4, 0.49, 1), (2, 0.2, 0)])
def test_the_trimmed_mean_cuts_at_either_end(count: int, trim: float, cut: int) -> None:
    sites = honest(count)
    values = np.sort(stacked(sites, "backbone.w"), axis=0)[cut : count - cut]
    np.testing.assert_allclose(aggregated(TrimmedMean(trim=trim), sites)["backbone.w"], values.mean(axis=0), rtol=1e-6)


def test_krum_takes_the_update_in_the_middle_of_the_others() -> None:
    sites = honest(5)
    middle = {key: np.mean(stacked(sites, key), axis=0).astype(OLD[key].dtype) for key in OLD}
    got = aggregated(Krum(), [*sites[:4], middle])
    for key in OLD:
        np.testing.assert_array_equal(got[key], middle[key])
    several = aggregated(Krum(keep=3), sites)["backbone.w"]
    means = [
        np.mean(stacked([sites[a], sites[b], sites[c]], "backbone.w"), axis=0)
        for a in range(5)
        for b in range(a)
        for c in range(b)
    ]
    assert min(float(np.abs(several - mean).max()) for mean in means) < 1e-6


def test_krum_is_not_blinded_by_statistics_of_another_scale() -> None:
    """Variances differ by hundreds, and parameters by tenths: who is honest in the ones may lie in the others."""
    tags = TAGS | {"backbone.v": Tag(Role.NORM_STATS, 1)}
    old = OLD | {"backbone.v": np.ones(40, np.float32)}
    rng = np.random.default_rng(3)
    sites = [site | {"backbone.v": rng.normal(1000, 300, 40).astype(np.float32)} for site in honest(6)]
    middle = np.mean(stacked(sites, "backbone.v"), axis=0).astype(np.float32)
    liar = sites[0] | {"backbone.v": middle, "backbone.w": OLD["backbone.w"] - 5}
    stage = Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=Krum())
    aggregator = aggregator_for(stage, tags)
    for tensors in (*sites, liar):
        aggregator.add(Update(1, tensors, {"*": 5.0, "cls": 5.0}, {}, {}))
    assert (aggregator.result(old)["backbone.w"] > 0).all()


def test_krum_needs_enough_sites() -> None:
    with pytest.raises(RunError, match="needs 5 sites, and 4 answered"):
        aggregated(Krum(), honest(4))


def test_the_clipped_mean_holds_every_change_to_the_median_norm() -> None:
    sites = honest(3)
    changes = [{key: site[key].astype(np.float64) - OLD[key] for key in OLD} for site in sites]
    norms = [np.sqrt(sum(float((c**2).sum()) for c in change.values())) for change in changes]
    factors = [min(1.0, 2 * float(np.median(norms)) / norm) for norm in norms]
    want = OLD["backbone.w"] + sum(f * c["backbone.w"] for f, c in zip(factors, changes, strict=True)) / 3
    np.testing.assert_allclose(aggregated(ClippedMean(bound=2.0), sites)["backbone.w"], want, rtol=1e-6)


ROBUST = [Median(), TrimmedMean(), Krum(), ClippedMean()]


@pytest.mark.parametrize("aggregate", ROBUST, ids=lambda aggregate: aggregate.kind)
@pytest.mark.parametrize("attack", [100.0, -100.0, 0.0])
def test_one_of_five_sites_moves_the_result_by_no_more_than_the_honest_differ(
    aggregate: Aggregation, attack: float
) -> None:
    """A site that multiplies its change by 100, turns it round, or sends nothing new; the plain mean is moved far."""
    sites = honest(5)
    evil = {key: (OLD[key] + attack * (sites[4][key] - OLD[key])).astype(OLD[key].dtype) for key in OLD}
    calm, attacked = aggregated(aggregate, sites), aggregated(aggregate, [*sites[:4], evil])
    for key in ("backbone.w", "heads.cls.weight"):
        spread = np.ptp(stacked(sites, key), axis=0).max()
        if isinstance(aggregate, ClippedMean):  # bounded, but still pulled: by the honest norm at most, over five
            spread = 2 * np.abs(stacked(sites, key) - OLD[key]).max() / 5
        assert np.abs(attacked[key].astype(np.float64) - calm[key]).max() <= spread
    if attack:
        moved = aggregated(Mean(), [*sites[:4], evil])["backbone.w"] - aggregated(Mean(), sites)["backbone.w"]
        assert np.abs(moved).max() > 5


@pytest.mark.parametrize("aggregate", ROBUST, ids=lambda aggregate: aggregate.kind)
def test_sites_without_labels_have_no_say_in_a_head(aggregate: Aggregation) -> None:
    sites = honest(7)
    spoilt = [*sites[:5], *({**site, "heads.cls.weight": site["heads.cls.weight"] + 0.2} for site in sites[5:])]
    labels = [5.0] * 5 + [0.0] * 2
    head = aggregated(aggregate, spoilt, labels)["heads.cls.weight"]
    assert head.max() <= stacked(sites[:5], "heads.cls.weight").max() + 1e-6
    nobody = aggregated(aggregate, sites, [0.0] * 7)
    assert set(nobody) == {"backbone.w", "backbone.n"}


@pytest.mark.parametrize("aggregate", ROBUST, ids=lambda aggregate: aggregate.kind)
def test_nothing_new_from_anybody_changes_nothing(aggregate: Aggregation) -> None:
    got = aggregated(aggregate, [OLD] * 5)
    assert all((got[key] == OLD[key]).all() for key in OLD)
