"""Who should train together: against heads solved from the cases themselves, and sites of which the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.simulations.planning.grouping import SiteCases, grouping

EAST, WEST = ("a", "b"), ("c", "d")


def site(seed: int, turn: float, count: int = 60) -> SiteCases:
    """Two cases of each patient; the way the label lies in two features is a `turn` of a circle."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(count // 2) % 2, 2)
    way = np.array([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn), 0, 0, 0, 0])
    features = rng.normal(size=(count, 6)) + np.outer(1.2 * (2 * labels - 1), way) + 4 * turn
    patients = np.repeat(np.arange(count // 2), 2)
    return SiteCases(features, labels, patients, patients % 5)


@pytest.fixture(scope="module")
def opposed() -> dict[str, SiteCases]:
    return {name: site(at, 0.0 if name in EAST else 0.5) for at, name in enumerate((*EAST, *WEST))}


def naive(cases: dict[str, SiteCases], clusters: tuple[tuple[str, ...], ...]) -> float:
    """The mean AUROC with heads solved anew from the cases of a cluster without the patients that are asked about."""
    areas = []
    for name, own in cases.items():
        cluster = next(sites for sites in clusters if name in sites)
        best = 0.0
        for penalty in (0.1, 1.0, 10.0):
            scores = np.zeros(len(own.labels))
            for fold in range(5):
                kept = {one: cases[one].folds != fold if one == name else np.ones(60, bool) for one in cluster}
                f = np.vstack([cases[one].features[at] for one, at in kept.items()])
                y = np.concatenate([cases[one].labels[at] for one, at in kept.items()])
                z = np.hstack([f, np.ones((len(f), 1))])
                weight, bias = ridge_head(z.T @ z, z.T @ np.eye(2)[y], penalty)
                logits = own.features @ weight.T + bias
                asked = own.folds == fold
                scores[asked] = (logits[:, 1] - logits[:, 0])[asked]
            best = max(best, roc_auc_score(own.labels, scores))
        areas.append(best)
    return float(np.mean(areas))


def test_what_is_said_of_each_partition_is_what_heads_of_its_cases_give(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed, 2, 0)
    assert [len(one.clusters) for one in found.tried] == [4, 3, 2, 1]
    for one in found.tried:
        assert one.auroc == pytest.approx(naive(opposed, one.clusters), abs=0.002)  # scores that are close are ties


def test_sites_that_contradict_each_other_are_kept_apart(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed, 2, 0)
    assert (found.verdict, found.clusters) == ("clusters", (EAST, WEST))
    (best,) = [one for one in found.tried if one.clusters == (EAST, WEST)]
    assert best.low > 0.1
    assert best.low < best.difference < best.high


def test_three_kinds_of_sites_are_three_clusters_and_no_more() -> None:
    """Each kind's labels lie a third of a circle further."""
    kinds = {name: site(20 + at, (at // 3) / 3) for at, name in enumerate("abcdefghi")}
    found = grouping(kinds, 2, 0)
    assert (found.verdict, found.clusters) == ("clusters", (tuple("abc"), tuple("def"), tuple("ghi")))


def test_sites_of_one_kind_are_not_parted() -> None:
    """Whatever chance gives to one of the partitions, nobody is sent to train alone for it."""
    for seed in range(5):
        found = grouping({name: site(10 * seed + at, 0.1) for at, name in enumerate("abcd")}, 2, seed)
        assert found.verdict != "clusters"
    assert {one.clusters for one in found.tried} >= {(("a", "b", "c", "d"),)}


def test_too_few_cases_say_nothing(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed | {"e": site(9, 0.5, 18)}, 2, 0)
    assert found.verdict == "unknown"
    assert "e: fewer than 10 training cases of a class" in found.why
    assert not found.tried
