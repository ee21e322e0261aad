"""Private training against naive twins: sums of gradients clipped case by case, and plain SGD if nothing is added."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.attacks.attack_target import watched
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.errors import Diverged
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import TransferModel, state_arrays
from fedgraft.common.protocol.instructions import (
    Code,
    Instruction,
    Refusal,
    Update,
)
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Role, named
from fedgraft.common.study.stages.training import Augment
from helpers.dp import MakeModel, loader_of, private_work, quiet, sums, trainable
from helpers.work import CPU, NOW, TABLE_PLAN, MakeStudy, a_site, cohort, images, moved, snapshot

OWN = tuple(map(str, range(27)))


def naive_gradients(
    model: TransferModel, loader: Loader, units: Sequence[Sequence[int]], keys: Sequence[str]
) -> list[Tensor]:
    """One backward pass per unit through the model as it is, in eval."""
    model = copy.deepcopy(model).eval()
    parameters = [dict(model.named_parameters())[key] for key in keys]
    gradients = []
    for unit in units:
        model.zero_grad()
        for case in unit:
            outputs = model(loader._inputs[case : case + 1])
            for task, logits in outputs.items():
                label = loader._targets[task][case : case + 1]
                if int(label) >= 0:
                    (F.cross_entropy(logits, label) / len(unit)).backward(retain_graph=True)
        flat = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
        gradients.append(torch.cat(flat).double())
    return gradients


def clipped_sum(gradients: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    return sum((flat * min(1.0, max_grad_norm / float(flat.norm())) for flat in gradients), torch.zeros(()))


def naive_sum(
    model: TransferModel, loader: Loader, units: Sequence[Sequence[int]], keys: Sequence[str], max_grad_norm: float
) -> Tensor:
    return clipped_sum(naive_gradients(model, loader, units, keys), max_grad_norm)


def optimiser_order(local_model: LocalModel, keys: Sequence[str]) -> list[str]:
    """The rest, then heads: the order in which the optimiser holds them."""
    return sorted(keys, key=lambda key: local_model.tags[key].role is Role.HEAD)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "keys"),
    [
        ("slim_resnet", "all"),
        ("slim_resnet", "heads"),
        ("slim_resnet", "norm_and_heads"),
        ("resnet18", "norm_and_heads"),
        ("mobilenet_v3_small", "all"),
        ("densenet121", "norm_and_heads"),
        ("shufflenet_v2_x0_5", "all"),
        ("efficientnet_lite0", "norm_and_heads"),
    ],
)
def test_the_sum_is_that_of_gradients_clipped_case_by_case(attack_target: MakeModel, backbone: str, keys: str) -> None:
    """In both ways of working it out."""
    local_model, loader = attack_target(backbone)
    loader = loader_of(loader, loader._inputs[:7], loader._targets["cls"][:7])
    changes = [key for key in named(keys).keys(local_model.tags) if local_model.tags[key].role is not Role.NORM_STATS]
    order = optimiser_order(local_model, changes)
    gradients = naive_gradients(local_model.model, loader, [[case] for case in range(7)], order)
    max_grad_norm = float(np.median([float(own.norm()) for own in gradients]))  # some are clipped, some are not
    want = clipped_sum(gradients, max_grad_norm)
    no_depth(local_model)
    for mode in ("hooks", "ghost"):
        spec = quiet(max_grad_norm=max_grad_norm, mode=mode, batch_size=3)
        got = sums(local_model, loader, OWN, spec, changes)[0]
        assert float((got - want).norm() / want.norm()) < 1e-5, mode


def no_depth(local_model: LocalModel) -> None:
    """Dropout would be drawn differently by the twin."""
    for part in local_model.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0


@pytest.mark.parametrize(("size", "mode"), [(1, "hooks"), (4, "hooks"), (4, "ghost"), (100, "hooks"), (100, "ghost")])
def test_a_patients_gradient_is_the_mean_over_views_clipped_once(
    attack_target: MakeModel, size: int, mode: str
) -> None:
    """However many images are worked on at a time."""
    local_model, loader = attack_target()
    patients = ["a", "a", "b", "c", "c", "c", *["d"] * 6, *map(str, range(15))]
    spec = quiet(max_grad_norm=0.5, augmentation_multiplicity=9, batch_size=size, mode=mode)
    got = sums(local_model, loader, patients, spec)[0]
    units = [[at for at, own in enumerate(patients[:21]) if own == one] for one in dict.fromkeys(patients[:21])]
    want = naive_sum(local_model.model, loader, units, optimiser_order(local_model, trainable(local_model)), 0.5)
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_labels_that_are_not_known_contribute_nothing(attack_target: MakeModel) -> None:
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r", "m"]}]
    local_model, loader = attack_target(tasks=tasks)
    labels = torch.arange(21) % 3
    labels[:6] = -1
    side = labels.roll(3)
    loader = Loader(cohort(images(21)[0], {"cls": labels, "side": side}), loader._spec, CPU)
    for mode in ("hooks", "ghost"):
        got = sums(local_model, loader, OWN, quiet(max_grad_norm=2.0, mode=mode))[0]
        known = [[case] for case in range(21) if int(labels[case]) >= 0 or int(side[case]) >= 0]
        assert len(known) == 18
        want = naive_sum(local_model.model, loader, known, optimiser_order(local_model, trainable(local_model)), 2.0)
        assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_without_noise_or_clip_it_is_plain_sgd_over_everybody(attack_target: MakeModel, mode: str) -> None:
    (ours, loader), (plain, _) = attack_target(), attack_target()
    changes = trainable(ours)
    spec = private_work(4, noise_multiplier=1e-12, max_grad_norm=1e4, mode=mode, lr=0.1, momentum=0.9)
    train_private(ours, loader, OWN, spec, changes, NOW)
    optimiser = torch.optim.SGD(plain.model.eval().parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(plain.model(loader._inputs[:21])["cls"], loader._targets["cls"][:21]).backward()
        optimiser.step()
    ours_after, plain_after = snapshot(ours), snapshot(plain)
    assert moved(ours_after, snapshot(attack_target()[0])) == set(changes)
    for key in changes:
        np.testing.assert_allclose(ours_after[key], plain_after[key], rtol=1e-4, atol=1e-5)


def test_a_table_takes_private_steps_and_missing_values_count_as_in_the_model(attack_target: MakeModel) -> None:
    columns = TableInput(numeric=("a", "b"))
    local_model, _ = attack_target("table_mlp", input=columns.model_dump(), plan=TABLE_PLAN)
    inputs = torch.randn(12, 2)
    inputs[3, 1] = torch.nan
    loader = Loader(cohort(inputs, {"cls": torch.arange(12) % 3}), columns, CPU)
    keys = [key for key in local_model.tags if local_model.tags[key].role is not Role.SCALE]
    got = sums(local_model, loader, OWN, quiet(max_grad_norm=0.1), keys)[0]
    local_model, _ = attack_target("table_mlp", input=columns.model_dump(), plan=TABLE_PLAN)
    want = naive_sum(local_model.model, loader, [[case] for case in range(12)], optimiser_order(local_model, keys), 0.1)
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_the_mean_is_over_the_expected_number_not_the_number_that_came(attack_target: MakeModel) -> None:
    """Lots of a fixed sum: alike cases, so that the sum tells how many came."""
    local_model, loader = attack_target()
    same = loader_of(loader, loader._inputs[:1].expand(20, -1, -1, -1).clone(), torch.zeros(20, dtype=torch.long))
    keys = named("heads").keys(local_model.tags)
    spec = quiet(max_grad_norm=1e-3, expected_units=20)
    with watched() as whole:
        train_private(local_model, same, OWN, spec, keys, NOW)
    assert float(whole[0].norm()) == pytest.approx(1e-3, rel=1e-4)
    with watched() as parts:
        train_private(
            local_model, same, OWN, quiet(steps=24, max_grad_norm=1e-3, sample_rate=0.5, expected_units=20), keys, NOW
        )
    came = torch.stack([part.norm() for part in parts]) / 1e-3 * 10
    assert torch.allclose(came, came.round(), atol=1e-3)
    assert len(set(came.round().tolist())) > 1


def test_augmented_views_make_up_the_number_and_differ(
    attack_target: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_model, loader = attack_target()
    seen: list[Tensor] = []
    real = Augment()
    monkeypatch.setattr("fedgraft.client.privacy.dp.dpsgd.augment", lambda x, spec, draw: seen.append(x) or x + 0.1)
    patients = ["a"] * 5 + [*map(str, range(22))]
    sums(local_model, loader, patients, quiet(augmentation_multiplicity=3, augment=real, batch_size=1000))
    (views,) = seen
    assert len(set(map(str, views[: 17 * 3]))) > 17, "each view is one of the patient's images"
    assert all(torch.equal(more, views[0]) for more in views[17 * 3 :]), "and the rest fills up a pass"


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_private_training_learns(attack_target: MakeModel, optimiser: str) -> None:
    local_model, loader = attack_target()
    local_model.model.eval()
    with torch.no_grad():
        before = F.cross_entropy(local_model.model(loader._inputs)["cls"], loader._targets["cls"])
    rate = {"sgd": 0.3, "adamw": 0.01}[optimiser]
    spec = private_work(
        50, noise_multiplier=0.05, max_grad_norm=1.0, sample_rate=0.7, lr=rate, optimiser=optimiser, batch_size=32
    )
    train_private(local_model, loader, OWN, spec, trainable(local_model), NOW)
    with torch.no_grad():
        after = F.cross_entropy(local_model.model(loader._inputs)["cls"], loader._targets["cls"])
    # After 30 steps of SGD the ratio was .27 +- .08 over draws; without learning it is 1.
    assert float(after) < 0.8 * float(before)


def test_the_rate_follows_the_schedule_of_the_stage(attack_target: MakeModel) -> None:
    local_model, loader = attack_target()
    rates: list[float] = []
    real = torch.optim.SGD.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or real(self))
        spec = private_work(2, schedule="cosine", lr=0.1)
        for round_ in (1, 2):
            train_private(
                local_model, loader, OWN, spec, named("heads").keys(local_model.tags), RoundContext(7, round_, 2)
            )
    assert rates == pytest.approx([0.05 * (1 + np.cos(np.pi * at / 4)) for at in range(4)])


def test_nobody_to_learn_from_and_numbers_that_run_away(attack_target: MakeModel) -> None:
    local_model, loader = attack_target()
    keys = named("heads").keys(local_model.tags)
    before = local_model.read(keys)
    nobody = loader_of(loader, loader._inputs[:3], torch.full((3,), -1))
    train_private(local_model, nobody, OWN, private_work(lr=0.1), keys, NOW)  # noise, and no word of it
    assert moved(before, local_model.read(keys)) == set(keys)
    with pytest.raises(Diverged):
        train_private(
            local_model, loader, OWN, private_work(2, lr=1e38, noise_multiplier=100.0, sample_rate=1e-3), keys, NOW
        )


PLAN = {
    "name": "tune",
    "local": {"kind": "gradient", "train": "norm_and_heads", "steps": 2, "fixed_norm_stats": True},
    "share": "norm_and_heads",
    "aggregate": {"kind": "mean"},
}


def visit(make_study: MakeStudy, folder: Path, private: dict[str, object] | None) -> Update | Refusal:
    study = make_study(plan=[PLAN | {"local": PLAN["local"] | {"private": private}}])
    inputs, labels = images(27)
    site = a_site(study, cohort(inputs, {"cls": labels}, held_out=6), folder)
    tensors = {key: value.copy() for key, value in state_arrays(LocalModel(study, CPU).model).items()}
    return site.visit(Instruction(study.digest, 1, 0, 1, work=True, evaluate=None, tensors=tensors))


def test_a_site_works_privately_where_the_stage_says_so(make_study: MakeStudy, tmp_path: Path) -> None:
    plain = visit(make_study, tmp_path / "plain", None)
    first, again = (
        visit(make_study, tmp_path / name, {"noise_multiplier": 1.0, "sample_rate": 0.5}) for name in ("first", "again")
    )
    assert isinstance(plain, Update)
    assert isinstance(first, Update)
    assert isinstance(again, Update)
    assert set(first.tensors) == set(plain.tensors)
    assert "loss" in plain.train
    assert first.train == {"steps": 2, "noise_multiplier": 1.0, "sample_rate": 0.5}
    assert all((first.tensors[key] != again.tensors[key]).any() for key in first.tensors)


def test_the_site_refuses_in_one_word(make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgraft.client.privacy.dp.gradients.dp_safe.SAMPLERS", {})
    assert visit(make_study, tmp_path, {"noise_multiplier": 1.0, "sample_rate": 0.5}) == Refusal(1, Code.BAD_DATA)
