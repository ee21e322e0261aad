"""Who should train together: against heads solved from the cases themselves, and sites of which the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedgraft.common.closed_form.closed_form import ridge_head
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Task
from fedgraft.simulations.planning.grouping import SiteCases, grouping

EAST, WEST = ("a", "b"), ("c", "d")
TWO = Task(name="cls", classes=("no", "yes"))
SIZE = Regression(name="size", kind="regression", unit="mm", mean=20.0, std=10.0)
SIGNS = Multilabel(name="signs", kind="multilabel", labels=("one", "two"))


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
            scores = np.zeros(len(own.targets))
            for fold in range(5):
                kept = {one: cases[one].folds != fold if one == name else np.ones(60, bool) for one in cluster}
                f = np.vstack([cases[one].features[at] for one, at in kept.items()])
                y = np.concatenate([cases[one].targets[at] for one, at in kept.items()])
                z = np.hstack([f, np.ones((len(f), 1))])
                weight, bias = ridge_head(z.T @ z, z.T @ np.eye(2)[y], penalty)
                logits = own.features @ weight.T + bias
                asked = own.folds == fold
                scores[asked] = (logits[:, 1] - logits[:, 0])[asked]
            best = max(best, roc_auc_score(own.targets, scores))
        areas.append(best)
    return float(np.mean(areas))


def test_what_is_said_of_each_partition_is_what_heads_of_its_cases_give(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed, TWO, 0)
    assert [len(one.clusters) for one in found.tried] == [4, 3, 2, 1]
    for one in found.tried:
        assert one.value == pytest.approx(naive(opposed, one.clusters), abs=0.002)  # scores that are close are ties


def test_sites_that_contradict_each_other_are_kept_apart(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed, TWO, 0)
    assert (found.verdict, found.clusters) == ("clusters", (EAST, WEST))
    (best,) = [one for one in found.tried if one.clusters == (EAST, WEST)]
    assert best.low > 0.1
    assert best.low < best.difference < best.high


def test_three_kinds_of_sites_are_three_clusters_and_no_more() -> None:
    """Each kind's labels lie a third of a circle further."""
    kinds = {name: site(20 + at, (at // 3) / 3) for at, name in enumerate("abcdefghi")}
    found = grouping(kinds, TWO, 0)
    assert (found.verdict, found.clusters) == ("clusters", (tuple("abc"), tuple("def"), tuple("ghi")))


def test_sites_of_one_kind_are_not_parted() -> None:
    """Whatever chance gives to one of the partitions, nobody is sent to train alone for it."""
    for seed in range(5):
        found = grouping({name: site(10 * seed + at, 0.1) for at, name in enumerate("abcd")}, TWO, seed)
        assert found.verdict != "clusters"
    assert {one.clusters for one in found.tried} >= {(("a", "b", "c", "d"),)}


def test_too_few_cases_say_nothing(opposed: dict[str, SiteCases]) -> None:
    found = grouping(opposed | {"e": site(9, 0.5, 18)}, TWO, 0)
    assert found.verdict == "unknown"
    assert "e: fewer than 10 training cases of a class" in found.why
    assert not found.tried


def of_kind(task: AnyTask, own: SiteCases, seed: int) -> SiteCases:
    """The same site with values in mm, or labels of which the second is not known of some, in place of classes."""
    rng = np.random.default_rng(seed)
    if task is SIZE:
        return replace(own, targets=(20 + 8 * (2 * own.targets - 1) + rng.normal(size=len(own.targets))))
    both = np.stack([own.targets, 1 - own.targets], axis=1).astype(np.float32)
    both[::9, 1] = np.nan
    return replace(own, targets=both)


def naive_of_kind(task: AnyTask, cases: dict[str, SiteCases], clusters: tuple[tuple[str, ...], ...]) -> float:
    """The mean figure over sites, case by case, with heads solved without the patients that are asked about."""
    figures = []
    for name, own in cases.items():
        cluster, tried = next(sites for sites in clusters if name in sites), []
        for penalty in (0.1, 1.0, 10.0):
            several = []
            for label in range(1 if task is SIZE else 2):
                score = np.zeros(len(own.targets))
                for fold in range(5):
                    f, y = [], []
                    for one in cluster:
                        for case in range(len(cases[one].targets)):
                            answer = cases[one].targets[case] if task is SIZE else cases[one].targets[case, label]
                            if not np.isnan(answer) and not (one == name and own.folds[case] == fold):
                                f.append([*cases[one].features[case], 1.0])
                                y.append([(answer - 20) / 10 if task is SIZE else 2 * answer - 1])
                    z = np.array(f)
                    weight, bias = ridge_head(z.T @ z, z.T @ np.array(y), penalty)
                    asked = own.folds == fold
                    score[asked] = (own.features @ weight.T + bias)[asked, 0]
                if task is SIZE:
                    several.append(-np.mean([abs(20 + 10 * s - t) for s, t in zip(score, own.targets, strict=True)]))
                else:
                    known = ~np.isnan(own.targets[:, label])
                    several.append(roc_auc_score(own.targets[known, label], score[known]))
            tried.append(np.mean(several))
        figures.append(max(tried))
    return float(np.mean(figures))


@pytest.mark.parametrize("task", [SIZE, SIGNS], ids=lambda task: task.kind)
def test_sites_are_grouped_by_values_and_by_labels_too(task: AnyTask, opposed: dict[str, SiteCases]) -> None:
    cases = {name: of_kind(task, own, at) for at, (name, own) in enumerate(opposed.items())}
    found = grouping(cases, task, 0)
    assert (found.verdict, found.clusters) == ("clusters", (EAST, WEST))
    assert found.metric == ("MAE (mm)" if task is SIZE else "AUROC")
    sign = -1 if task is SIZE else 1
    for one in found.tried[-2:]:
        assert one.value == pytest.approx(sign * naive_of_kind(task, cases, one.clusters), abs=0.002)
    (best,) = [one for one in found.tried if one.clusters == (EAST, WEST)]
    assert best.low < best.difference < best.high
    assert best.difference * sign > 0, "less error is better"
    few = grouping(cases | {"e": of_kind(task, site(9, 0.5, 18), 9)}, task, 0)
    assert few.verdict == "unknown"
    assert f"e: fewer than {20 if task is SIZE else 10} training cases" in few.why
