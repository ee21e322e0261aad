"""A coordinator that wants one site's part of a masked sum: real sites, real masks, hand-made instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.privacy.masking.used_masks import Regroup, SecureAggregationSettings
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.checks.check import check
from fedgraft.common.methods.memory.carried import going_down
from fedgraft.common.methods.memory.given import Start, StartSide
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import AggregationGroups, Answer, Code, Instruction, MaskedUpdate, Refusal
from fedgraft.common.protocol.states import is_address
from fedgraft.common.secure_aggregation.masking import Layout, MaskedSum
from fedgraft.common.secure_aggregation.summing import METRICS, TENSORS, metric_shapes
from fedgraft.common.study.schedule import Step, schedule, split_at
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.keys import make_keys
from helpers.work import CPU, MakeStudy, images

NAMES = ("east", "north", "south", "west")
THREE = NAMES[:3]
APART = {"one": THREE, "two": NAMES[3:]}
OPEN = SitePolicy(allow_non_dp=True, metrics="secure_aggregation", min_patients=1)
PULLED = {
    "name": "pulled",
    "local": {
        "kind": "gradient",
        "steps": 1,
        "batch_size": 8,
        "lr": 0.01,
        "losses": [{"kind": "supervised"}, {"kind": "proximal", "to": "pretrained"}],
    },
    "share": "all",
    "aggregate": {"kind": "mean"},
    "rounds": 2,
}
HEADS = {
    "name": "heads",
    "local": {"kind": "gradient", "train": "heads", "steps": 1, "batch_size": 8, "lr": 0.01},
    "share": "heads",
    "aggregate": {"kind": "mean"},
}


class Consortium:
    """Four real sites in one study, and the words with which a coordinator talks to them."""

    def __init__(self, study: Study, folder: Path, regroup: Regroup = "never") -> None:
        for name in NAMES:
            (folder / name).mkdir()
        self.study, self.folder = study, folder
        keys = make_keys(folder, NAMES).items()
        self.settings = {n: SecureAggregationSettings(**(k.model_dump() | {"regroup": regroup})) for n, k in keys}
        self.sites = {name: self.site(name) for name in NAMES}
        self.nonces = {name: site.greet().nonce for name, site in self.sites.items()}
        torch.manual_seed(2)
        model = LocalModel(study, CPU)
        self.state = {k: a.copy() for k, a in state_arrays(model.model).items()}
        self.beside = going_down(model.ground(study.plan[0]), StartSide(), Start(self.state))
        self.number = 0

    def site(self, name: str) -> Site:
        inputs, labels = images(36, seed=NAMES.index(name))
        at = torch.arange(36)
        splits = {"train": at[:20], "val": at[20:28], "test": at[28:], "all": at}
        mine = Cohort(name, inputs, {"cls": labels}, tuple(map(str, range(36))), splits, (), {})
        place = self.folder / name
        guard = PrivacyGuard(self.study, OPEN, place, learning_patients(self.study, mine))
        sealer = Sealer(self.study, self.settings[name], name, place)
        return Site(self.study, mine, LocalModel(self.study, CPU), place, guard, sealer)

    def instruction(self, step: Step, names: Sequence[str], parts: Sequence[str] = (TENSORS, METRICS)) -> Instruction:
        self.number += 1
        group = {name: self.nonces[name] for name in names}
        wanted = [part for part in parts if part != TENSORS or step.work]
        groups = AggregationGroups(self.number, dict.fromkeys(wanted, group))
        split = split_at(self.study, step) if METRICS in parts else None
        with_it = self.beside if step.work and self.study.plan[step.stage].name == "pulled" else {}
        facts = (step.exchange, step.stage, step.round, step.work, split)
        return Instruction(self.study.digest, *facts, self.state | with_it, groups=groups)

    def ask(self, instruction: Instruction, names: Sequence[str]) -> dict[str, Answer]:
        return {name: self.sites[name].visit(instruction) for name in names}


@pytest.fixture
def four(make_study: MakeStudy, tmp_path: Path) -> Consortium:
    return Consortium(make_study(plan=[PULLED, HEADS], secure_aggregation=True), tmp_path)


def masked(answer: Answer, part: str) -> bool:
    return isinstance(answer, MaskedUpdate) and part in answer.parts


def test_an_honest_course_masks_every_part(four: Consortium) -> None:
    for step in schedule(four.study):
        answers = four.ask(four.instruction(step, NAMES), NAMES)
        assert all(masked(answer, METRICS) for answer in answers.values())
        assert all(masked(answer, TENSORS) for answer in answers.values()) == step.work
        assert len({str(answer.contexts) for answer in answers.values()}) == 1  # type: ignore[union-attr]


def test_another_group_in_a_later_stage_is_refused(four: Consortium) -> None:
    """Sums over four sites in one stage, and over three of them in the next, tell of the fourth."""
    first, _, heads, end = schedule(four.study)
    assert all(masked(a, TENSORS) for a in four.ask(four.instruction(first, NAMES), NAMES).values())
    for answer in four.ask(four.instruction(heads, THREE), THREE).values():
        assert isinstance(answer, Refusal)
        assert answer.code is Code.NOT_SECURE
    for answer in four.ask(four.instruction(end, THREE, (METRICS,)), THREE).values():
        assert not masked(answer, METRICS)
    assert all(masked(a, METRICS) for a in four.ask(four.instruction(end, NAMES, (METRICS,)), NAMES).values())


def test_figures_of_three_sites_do_not_follow_those_of_four(make_study: MakeStudy, tmp_path: Path) -> None:
    """Noise lets work be masked in another group; it is not in the figures, whose group stays."""
    study = make_study(plan=[HEADS | {"rounds": 3}], secure_aggregation=True)
    four = Consortium(study, tmp_path, regroup="private")
    first, second, *_ = schedule(study)
    assert all(masked(a, METRICS) for a in four.ask(four.instruction(first, NAMES), NAMES).values())
    for answer in four.ask(four.instruction(second, THREE, (METRICS,)), THREE).values():
        assert not masked(answer, METRICS)


@pytest.mark.parametrize("what", ["beside", "model", "evaluate"])
def test_sites_that_were_told_different_things_give_nothing_that_opens(four: Consortium, what: str) -> None:
    """What comes beside the model is in the mask's context too: else one site could be told something of its own."""
    step = next(iter(schedule(four.study)))
    honest = four.instruction(step, NAMES)
    tensors = dict(honest.tensors)
    key = next(k for k in tensors if is_address(k) == (what == "beside"))
    tensors[key] = tensors[key] + np.ones((), tensors[key].dtype)
    lie = replace(honest, evaluate=None) if what == "evaluate" else replace(honest, tensors=tensors)
    answers = four.ask(honest, THREE) | {"west": four.sites["west"].visit(lie)}
    contexts = {name: answer.contexts[TENSORS] for name, answer in answers.items()}  # type: ignore[union-attr]
    assert len({contexts[name] for name in THREE}) == 1
    assert contexts["west"] != contexts["east"]


@pytest.mark.parametrize(
    "clusters", [{"by": "name", "sites": APART}, {"by": "sums", "stage": "pulled", "groups": APART}]
)
def test_a_site_masks_with_its_own_cluster_alone(make_study: MakeStudy, tmp_path: Path, clusters: dict) -> None:
    """A fourth site in the sum of a cluster of three, and out of it again, would be seen through."""
    study = make_study(plan=[PULLED, HEADS], secure_aggregation=True, clusters=clusters)
    for_all, for_own = (tmp_path / name for name in ("for_all", "for_own"))
    for_all.mkdir()
    for_own.mkdir()
    lied_to = Consortium(study, for_all)
    first = next(iter(schedule(study)))
    for answer in lied_to.ask(lied_to.instruction(first, NAMES), NAMES).values():
        assert isinstance(answer, Refusal)
        assert answer.code is Code.NOT_SECURE
    four = Consortium(study, for_own)
    assert all(masked(answer, TENSORS) for answer in four.ask(four.instruction(first, THREE), THREE).values())


def test_a_lost_file_of_used_masks_closes(four: Consortium) -> None:
    first, *_ = schedule(four.study)
    four.ask(four.instruction(first, NAMES), NAMES)
    (four.folder / "east" / "masks.sqlite").unlink()
    again = four.site("east")
    with pytest.raises(Refused) as caught:
        again.greet()
    assert caught.value.code is Code.MASK_REUSED
    answer = again.visit(four.instruction(first, THREE))
    assert isinstance(answer, Refusal)


def test_a_plan_whose_stages_are_for_different_sites_is_refused(make_study: MakeStudy) -> None:
    study = make_study(plan=[PULLED | {"where": "labelled"}, HEADS], secure_aggregation=True)
    faults = check(study, initialise(study).model.tags())
    assert any("one group alone" in fault for fault in faults)


RATES = {"training that diverges": 1e38, "training that ends far away": 1e13}


@pytest.mark.parametrize(
    "how", ["a loss too large for the sum", "no number", "training that diverges", "training that ends far away"]
)
def test_a_refusal_does_not_tell_of_one_site_what_the_sum_hides(
    make_study: MakeStudy, tmp_path: Path, how: str
) -> None:
    """A model made so that one case of one label goes wrong: the word `diverged` would be that label, for one site.

    The exchange at hand may be asked again and again, each time with another model.
    """
    stage = HEADS | {"local": HEADS["local"] | {"optimiser": "sgd", "lr": RATES.get(how, 0.01)}}
    study = make_study(plan=[stage], secure_aggregation=True)
    four = Consortium(study, tmp_path)
    bias = {"a loss too large for the sum": 1e30, "no number": np.inf}.get(how, 0.0)
    first, *_ = schedule(study)
    honest = four.instruction(first, NAMES)
    crafted = {
        k: a + np.float32(bias) * (a * 0 + [1, 0, 0]).astype(a.dtype) if k.endswith("cls.bias") else a
        for k, a in honest.tensors.items()
    }
    answers = four.ask(replace(honest, tensors=crafted), NAMES)
    for answer in answers.values():
        assert masked(answer, TENSORS), answer
        assert masked(answer, METRICS), answer
    total = MaskedSum(Layout.of(metric_shapes(study)), len(NAMES))
    for answer in answers.values():
        total.add(answer.parts[METRICS])  # type: ignore[union-attr]
    assert all(np.isfinite(array).all() for array in total.open().values())
