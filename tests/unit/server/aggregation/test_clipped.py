"""Norm clipping with weights, against its definition and against sites that lie in what they send, or in their size."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Update
from fedgraft.common.study.plan import Gradient, Role, Stage, Tag, named
from fedgraft.common.study.stages.aggregates import Aggregation, ClippedMean, Mean
from fedgraft.server.aggregation.aggregator import aggregator_for
from fedgraft.server.aggregation.clipped import capped

TAGS = {
    "w": Tag(Role.BODY, 1),
    "running_mean": Tag(Role.NORM_STATS, 1),
    "num_batches": Tag(Role.NORM_STATS, 1),
}
OLD = {"w": np.zeros(40), "running_mean": np.zeros(6), "num_batches": np.array(0, np.int64)}
WEIGHTED = ClippedMean(weight="examples")
Change = dict[str, np.ndarray]


def honest(count: int) -> list[Change]:
    """Changes of about norm 1 that mostly agree, after visits of 500 batches."""
    rng = np.random.default_rng(4)
    return [
        {
            "w": rng.normal(0.15, 0.05, 40),
            "running_mean": rng.normal(1, 0.2, 6),
            "num_batches": np.array(500 + n, np.int64),
        }
        for n in range(count)
    ]


def aggregated(aggregate: Aggregation, sites: list[Change], cases: list[float]) -> Change:
    stage = Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=aggregate)
    aggregator = aggregator_for(stage, TAGS)
    for tensors, count in zip(sites, cases, strict=True):
        aggregator.add(Update(1, tensors, {"*": count}, {}, {}))
    return aggregator.result(OLD)


def error(aggregate: Aggregation, share: float, times: float) -> float:
    """How far the result is from the honest one, in its norms, if a site of this share sends `times` its change."""
    sites, others = honest(8), (1 - share) / 7
    cases = [1000 * share, *[1000 * others] * 7]
    liar = {key: (array * times).astype(array.dtype) for key, array in sites[0].items()}
    calm, moved = aggregated(Mean(), sites, cases)["w"], aggregated(aggregate, [liar, *sites[1:]], cases)["w"]
    return float(np.linalg.norm(moved - calm) / np.linalg.norm(calm))


@pytest.mark.parametrize("share", [0.006, 0.517])
def test_a_site_that_sends_a_thousand_times_its_change_is_held(share: float) -> None:
    """MediSwarm's measurement: .6 % of all cases ruin the weighted mean, and 51.7 % ruin it beyond all measure."""
    assert error(Mean(), share, 1000) > 900 * share
    assert error(WEIGHTED, share, 1000) < 0.2
    assert error(WEIGHTED, share, -1000) < 2 * min(share, 0.5) + 0.2


def test_what_is_clipped_and_weighed_is_the_definition() -> None:
    sites, cases = honest(5), [10.0, 20.0, 30.0, 15.0, 25.0]
    sites[1] = {key: (array * 7).astype(array.dtype) for key, array in sites[1].items()}
    norms = [np.sqrt((one["w"] ** 2).sum()) for one in sites]
    most = 1.5 * sorted(norms)[2]
    want = sum(n / 100 * min(1.0, most / norm) * one["w"] for n, norm, one in zip(cases, norms, sites, strict=True))
    found = aggregated(ClippedMean(weight="examples", bound=1.5), sites, cases)
    np.testing.assert_allclose(found["w"], want, rtol=1e-12)


def test_statistics_and_counters_do_not_loosen_the_bound_nor_hide_behind_it() -> None:
    """500 batches a visit are counted beside changes of norm 1: as one vector they would let a change of 500 pass."""
    sites, cases = honest(5), [20.0] * 5
    sites[0] = sites[0] | {"w": sites[0]["w"] * 300}
    sites[1] = sites[1] | {"running_mean": sites[1]["running_mean"] * 1e6}
    found = aggregated(WEIGHTED, sites, cases)
    assert np.linalg.norm(found["w"]) < 1.5
    assert np.linalg.norm(found["running_mean"]) < 4


def test_who_claims_all_cases_counts_half() -> None:
    sites = honest(4)
    liar = {key: -array for key, array in sites[0].items()}
    found = aggregated(WEIGHTED, [liar, *sites[1:]], [1e9, 10.0, 10.0, 10.0])["w"]
    want = 0.5 * liar["w"] + sum(one["w"] for one in sites[1:]) / 6
    assert np.abs(found - want).max() < 0.02


def test_shares_add_up_and_none_is_above_the_largest() -> None:
    assert capped(np.array([1.0, 1.0, 2.0]), 0.5).tolist() == [0.25, 0.25, 0.5]
    np.testing.assert_allclose(capped(np.array([80.0, 10.0, 6.0, 4.0]), 0.4), [0.4, 0.3, 0.18, 0.12])
    np.testing.assert_allclose(capped(np.array([80.0, 15.0, 4.0, 1.0]), 0.4), [0.4, 0.4, 0.16, 0.04])
    assert capped(np.array([9.0, 1.0, 0.0]), 0.4).tolist() == [0.5, 0.5, 0.0]
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts, most = rng.lognormal(0, 3, 6), rng.uniform(0.17, 1)
        found = capped(counts, most)
        assert found.sum() == pytest.approx(1)
        assert found.max() <= most + 1e-9
        assert (np.diff(found[np.argsort(counts)]) >= -1e-12).all()
