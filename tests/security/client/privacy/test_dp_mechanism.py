"""Differential privacy as the trainer does it, measured from outside; and what breaks it on purpose is found out.

The measuring is that of `fedgraft privacy audit`: it runs the site's own trainer and looks at what its optimiser is
given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from fedgraft.client.attacks import attack_target as audit
from fedgraft.client.privacy.dp import dpsgd, secret, units
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.augment import augment
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.models.model import TransferModel
from fedgraft.common.study.plan import Role, named
from fedgraft.common.study.stages.training import Augment
from fedgraft.common.study.study import parse_study
from fedgraft.simulations.audit.attacks.mechanism import CHECKS, mechanism
from fedgraft.simulations.audit.findings import Finding
from helpers import sabotage
from helpers.dp import MakeModel, loader_of, private_work, quiet, sums, trainable
from helpers.work import CPU, NOW, cohort, images, moved, snapshot

OWN = tuple(map(str, range(27)))
"""A patient for every case."""


@pytest.fixture
def attack_target(make_study) -> MakeModel:
    """A workbench and a site of 27 training images."""

    def make(backbone: str = "slim_resnet", seed: int = 3, **changes: object) -> tuple[LocalModel, Loader]:
        study = make_study(model={"backbone": backbone}, seed=seed, **changes)
        inputs, known = images(27)
        targets = {task.name: known for task in study.tasks}
        return LocalModel(study, CPU), Loader(cohort(inputs, targets), study.input, CPU)

    return make


# The mechanism, as the audit measures it.


def at_target(keys: str = "all", backbone: str = "slim_resnet", **changes: object) -> audit.AttackTarget:
    """A model for three classes and these terms; images of 32 pixels, or tables."""
    plan = {"name": "linear_probe", "local": {"epochs": 1}}
    spec = {"kind": "table", "numeric": ["a", "b", "c"]} if backbone.startswith("table") else {"size": 32}
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}]
    adapters = {"adapters": {"rank": 2, "where": "all"}} if keys.startswith("adapters") else {}
    facts = {"name": "test", "tasks": tasks, "model": {"backbone": backbone} | adapters, "method": plan}
    study = parse_study(facts | {"input": {"kind": "image"} | spec}, "test")
    tags = LocalModel(study, CPU).tags
    still = (Role.NORM_STATS, Role.SCALE)
    moves = tuple(key for key in named(keys).keys(tags) if tags[key].role not in still)
    return audit.AttackTarget(study, "train", private_work(**({"steps": 4, "sample_rate": 0.25} | changes)), moves)


def measured(attack_target: audit.AttackTarget, check: str) -> Finding:
    return next(attempt for attempt in mechanism(attack_target) if attempt.name == check).find()


ATTACK_TARGETS = {
    "all": {"noise_multiplier": 1.5, "max_grad_norm": 0.2},
    "all, ghost, images": {"mode": "ghost", "unit": "image", "max_grad_norm": 0.01, "sample_rate": 1.0},
    "heads, views": {
        "keys": "heads",
        "augmentation_multiplicity": 4,
        "max_grad_norm": 100.0,
        "sample_rate": 0.05,
        "optimiser": "adamw",
    },
    "norm and heads, augmented": {"keys": "norm_and_heads", "augment": Augment(), "noise_multiplier": 30.0},
    "adapters": {"keys": "adapters_and_heads", "mode": "ghost"},
    "table": {"backbone": "table_mlp", "noise_multiplier": 0.3},
}
MODEL_FREE = ("noise", "sizes of lots", "rates of lots")
"""They take a second each, and look at the same code whatever the model: once is enough."""
PAIRS = [(name, check) for name in ATTACK_TARGETS for check in CHECKS if name == "all" or check not in MODEL_FREE]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check"), PAIRS)
def test_the_mechanism_is_what_the_guarantee_supposes(name: str, check: str) -> None:
    found = measured(at_target(**ATTACK_TARGETS[name]), check)
    assert found.passed, found


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["efficientnet_b0", "resnet18", "densenet121", "vit_b_16"])
def test_other_models_are_no_different(backbone: str) -> None:
    for check in ("noise of each entry", "sensitivity", "frozen entries"):
        found = measured(at_target("heads", backbone), check)
        assert found.passed, found


# The same checks find out every way of breaking it.

BROKEN = {
    sabotage.no_clip: "sensitivity",
    sabotage.clip_of_the_mean: "sensitivity",
    sabotage.every_image_clipped_alone: "sensitivity",
    sabotage.weighted_mean: "sensitivity",
    sabotage.moving_statistics: "frozen entries",
    sabotage.noise_divided_again: "noise",
    sabotage.half_the_noise: "noise",
    sabotage.no_noise: "noise",
    sabotage.bare_biases: "noise of each entry",
    sabotage.one_key: "fresh noise",
    sabotage.seeded_noise: "fresh noise",
    sabotage.torch_noise: "fresh noise",
    sabotage.numpy_noise: "fresh noise",
    sabotage.lots_of_one_size: "sizes of lots",
    sabotage.one_always_comes: "rates of lots",
    sabotage.a_step_too_few: "releases",
}


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "check"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_mechanism_is_found_out(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None], check: str
) -> None:
    broken(monkeypatch)
    found = measured(at_target(), check)
    assert found.passed is False, found


# What else must hold.


@pytest.mark.parametrize("keys", ["heads", "norm_and_heads", "all"])
def test_nothing_but_what_is_trained_changes_and_nothing_at_all_at_rate_zero(
    attack_target: MakeModel, keys: str
) -> None:
    for rate in (0.0, 0.1):
        local_model, loader = attack_target()
        spec = private_work(2, sample_rate=0.5, optimiser="adamw", weight_decay=0.1, lr=rate)
        changes = [
            key for key in named(keys).keys(local_model.tags) if local_model.tags[key].role is not Role.NORM_STATS
        ]
        before = snapshot(local_model)
        figures = train_private(local_model, loader, OWN, spec, changes, NOW)
        assert moved(before, snapshot(local_model)) == (set(changes) if rate else set())
        assert figures == {"steps": 2, "noise_multiplier": 1.0, "sample_rate": 0.5}
        assert tuple(local_model.model.state_dict()) == tuple(local_model.tags)
        assert not any(part.training for part in local_model.model.modules())
        assert not any(part._forward_hooks or part._backward_hooks for part in local_model.model.modules())
        assert not any(hasattr(p, "grad_sample") for p in local_model.model.parameters())
        assert all(p.grad is None for p in local_model.model.parameters())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_an_image_that_is_no_image_spoils_nothing(attack_target: MakeModel, mode: str, value: float) -> None:
    local_model, loader = attack_target()
    inputs = loader._inputs.clone()
    spoilt = inputs.clone()
    spoilt[4, 0, 3, 3] = value
    rest = torch.arange(27) != 4
    spec = quiet(mode=mode)
    labels = loader._targets["cls"]
    got = sums(local_model, loader_of(loader, spoilt, labels), OWN, spec)
    want = sums(local_model, loader_of(loader, inputs[rest], labels[rest]), OWN[1:], spec)
    assert bool(got.isfinite().all())
    assert float((got - want).norm()) <= (1.001 if value == 1e30 else 1e-4)
    all_bad = sums(
        local_model, loader_of(loader, torch.full_like(inputs, value), labels), OWN, private_work(1, mode=mode)
    )
    assert bool(all_bad.isfinite().all())


def test_a_patients_other_images_count_as_if_the_spoilt_one_did_not_exist(attack_target: MakeModel) -> None:
    local_model, loader = attack_target()
    inputs, labels = loader._inputs[:6].clone(), loader._targets["cls"][:6]
    inputs[2, 0, 0, 0] = math.nan
    rest = [0, 1, 3, 4, 5]
    got = sums(
        local_model,
        loader_of(loader, inputs, labels),
        ["a", "b", "a", "a", "c", "c"],
        quiet(augmentation_multiplicity=4),
    )
    want = sums(
        local_model,
        loader_of(loader, inputs[rest], labels[rest]),
        ["a", "b", "a", "c", "c"],
        quiet(augmentation_multiplicity=4),
    )
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_layers_that_overflow_spoil_nothing(attack_target: MakeModel) -> None:
    """An image that is finite, but of which the gradient is not."""
    for mode in ("hooks", "ghost"):
        local_model, loader = attack_target()
        inputs = loader._inputs.clone()
        inputs[4] = 3e38
        got = sums(local_model, loader_of(loader, inputs, loader._targets["cls"]), OWN, quiet(mode=mode))
        assert bool(got.isfinite().all())
        assert float(got.norm()) > 1


def test_norm_layers_that_look_at_the_batch_are_refused(
    attack_target: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_model, loader = attack_target()
    with pytest.raises(InputError, match="running statistics"):
        train_private(local_model, loader, OWN, private_work(), tuple(local_model.tags), NOW)
    real = TransferModel.freeze

    def freeze(self: TransferModel, keys: Sequence[str], *, fixed_norm_stats: bool) -> None:
        real(self, [*keys, *(key for key, tag in self.tags().items() if tag.role is Role.NORM_STATS)])

    monkeypatch.setattr(TransferModel, "freeze", freeze)
    with pytest.raises(InputError, match="ties patients together"):
        train_private(local_model, loader, OWN, private_work(), trainable(local_model), NOW)


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"max_grad_norm": 0.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"noise_multiplier": math.nan},
    ],
    ids=str,
)
def test_terms_that_promise_nothing_are_refused(attack_target: MakeModel, bad: dict[str, float]) -> None:
    local_model, loader = attack_target()
    spec = private_work()
    assert spec.private is not None
    spec = spec.model_copy(update={"private": spec.private.model_copy(update=bad)})
    before = snapshot(local_model)
    with pytest.raises(InputError):
        train_private(local_model, loader, OWN, spec, trainable(local_model), NOW)
    assert not moved(before, snapshot(local_model))


@pytest.mark.parametrize("changes", [{"clip_norm": 1.0}, {"class_weights": "balanced"}])
def test_work_that_ties_patients_together_is_refused(attack_target: MakeModel, changes: dict[str, object]) -> None:
    local_model, loader = attack_target()
    with pytest.raises(InputError):
        train_private(local_model, loader, OWN, private_work(**changes), trainable(local_model), NOW)


def test_two_images_of_a_patient_never_enter_a_step(attack_target: MakeModel) -> None:
    cases = units.units_of(torch.arange(12), [str(number // 4) for number in range(12)], "patient")
    assert cases == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    lots = units.Lots(cases)
    drawn = torch.stack([lots.rows([0, 1, 2], 1, augmented=False).indices for _ in range(400)])
    assert (drawn // 4).tolist() == [[0, 1, 2]] * 400
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert 50 < int(counts.min()) <= int(counts.max()) < 150
    for augmentation_multiplicity, augmented, lengths in (
        (3, False, [3, 1]),
        (3, True, [3, 3]),
        (9, False, [4, 1]),
        (1, True, [1, 1]),
    ):
        rows = units.Lots([[9], [0, 1, 2, 3], [7]]).rows([1, 2], augmentation_multiplicity, augmented=augmented)
        assert torch.bincount(rows.unit).tolist() == lengths
        assert rows.indices[rows.unit == 1].unique().tolist() == [7]
        first = rows.indices[rows.unit == 0].tolist()
        assert len(set(first)) == min(augmentation_multiplicity, 4)
        assert set(first) <= {0, 1, 2, 3}
    assert units.units_of(torch.tensor([3, 5]), ["a"] * 6, "image") == [[3], [5]]


@pytest.mark.slow
def test_nothing_that_is_drawn_follows_the_studys_seed(attack_target: MakeModel) -> None:
    """Not the lots, nor augmentation, nor dropout: the same visit twice, without noise to tell it apart."""
    for backbone, spec in (
        ("slim_resnet", quiet(sample_rate=0.5)),
        ("slim_resnet", quiet(augment=Augment())),
        ("efficientnet_b0", quiet(max_grad_norm=10.0)),
    ):
        local_model, loader = attack_target(backbone)
        first, second = (sums(local_model, loader, OWN, spec)[0] for _ in range(2))
        assert float((first - second).norm()) > 1e-3


def test_noise_is_gaussian_in_its_tails() -> None:
    drawn = np.sort(secret.normal(200_001))
    assert len(drawn) == 200_001
    for deviations in (0.5, 1, 2, 3):
        share = math.erfc(deviations / math.sqrt(2))
        spread = 6 * math.sqrt(share / len(drawn))
        assert np.mean(np.abs(drawn) > deviations) == pytest.approx(share, abs=spread)
    assert not torch.equal(secret.generator().get_state(), secret.generator().get_state())
    assert secret.uniform(0).shape == secret.normal(0).shape == (0,)


def test_draws_that_move_a_sum_come_of_more_than_32_bits() -> None:
    """Augmentation and dropout go by place, so one patient more shifts them: whoever could try all seeds would see."""
    one, other = (torch.rand(4, generator=torch.Generator().manual_seed(5 + more)) for more in (0, 2**32))
    assert torch.equal(one, other), "torch takes 32 bits of a seed"
    states = [secret.generator().get_state().view(torch.int64)[3 : 3 + 624] for _ in range(2)]
    assert all(int(state.min()) >= 0 and int(state.max()) < 2**32 for state in states)
    assert int((states[0] != states[1]).sum()) > 600
    drawn = torch.rand(200_000, generator=secret.generator(), dtype=torch.float64)
    assert abs(float(drawn.mean()) - 0.5) < 0.005
    assert abs(float(drawn.std()) - 12**-0.5) < 0.005
    masks, before = [], torch.get_rng_state()
    for _ in range(2):
        with secret.torch_seeded():
            masks.append(torch.nn.functional.dropout(torch.ones(64)))
    assert not torch.equal(*masks)
    assert torch.equal(torch.get_rng_state(), before)


def of_a_seed(state: torch.Tensor) -> bool:
    """Whether a generator was set by a seed: its first word is 32 bits of that, and all others follow from it."""
    words = state.view(torch.int64)[3 : 3 + 624]
    return torch.equal(words, torch.Generator().manual_seed(int(words[0])).get_state().view(torch.int64)[3 : 3 + 624])


def test_private_training_draws_from_no_seed(attack_target: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What augments, and what dropout goes by: whoever tries all seeds finds none that it began with."""
    local_model, loader = attack_target("efficientnet_b0")
    augmented, dropped = list[torch.Tensor](), list[torch.Tensor]()

    def watched(inputs: torch.Tensor, spec: Augment, draw: torch.Generator) -> torch.Tensor:
        augmented.append(draw.get_state())
        return augment(inputs, spec, draw)

    monkeypatch.setattr(dpsgd, "augment", watched)
    layer = next(part for part in local_model.model.modules() if isinstance(part, torch.nn.Conv2d))
    layer.register_forward_pre_hook(lambda *_: dropped.append(torch.get_rng_state()) if augmented else None)
    spec = private_work(augment=Augment())
    train_private(local_model, loader, OWN, spec, trainable(local_model), NOW)
    assert of_a_seed(torch.Generator().manual_seed(7 + 2**40).get_state()), "so would a seed be seen"
    assert not of_a_seed(augmented[0])
    assert not of_a_seed(dropped[0])
