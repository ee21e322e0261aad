"""Distances from what training sites are like: a naive twin, and what a threshold promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.checks.explain import check_study
from fedgraft.common.closed_form.ood import (
    SHRINK,
    OodModel,
    counted,
    distances,
    threshold,
)
from helpers.work import MakeStudy

RNG = np.random.default_rng(5)
MEAN = RNG.normal(size=6)
MIX = RNG.normal(size=(6, 6))


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)) @ MIX + MEAN


def test_distances_are_those_of_a_naive_twin() -> None:
    covariance = MIX.T @ MIX
    features = drawn(20, 1)
    shrunk = (1 - SHRINK) * covariance + SHRINK * np.mean(np.diag(covariance)) * np.eye(6)
    naive = [np.sqrt((f - MEAN) @ np.linalg.inv(shrunk) @ (f - MEAN) / 6) for f in features]
    np.testing.assert_allclose(distances(features, MEAN, covariance), naive, rtol=1e-10)
    # A feature that never moved has no variance, and is no reason to divide by nothing.
    flat = covariance.copy()
    flat[0], flat[:, 0] = 0, 0
    assert np.isfinite(distances(features, MEAN, flat)).all()


@pytest.mark.parametrize("quantile", [0.9, 0.95, 0.99])
def test_a_further_image_is_farther_as_often_as_promised(quantile: float) -> None:
    """Exchangeable images: the rate of false flags is 1 - quantile, and never much more, however many sites counted."""
    rates = []
    for seed in range(60):
        found = distances(drawn(400, seed), MEAN, MIX.T @ MIX)
        counts = counted(found[:150]) + counted(found[150:200])
        rates.append(float(np.mean(found[200:] > threshold(counts, quantile))))
    assert 0.3 * (1 - quantile) < np.mean(rates) < 1.3 * (1 - quantile)


def test_the_threshold_is_the_quantile_of_all_sites_distances() -> None:
    found = np.sort(RNG.lognormal(0, 0.4, 199))
    for quantile, rank in ((0.9, 180), (0.95, 190), (0.99, 198)):
        value = threshold(counted(found[::2]) + counted(found[1::2]), quantile)
        assert found[rank - 1] <= value <= found[rank - 1] * 1.015
    few = threshold(counted(found[:10]), 0.99)  # ten images cannot promise one in a hundred: their largest
    assert found[9] <= few <= found[9] * 1.015
    with pytest.raises(InputError, match="No site has a validation image"):
        threshold(counted(np.zeros(0)), 0.99)
    assert np.isfinite(threshold(counted(np.array([0.0, 1e30, np.inf])), 0.99))


def test_moments_are_of_one_model_alone(tmp_path: Path) -> None:
    z = np.hstack([drawn(90, 3), np.ones((90, 1))])
    known = OodModel({"cls/gram": z.T @ z}, 1.5, 0.99, 80)
    np.testing.assert_allclose(known.mean, z[:, :6].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(known.covariance, np.cov(z[:, :6].T, bias=True), rtol=1e-4)
    assert OodModel.read(tmp_path, "a" * 64) is None
    known.write(tmp_path, "a" * 64)
    back = OodModel.read(tmp_path, "a" * 64)
    assert back is not None
    assert (back.threshold, back.quantile, back.cases) == (1.5, 0.99, 80)
    np.testing.assert_array_equal(back.distances(drawn(5, 2)), known.distances(drawn(5, 2)))
    with pytest.raises(InputError, match="not about the model"):
        OodModel.read(tmp_path, "b" * 64)
    data = bytearray((tmp_path / "moments.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "moments.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"moments\.safetensors: is not as it was written"):
        OodModel.read(tmp_path, "a" * 64)
    known.write(tmp_path, "a" * 64)
    facts = next(tmp_path.glob("*.json"))
    facts.write_text(facts.read_text().replace("1.5", "2.5"))
    with pytest.raises(InputError, match="is not as it was written"):
        OodModel.read(tmp_path, "a" * 64)


def flags(**more: object) -> dict[str, object]:
    return {"name": "fedavg", "rounds": 1, "local": {"epochs": 1}, "ood_detection": True, **more}


def test_flags_come_where_the_common_model_is_done(make_study: MakeStudy) -> None:
    def names(name: str) -> list[str]:
        return [stage.name for stage in make_study(method=flags(name=name, rounds=2)).plan]

    assert names("fedavg") == ["train", "describe", "distances"]
    assert names("graft") == ["probe", "train", "describe", "distances", "adapt"]
    assert names("fedper") == ["train", "describe", "distances"]
    for name in ("fedavg", "graft", "fedper", "ridge_probe", "local_finetuning"):
        check_study(make_study(method=flags(name=name)), "study.yaml")
    check_study(make_study(method=flags(), secure_aggregation=True), "study.yaml")


def test_flags_that_would_not_fit_are_refused(make_study: MakeStudy) -> None:
    train, describe, measure = (stage.model_dump(mode="json") for stage in make_study(method=flags(rounds=1)).plan)
    again = train | {"name": "again"}
    sums = {"noise_multiplier": 1.0}
    cases = {
        "no stage before this one has released moments": [train, measure],
        "the moments are of a backbone that has since changed": [describe, train, measure],
        "again goes on to change the backbone": [train, describe, measure, again],
        "counts of distances are not noised": [
            train, describe, measure | {"local": measure["local"] | {"private": sums}}
        ],
        "noised sums clip the features, so their moments": [
            train, describe | {"local": describe["local"] | {"private": sums}}, measure
        ],
        "sums of distances are aggregated by threshold, not by moments": [
            train, describe, measure | {"aggregate": {"kind": "moments"}}
        ],
    }  # fmt: skip
    for reason, plan in cases.items():
        with pytest.raises(StudyError, match=reason):
            check_study(make_study(plan=plan), "study.yaml")
    with pytest.raises(StudyError, match="train goes on to change the backbone"):
        check_study(make_study(method=flags(name="fedbn")), "study.yaml")
    split = {"train": 0.7, "val": 0.0, "test": 0.3}
    with pytest.raises(StudyError, match=r"split\.val is 0"):
        check_study(make_study(method=flags(), split=split, evaluate={"every": 0}), "study.yaml")
