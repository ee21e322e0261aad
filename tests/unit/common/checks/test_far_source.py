"""Weights from elsewhere are not torn at in silence: a study that needs two steps is told so, and none other."""

from __future__ import annotations

from typing import Any

import pytest

from fedgraft.common.checks.far_source import torn, weights_advice
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.weights import WeightsManifest
from fedgraft.common.study.inputs import ImageInput
from helpers.work import MakeStudy

LOCAL = {"rounds": 1, "local": {"epochs": 1}}
STILL = {"rounds": 1, "local": {"epochs": 1, "fixed_norm_stats": True}}


def advice_for(
    make_study: MakeStudy, trained_on: str = "photographs", how: str = "imported from a.pth", **asked: Any
) -> str:
    manifest = WeightsManifest(
        id="far",
        backbone="slim_resnet",
        sha256="0" * 64,
        keys=1,
        input=ImageInput(size=32),
        classes={},
        trained_on=trained_on,
        licence="none",
        synthetic=False,
        how=how,
    )
    study = make_study(**asked)
    return torn(study, manifest, make_model(study).tags())


@pytest.mark.parametrize(("shown", "trained_at", "said"), [(64, 224, True), (112, 224, False), (224, 64, False)])
def test_images_much_smaller_than_what_weights_were_trained_on_are_named(
    make_study: MakeStudy, shown: int, trained_at: int, said: bool
) -> None:
    study = make_study(input={"kind": "image", "size": shown, "channels": 1}, method={"name": "ridge_probe"})
    facts = {"id": "far", "backbone": "slim_resnet", "sha256": "0" * 64, "keys": 1, "classes": {}, "licence": "none"}
    facts |= {"input": ImageInput(size=trained_at), "trained_on": "photographs", "synthetic": False, "how": "imported"}
    tags = make_model(study).tags()
    advised = weights_advice(study, WeightsManifest(**facts), tags)
    assert any(f"{trained_at} pixels, and the study shows it {shown}" in sentence for sentence in advised) is said
    assert weights_advice(study, WeightsManifest(**facts | {"trained_on": "study other"}), tags) == ()


@pytest.mark.parametrize(
    ("method", "weights", "said"),
    [
        ({"name": "graft", **LOCAL}, None, True),
        ({"name": "graft", **STILL}, None, False),
        ({"name": "graft", **LOCAL}, "slim-ctmr-synthetic", False),
        ({"name": "fedavg", **LOCAL}, None, False),
        ({"name": "ridge_probe"}, None, False),
    ],
)
def test_heads_on_features_of_random_entries_that_then_change_scale_are_named(
    make_study: MakeStudy, method: dict[str, Any], weights: str | None, said: bool
) -> None:
    study = make_study(method=method, model={"backbone": "slim_resnet", "weights": weights})
    advised = weights_advice(study, None, make_model(study).tags())
    assert any("solves heads on features of random entries" in sentence for sentence in advised) is said


@pytest.mark.parametrize(
    ("method", "heads", "statistics"),
    [
        ({"name": "fedavg", **LOCAL}, True, True),
        ({"name": "fedavg", **STILL}, True, False),
        ({"name": "graft", **LOCAL}, False, True),
        ({"name": "lp_ft", "rounds": 2, "local": {"epochs": 1}}, False, True),
    ],
)
def test_what_would_tear_is_named(make_study: MakeStudy, method: dict[str, Any], heads: bool, statistics: bool) -> None:
    said = advice_for(make_study, method=method)
    assert "photographs" in said
    assert "method: probe_finetune" in said
    assert ("heads are still random" in said, "norm statistics move" in said) == (heads, statistics)


@pytest.mark.parametrize("name", ["probe_finetune", "ridge_probe", "linear_probe"])
def test_two_steps_and_frozen_features_are_let_be(make_study: MakeStudy, name: str) -> None:
    assert advice_for(make_study, method={"name": name, **LOCAL}) == ""


def test_weights_of_a_study_are_not_from_elsewhere(make_study: MakeStudy) -> None:
    fedavg = {"name": "fedavg", **LOCAL}
    assert advice_for(make_study, "study one over 3 sites", method=fedavg) == ""
    assert advice_for(make_study, "study a and study b", "mean of a (00) and b (11)", method=fedavg) == ""
