"""Terms that bring domains together, against their formulas; and the way back for work that teaches itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.adaptation.adversarial import Reversed, reversal
from fedgraft.client.training.losses.adaptation.discrepancy import coral, mmd, to_moments
from fedgraft.client.training.losses.adaptation.infomax import infomax
from fedgraft.client.training.losses.adaptation.pseudo_label import pseudo
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.rollback import holds
from fedgraft.common.base.errors import RunError
from fedgraft.common.checks.check import check
from fedgraft.common.closed_form.moments import COVARIANCE, MEAN, FeatureMoments, moments_from_sums
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.plan import Role
from fedgraft.common.study.stages.losses import (
    Adversarial,
    Discrepancy,
    InfoMax,
    Supervised,
)
from fedgraft.common.study.stages.training import Rollback
from fedgraft.common.study.study import Study, parse_study
from helpers.work import CPU, NOW, MakeStudy, came, cohort, images, moved, snapshot, steps

RNG = np.random.default_rng(0)
X, Y = (torch.from_numpy(RNG.normal(size=(n, 5)) * 1.5 + 0.3) for n in (12, 9))


def test_coral_is_its_formula() -> None:
    want = np.square(np.cov(X.numpy().T) - np.cov(Y.numpy().T)).sum() / (4 * 25)
    assert float(coral(X, Y)) == pytest.approx(want, rel=1e-12)
    assert float(coral(X, X)) == 0


def test_moments_are_compared_by_their_formula() -> None:
    mean, covariance = Y.mean(0), torch.from_numpy(np.cov(Y.numpy().T))
    want = np.square(X.numpy().mean(0) - mean.numpy()).mean() + float(coral(X, Y))
    assert float(to_moments(X, mean, covariance)) == pytest.approx(want, rel=1e-12)


def test_mmd_is_nothing_for_equal_sets_and_grows_with_their_distance() -> None:
    assert abs(float(mmd(X, X))) < 1e-12
    gaps = [float(mmd(X, X + shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 0.1
    plain = _mmd(X.numpy(), Y.numpy())
    assert float(mmd(X, Y)) == pytest.approx(plain, rel=1e-10)


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """By its definition, pair by pair."""
    both = np.vstack([x, y])
    width = np.mean([np.square(a - b).sum() for a in both for b in both])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.square(a - b).sum() / (f * width)) for f in (0.25, 0.5, 1, 2, 4)]))

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for a in one for b in other]))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_a_reversed_gradient_points_the_other_way() -> None:
    x = torch.ones(3, requires_grad=True)
    (Reversed.apply(x, 0.25) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.25, -0.5, -0.75]
    assert reversal(0.0, 10) == 0
    assert reversal(0.5, 10) == pytest.approx(2 / (1 + math.exp(-5)) - 1)


def test_infomax_prefers_answers_that_are_sure_and_spread() -> None:
    sure, even = torch.eye(3).repeat(4, 1) * 20, torch.zeros(12, 3)
    same = torch.tensor([[20.0, 0, 0]]).repeat(12, 1)
    assert float(infomax(sure, 1.0)) == pytest.approx(-math.log(3), abs=1e-5)
    assert float(infomax(even, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(infomax(same, 1.0)) == pytest.approx(0, abs=1e-5)
    p = torch.from_numpy(RNG.normal(size=(6, 3))).softmax(1).numpy()
    entropy = -(p * np.log(p)).sum(1).mean()
    mean = p.mean(0)
    want = entropy + 0.5 * (mean * np.log(mean)).sum()
    assert float(infomax(torch.from_numpy(np.log(p)), 0.5)) == pytest.approx(want, rel=1e-10)


def test_only_sure_guesses_of_cases_without_labels_teach() -> None:
    scores = torch.tensor([[4.0, 0.0], [0.3, 0.0], [0.0, 5.0], [6.0, 0.0]], requires_grad=True)
    target = torch.tensor([-1, -1, -1, 0])
    loss = pseudo(scores, target, 0.9)
    want = (math.log1p(math.exp(-4)) + math.log1p(math.exp(-5))) / 3
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert [bool(row.any()) for row in scores.grad] == [True, False, True, False]


def test_moments_come_from_sums_of_features() -> None:
    z = np.hstack([X.numpy(), np.ones((12, 1))])
    found = moments_from_sums({"cls/gram": z.T @ z, "cls/cross": z, "few/gram": z[:2].T @ z[:2]})
    np.testing.assert_allclose(found[MEAN], X.numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(found[COVARIANCE], np.cov(X.numpy().T, bias=True), rtol=1e-5, atol=1e-6)
    with pytest.raises(RunError, match="two cases"):
        moments_from_sums({"cls/gram": z[:1].T @ z[:1]})


# Through the training loop.

UNKNOWN = torch.full((27,), -1)


def source_loader(loader: Loader, cases: int = 15) -> Loader:
    inputs, labels = images(cases, seed=9)
    return Loader(cohort(inputs, {"cls": labels}, name="source"), loader._spec, CPU)


def plan_of(*losses: Any) -> list[dict[str, Any]]:
    local = {"kind": "gradient", "steps": 1, "losses": [loss.model_dump() for loss in losses]}
    return [{"name": "one", "local": local, "share": "all", "aggregate": {"kind": "mean"}}]


@pytest.mark.parametrize("conditional", [False, True])
def test_critics_learn_to_tell_domains_and_the_backbone_to_hide_them(attack_target, conditional: bool) -> None:
    """At the start nothing is reversed: only the domain discriminator moves. Later the backbone works against it."""
    loss = Adversarial(conditional=conditional)
    local_model, loader = attack_target(labels=UNKNOWN, plan=plan_of(loss))
    keys = [key for key, tag in local_model.tags.items() if tag.role is Role.DOMAIN_DISCRIMINATOR]
    assert {key.split(".")[1] for key in keys} == {loss.domain_discriminator}
    visit_context = VisitContext(source=source_loader(loader))
    bodies = [key for key in local_model.tags if key.startswith("backbone") and key in local_model.parameters]
    before = snapshot(local_model)
    spec = steps(1, momentum=0, losses=(loss,))
    train(local_model, loader, spec, [*bodies, *keys], replace(NOW, visit_context=visit_context))
    assert moved(before, snapshot(local_model)) == set(keys)
    train(local_model, loader, spec, [*bodies, *keys], replace(NOW, visit_context=visit_context, round=5, rounds=5))
    assert set(bodies) <= moved(before, snapshot(local_model))


def test_a_critic_alone_learns_the_difference_that_there_is(attack_target) -> None:
    local_model, loader = attack_target(labels=UNKNOWN, plan=plan_of(Adversarial()))
    keys = [key for key, tag in local_model.tags.items() if tag.role is Role.DOMAIN_DISCRIMINATOR]
    dark = Loader(cohort(-images(15)[0], {"cls": images(15)[1]}, name="source"), loader._spec, CPU)
    spec = steps(60, lr=0.05, optimiser="adamw", losses=(Adversarial(),))
    facts = train(local_model, loader, spec, keys, replace(NOW, visit_context=VisitContext(source=dark)))
    assert facts["loss"] < 0.4 < math.log(2)


@pytest.mark.parametrize("measure", ["coral", "mmd", "moments"])
def test_features_without_any_label_come_closer_to_the_source(attack_target, measure: str) -> None:
    local_model, loader = attack_target(labels=UNKNOWN)
    source, spec = source_loader(loader), steps(12, lr=0.02, losses=(Discrepancy(measure=measure, weight=10.0),))
    goal = _features(local_model, source)
    moments = {MEAN: goal.mean(0).numpy() + 1, COVARIANCE: torch.cov(goal.T).numpy()}
    visit_context = VisitContext(source=source, came=came(FeatureMoments(moments, {})))
    bodies = [key for key in local_model.tags if key.startswith("backbone") and key in local_model.parameters]

    def gap() -> float:
        x = _features(local_model, loader)
        if measure == "moments":
            return float(to_moments(x, torch.tensor(moments[MEAN]), torch.tensor(moments[COVARIANCE])))
        return float({"coral": coral, "mmd": mmd}[measure](_features(local_model, source), x))

    before = gap()
    facts = train(local_model, loader, spec, bodies, replace(NOW, visit_context=visit_context))
    assert facts["examples"] == 21
    assert gap() < before


def _features(local_model: Any, loader: Loader) -> Tensor:
    local_model.model.eval()
    with torch.no_grad():
        return local_model.model.features(next(iter(loader.batches([loader.splits["train"]]))).inputs)


def test_labels_of_a_source_teach_a_site_that_has_none(attack_target) -> None:
    local_model, loader = attack_target(labels=UNKNOWN)
    with pytest.raises(TooFewCases):
        train(local_model, loader, steps(1), tuple(local_model.tags), NOW)
    losses = (Supervised(of="source"), Discrepancy(measure="mmd", weight=0.1))
    visit_context = VisitContext(source=source_loader(loader, 45))
    spec = steps(40, optimiser="adamw", lr=3e-3, losses=losses)
    train(local_model, loader, spec, tuple(local_model.tags), replace(NOW, visit_context=visit_context))
    with torch.no_grad():
        batch = next(iter(loader.batches([loader.splits["train"]])))
        guess = local_model.model(batch.inputs)["cls"].argmax(1)
    assert float((guess == images(27)[1][:21]).float().mean()) > 0.8


def test_a_source_without_labels_is_too_little(attack_target) -> None:
    local_model, loader = attack_target()
    empty = Loader(cohort(images(9)[0], {"cls": torch.full((9,), -1)}), loader._spec, CPU)
    spec = steps(1, losses=(Supervised(of="source"),))
    with pytest.raises(TooFewCases):
        train(
            local_model, loader, spec, tuple(local_model.tags), replace(NOW, visit_context=VisitContext(source=empty))
        )


def test_work_that_goes_astray_is_undone_to_the_last_bit(attack_target) -> None:
    local_model, loader = attack_target(labels=UNKNOWN)
    bodies = [key for key in local_model.tags if key.startswith("backbone")]
    before = snapshot(local_model)
    wild = steps(15, lr=2.0, losses=(InfoMax(diversity=0.0),), rollback=Rollback(agreement=0.9, spread=0.9))
    facts = train(local_model, loader, wild, bodies, NOW)
    assert facts["undone"] == 1
    assert not moved(before, snapshot(local_model))
    mild = steps(1, lr=1e-6, losses=(InfoMax(),), rollback=Rollback(agreement=0.0, spread=0.0))
    assert train(local_model, loader, mild, bodies, NOW)["undone"] == 0
    assert moved(before, snapshot(local_model))


def test_the_way_back_is_taken_for_other_answers_or_for_fewer_classes() -> None:
    before = {"cls": np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])}
    assert holds(Rollback(), before, before)
    swapped = {"cls": (before["cls"] + 1) % 3}
    assert not holds(Rollback(), before, swapped)
    few = {"cls": np.where(before["cls"] == 2, 0, before["cls"])}
    assert not holds(Rollback(agreement=0.5, spread=0.8), before, few)
    assert holds(Rollback(agreement=0.5, spread=0.5), before, few)


# What is refused.

TASKS = [{"name": "cls", "classes": ["a", "b"]}]
MEAN_AGGREGATION = {"name": "one", "share": "all", "aggregate": {"kind": "mean"}}
GRADIENT = {"kind": "gradient", "steps": 2}
PRIVATE = {"fixed_norm_stats": True, "private": {"noise_multiplier": 1.0, "sample_rate": 0.1}}
SOURCE = {"kind": "supervised", "of": "source"}


def a_study(*plan: dict[str, Any], **more: Any) -> Study:
    return parse_study({"name": "x", "tasks": TASKS, "plan": list(plan)} | more, "here")


def local(*losses: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"local": GRADIENT | {"losses": list(losses)} | changes}


PER_BATCH = [{"kind": "discrepancy"}, {"kind": "infomax"}]
ALONE = [{"kind": "adversarial"}, {"kind": "pseudo_label"}, SOURCE]


@pytest.mark.parametrize(
    ("stage", "more", "words"),
    [
        *[(local({"kind": "supervised"}, loss, **PRIVATE), {}, "compares the cases of a batch") for loss in PER_BATCH],
        *[(local({"kind": "supervised"}, loss, **PRIVATE), {}, "is not built for private work") for loss in ALONE],
        (local({"kind": "infomax"}), {}, "(infomax): takes the model's own guesses"),
        (local({"kind": "pseudo_label"}), {}, "(pseudo_label): takes the model's own guesses"),
        (local({"kind": "supervised"}, **PRIVATE, rollback={}), {}, "rollback: whether work was undone"),
        (local({"kind": "discrepancy"}, train="heads"), {}, "nothing below the heads is trained"),
        (local({"kind": "discrepancy", "measure": "moments"}), {}, "no stage before this one has released moments"),
        ({"joint_lambda": 1.0, "aggregate": {"kind": "median"}}, {}, "joint_lambda: is a weight in a mean over cases"),
        (
            {"joint_lambda": 1.0, "aggregate": {"kind": "mean", "weight": "equal"}},
            {},
            "joint_lambda: is a weight in a mean over cases",
        ),
        ({"joint_lambda": 1.0, "where": "source"}, {}, "joint_lambda: weighs the hospitals against the source"),
        ({"joint_lambda": 1.0}, {"secure_aggregation": True}, "joint_lambda: masks hide whose part"),
        ({"where": "source"}, {"secure_aggregation": True}, "where: masks hide who sends what"),
    ],
)
def test_what_a_source_cannot_be_asked_for_is_refused(stage, more, words: str) -> None:
    from fedgraft.common.models.model import Extras, build_model

    study = a_study(MEAN_AGGREGATION | {"local": GRADIENT} | stage, **more)
    tags = build_model(
        "slim_resnet", {"cls": 2}, channels=1, seed=0, extras=Extras(domain_discriminators=study.domain_discriminators)
    ).tags()
    faults = check(study, tags)
    assert any(words in fault for fault in faults), faults


@pytest.mark.parametrize("loss", [{"kind": "infomax"}, {"kind": "pseudo_label"}])
def test_terms_that_look_at_classes_are_for_tasks_with_classes(make_study: MakeStudy, loss: dict[str, str]) -> None:
    value = {"name": "size", "kind": "regression", "unit": "mm", "mean": 30, "std": 10}
    local = {"kind": "gradient", "steps": 1, "losses": [loss], "rollback": {}}
    stage = {"name": "teach", "local": local, "share": "all", "aggregate": {"kind": "mean"}}
    study = make_study(tasks=[{"name": "cls", "classes": ["left", "right"]}, value], plan=[stage])
    faults = check(study, initialise(study).model.tags())
    assert any("looks at the classes" in fault and "size asks for none" in fault for fault in faults), faults
