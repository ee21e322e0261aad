"""Terms of a loss: what each pulls at, what is refused, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import VisitContext
from fedgraft.common.checks.check import check
from fedgraft.common.checks.local_work import describe_local
from fedgraft.common.methods.memory.carried import down_shapes, going_down
from fedgraft.common.methods.memory.given import Start, StartSide
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.protocol.states import States
from fedgraft.common.study.plan import Gradient, Role, Tag
from fedgraft.common.study.stages.losses import LossScope, Proximal, Supervised
from fedgraft.common.study.study import Study, parse_study
from helpers.dp import private_work as private
from helpers.dp import trainable
from helpers.work import NOW, snapshot, steps

TAGS = {
    "backbone.conv.weight": Tag(Role.BODY, 1, height=1),
    "backbone.bn.running_mean": Tag(Role.NORM_STATS, 1, height=1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
}
FEDAVG = {"share": "all", "aggregate": {"kind": "mean"}}
LABELS = {"kind": "supervised"}


def study(local: dict[str, Any], **stage: Any) -> Study:
    plan = [{"name": "one", "local": {"kind": "gradient", "steps": 2} | local} | FEDAVG | stage]
    return parse_study({"name": "x", "tasks": [{"name": "cls", "classes": ["a", "b"]}], "plan": plan}, "here")


def test_terms_are_written_only_where_they_say_something() -> None:
    """A study of before has the digest it had, so that approvals and older sites still hold."""
    plain, said = study({}), study({"losses": [LABELS]})
    assert plain.digest == said.digest
    assert b'"terms"' not in plain.to_json()
    other = study({"losses": [LABELS, {"kind": "proximal", "to": "round", "weight": 0.1}]})
    assert other.digest != plain.digest
    assert parse_study(__import__("json").loads(other.to_json()), "again") == other


def test_every_kind_of_term_has_its_place_in_the_objective() -> None:
    from typing import get_args

    from fedgraft.client.training.losses.objective import LOSSES, REGULARISERS
    from fedgraft.common.study.stages.losses import OwnLoss, PluggedLoss

    kinds = set(get_args(OwnLoss))
    assert kinds | {PluggedLoss} == set(LOSSES) | set(REGULARISERS)
    assert set(REGULARISERS) == {kind for kind in kinds if kind.scope is LossScope.REGULARISER}


def pulled(
    local_model: Any, loader: Any, to: str, visit_context: VisitContext, changes: list[str]
) -> dict[str, np.ndarray]:
    """What one step of rate 1 changes through the anchor alone: the step with it, less the step without."""
    now, ends = replace(NOW, visit_context=visit_context), []
    start = snapshot(local_model)
    for losses in ((Supervised(), Proximal(to=to, weight=0.25)), (Supervised(),)):
        local_model.touched(local_model.tags)
        local_model.load(start)
        train(local_model, loader, steps(1, lr=1.0, momentum=0, losses=losses), changes, now)
        ends.append(snapshot(local_model))
    return {key: ends[0][key] - ends[1][key] for key in changes}


def test_l2sp_pulls_all_but_heads_to_the_start_of_the_run(attack_target) -> None:
    local_model, loader = attack_target()
    changes = trainable(local_model)
    start = {key: value + np.float32(0.1) for key, value in snapshot(local_model).items()}
    asked = study({"losses": [LABELS, {"kind": "proximal", "to": "pretrained"}]})
    on = Ground(asked, asked.plan[0], local_model.tags, local_model.forms)
    sent = going_down(on, StartSide(), Start(start))
    assert sent.keys() == down_shapes(on).keys()
    found = pulled(local_model, loader, "pretrained", VisitContext(came=States(sent)), changes)
    for key, change in found.items():
        np.testing.assert_allclose(change, 0.0 if key.startswith("heads") else 0.025, atol=2e-6)


def test_a_pull_to_the_round_is_nothing_in_its_first_step(attack_target) -> None:
    local_model, loader = attack_target()
    assert all(
        (change == 0).all()
        for change in pulled(local_model, loader, "round", VisitContext(), trainable(local_model)).values()
    )


def test_an_anchor_is_added_after_clipping_and_noise(attack_target) -> None:
    """It looks at no patient: clipped with their gradients it would vanish, noised it would be of no other value."""
    local_model, loader = attack_target()
    changes = trainable(local_model)
    start = snapshot(local_model)
    visit_context = VisitContext(received={key: value + np.float32(1) for key, value in start.items()})
    spec = private(3, noise_multiplier=1e-9, max_grad_norm=1e-9, lr=0.5).model_copy(
        update={"losses": (Supervised(), Proximal(to="global", weight=0.2))}
    )
    train_private(local_model, loader, [*map(str, range(27))], spec, changes, replace(NOW, visit_context=visit_context))
    after = snapshot(local_model)
    for key in changes:
        np.testing.assert_allclose(after[key] - start[key], 1 - 0.9**3, atol=2e-6)


ANCHOR = {"kind": "proximal", "to": "global"}
PRIVATE = {"steps": 5, "fixed_norm_stats": True, "private": {"noise_multiplier": 1.0, "sample_rate": 0.1}}
PLAIN = {"optimiser": "sgd", "momentum": 0, "methods": [{"kind": "scaffold"}]}


@pytest.mark.parametrize(
    ("local", "stage", "words"),
    [
        ({"losses": [LABELS, ANCHOR]}, {}, "losses.1 (proximal): pulls what a site keeps"),
        ({"losses": [ANCHOR | {"to": "round"}]}, {}, "none of them looks at a case"),
        ({}, {"where": "unlabelled"}, "needs labels"),
        (PLAIN | {"momentum": 0.9}, {}, "(scaffold): steps must be plain"),
        (PLAIN | {"optimiser": "adamw"}, {}, "(scaffold): steps must be plain"),
        (PLAIN | {"steps": None, "epochs": 1}, {}, "give steps, not epochs"),
        (PLAIN | {"clip_norm": 1.0}, {}, "leave clip_norm out"),
        (PLAIN, {"aggregate": {"kind": "median"}}, "needs the sites' mean"),
        (PLAIN, {"share": "none", "keep": "all", "aggregate": {"kind": "nothing"}}, "no drift to correct"),
        (PLAIN | PRIVATE, {}, "control variates are not built for private work"),
    ],
)
def test_terms_that_cannot_work_are_refused_with_their_reason(local, stage, words: str) -> None:
    faults = check(study(local, **stage), TAGS)
    assert any(words in fault for fault in faults), faults


def test_terms_that_can_work_are_let_through() -> None:
    assert check(study({"losses": [LABELS, {"kind": "proximal", "to": "round"}]}), TAGS) == []
    assert check(study(PRIVATE | {"losses": [LABELS, {"kind": "proximal", "to": "round"}]}), TAGS) == []
    assert check(study({"losses": [LABELS, ANCHOR]}, share="heads", keep="all_but_heads"), TAGS) == []
    assert check(study(PLAIN), TAGS) == []


def test_explain_names_what_is_minimised() -> None:
    assert describe_local(study({}).plan[0]) == "gradient: adamw, lr 0.001, 2 steps of 32"
    stage = study({"losses": [LABELS, {"kind": "proximal", "to": "pretrained", "weight": 0.2}]}).plan[0]
    assert describe_local(stage).endswith(", on 1 x labels + 0.2 x a pull to the start of the run")


def test_heights_count_from_the_heads(attack_target) -> None:
    local_model, _ = attack_target()
    last = max(tag.depth for tag in local_model.tags.values())
    assert all(tag.height == last - tag.depth for tag in local_model.tags.values())
    top = Gradient(steps=1, train={"max_height": 1}).train.keys(local_model.tags)
    assert {key.split(".")[0] for key in top} == {"heads", "backbone"}
    assert {local_model.tags[key].depth for key in top} == {last, last - 1}
