"""Fine-tuning controls: which entries learn when, at which rate, and which combinations are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.common.base.seeds import derive
from fedgraft.common.checks.check import check
from fedgraft.common.checks.explain import plan_table, sentence
from fedgraft.common.models.model import Extras, build_model
from fedgraft.common.protocol.rates import rate_of
from fedgraft.common.study.methods.ensembles import ENSEMBLES
from fedgraft.common.study.methods.presets import NamedMethod, expand, presets
from fedgraft.common.study.model_spec import Adapters
from fedgraft.common.study.plan import ADAPTERS, Gradient, Role, Select
from fedgraft.common.study.study import Study, parse_study
from helpers.work import NOW, moved, snapshot, steps

MODEL = build_model("slim_resnet", {"cls": 3}, channels=1, seed=0)
TAGS = MODEL.tags()
ADAPTED = build_model("slim_resnet", {"cls": 3}, channels=1, seed=0, extras=Extras(adapters=Adapters(where="all")))


def a_study(plan: list[dict[str, Any]], **more: Any) -> Study:
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}]
    return parse_study({"name": "x", "tasks": tasks, "plan": plan, **more}, "here")


@pytest.mark.parametrize("name", [name for name in presets() if name not in ENSEMBLES])
@pytest.mark.parametrize("rounds", [1, 7])
def test_every_preset_works_and_is_explained(name: str, rounds: int) -> None:
    stages = expand(NamedMethod(name=name, rounds=rounds), table=False)
    adapts = any(ADAPTERS & stage.local.train.roles for stage in stages if isinstance(stage.local, Gradient))
    own, more = (ADAPTED, {"model": {"adapters": {"where": "all"}}}) if adapts else (MODEL, {})
    study = a_study([stage.model_dump() for stage in stages], **more)
    assert check(study, own.tags()) == []
    sizes = {key: int(value.numel()) for key, value in own.state_dict().items()}
    for stage, row in zip(study.plan, plan_table(study, own.tags(), sizes), strict=True):
        assert sentence(stage, row).endswith(".")


def test_gradual_unfreezing_opens_one_block_after_the_other_and_all_at_last() -> None:
    stages = expand(NamedMethod(name="gradual_unfreezing", rounds=10), table=False)
    assert sum(stage.rounds for stage in stages) == 10
    opened = [set(stage.local.train.keys(TAGS)) for stage in stages]
    assert {TAGS[key].role for key in opened[0]} == {Role.HEAD}
    assert all(one < two for one, two in pairwise(opened))
    assert opened[1] == {key for key in TAGS if key.startswith(("heads", "backbone.blocks.3"))}
    assert opened[-1] == set(TAGS)


def test_fixbn_fixes_statistics_after_its_warm_up(attack_target) -> None:
    warm, fixed = expand(NamedMethod(name="fixbn", rounds=6), table=False)
    assert (warm.rounds, fixed.rounds) == (3, 3)
    assert (warm.local.fixed_norm_stats, fixed.local.fixed_norm_stats) == (False, True)


def test_lp_ft_trains_heads_alone_and_then_all() -> None:
    probe, tune = expand(NamedMethod(name="lp_ft", rounds=5), table=False)
    assert {TAGS[key].role for key in probe.local.train.keys(TAGS)} == {Role.HEAD}
    assert (probe.rounds, tune.rounds) == (2, 3)
    assert set(tune.local.train.keys(TAGS)) == set(TAGS)


def test_rates_fall_from_block_to_block(attack_target) -> None:
    (full, loader), (falling, _) = attack_target(), attack_target()
    before = snapshot(full)
    train(full, loader, steps(1, momentum=0), tuple(full.tags), NOW)
    train(falling, loader, steps(1, momentum=0, layer_decay=0.5), tuple(falling.tags), NOW)
    for key, blocks in (("heads.cls.weight", 0), ("backbone.blocks.3.bn2.bias", 1), ("backbone.conv1.weight", 5)):
        assert falling.tags[key].height == blocks
        whole, part = snapshot(full)[key] - before[key], snapshot(falling)[key] - before[key]
        np.testing.assert_allclose(part, whole * 0.5**blocks, rtol=2e-2, atol=2e-7)
        assert np.abs(whole).max() > 1e-4
    spec = steps(1, lr=0.4, layer_decay=0.5, backbone_lr_factor=0.1)
    assert rate_of(spec, falling.tags["backbone.blocks.3.bn2.bias"]) == pytest.approx(0.4 * 0.1 * 0.5)


def test_heads_learn_first_and_then_all_else(attack_target) -> None:
    """FedRep's visit is that of two trainings by hand, one after the other."""
    (ours, loader), (hand, _) = attack_target(), attack_target()
    keys = tuple(ours.tags)
    facts = train(ours, loader, steps(2, heads_first=3), keys, NOW)
    heads = [key for key in keys if key.startswith("heads")]
    before = snapshot(hand)
    train(hand, loader, steps(3), heads, RoundContext(derive(NOW.seed, "heads"), 1, 1))
    assert moved(before, snapshot(hand)) == set(heads)
    middle = snapshot(hand)
    train(hand, loader, steps(2), [key for key in keys if key not in heads], NOW)
    assert moved(middle, snapshot(hand)) == set(keys) - set(heads)
    assert not moved(snapshot(ours), snapshot(hand))
    assert facts["steps"] == 5


FEDAVG = {"name": "one", "share": "all", "aggregate": {"kind": "mean"}}
GRADIENT = {"kind": "gradient", "steps": 2}
PRIVATE = {"fixed_norm_stats": True, "private": {"noise_multiplier": 1.0, "sample_rate": 0.1}}


@pytest.mark.parametrize(
    ("local", "stage", "more", "words"),
    [
        ({}, {"early_stopping": {}}, {"evaluate": {"every": 0}}, "early_stopping: sites evaluate only at the end"),
        ({}, {"early_stopping": {}}, {"evaluate": {"split": "test"}}, "early_stopping: would choose by the test split"),
        ({}, {"early_stopping": {}, "share": "all_but_norm", "keep": "norm"}, {}, "early_stopping: what sites keep"),
        ({}, {"early_stopping": {}, "weight_averaging": {}}, {}, "has no use for an average"),
        (
            {},
            {"early_stopping": {}, "share": "none", "keep": "all", "aggregate": {"kind": "nothing"}},
            {},
            "early_stopping: nothing is aggregated",
        ),
        (
            {},
            {"weight_averaging": {}, "share": "none", "keep": "all", "aggregate": {"kind": "nothing"}},
            {},
            "weight_averaging: nothing is aggregated",
        ),
        ({"heads_first": 2, "train": "heads"}, {}, {}, "heads_first: alternates"),
        ({"heads_first": 2} | PRIVATE, {}, {}, "heads_first: is not built for private work"),
        ({"inner_steps": {}, "steps": None, "epochs": 1}, {}, {}, "give steps, not epochs"),
        ({"inner_steps": {}} | PRIVATE, {}, {}, "inner_steps: is not built for private work"),
        (
            {"inner_steps": {}, "methods": [{"kind": "apfl"}]},
            {},
            {},
            "would take a step with each of them, and none is",
        ),
    ],
)
def test_courses_that_cannot_work_are_refused(local, stage, more, words: str) -> None:
    faults = check(a_study([FEDAVG | {"local": GRADIENT | local} | stage], **more), TAGS)
    assert any(words in fault for fault in faults), faults


def test_a_select_by_height_is_written_and_read() -> None:
    top = Select(max_height=2)
    assert Select.model_validate(top.model_dump()) == top
    assert "max_height" not in str(Select().model_dump())
