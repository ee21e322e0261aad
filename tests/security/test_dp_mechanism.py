"""Differential privacy as the trainer does it, measured from outside; and what breaks it on purpose is found out.

Every check runs the site's own trainer and looks at what its optimiser is given. Deviations and bounds are those that
a privacy guarantee is computed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from client.local.feed import Batch, Feed
from client.privacy import dpsgd, secret, units
from client.privacy.dpsgd import train_private
from client.workbench import Workbench
from common.errors import InputError
from common.inputs import TableInput
from common.model import TransferModel
from common.plan import Augment, Role, named
from helpers.dp import Desk, feed_of, quiet, sums, terms, trainable
from helpers.work import CPU, NOW, TABLE_PLAN, cohort, images, moved, snapshot

NOBODY = 1e-9
"""A share of patients so small that no step sees any."""

OWN = tuple(map(str, range(27)))
"""A patient for every case."""


@pytest.fixture
def desk(make_study) -> Desk:
    """A workbench and a site of 27 training images."""

    def make(backbone: str = "slim_resnet", seed: int = 3, **changes: object) -> tuple[Workbench, Feed]:
        study = make_study(model={"backbone": backbone}, seed=seed, **changes)
        inputs, known = images(27)
        targets = {task.name: known for task in study.tasks}
        return Workbench(study, CPU), Feed(cohort(inputs, targets), study.input, CPU)

    return make


# The mechanism. Each check takes `desk` and fails if what it measures is not what the guarantee supposes.


def check_noise_deviation(desk: Desk) -> None:
    """Within 2 % of sigma times clip on each third of the coordinates, whatever the lot expected to come."""
    bench, feed = desk()
    noise = sums(bench, feed, OWN, terms(1, sigma=1.5, clip=0.2, sample=NOBODY))[0]
    assert len(noise) >= 60_000
    for part in noise.chunk(3):
        assert float(part.std()) == pytest.approx(1.5 * 0.2, rel=0.02)
        assert abs(float(part.mean())) < 6 * 0.3 / math.sqrt(len(part))


def check_noise_is_fresh(desk: Desk) -> None:
    """Neither the next step nor another run of the same study and seed has the same noise; no tensor repeats itself."""
    bench, feed = desk()
    first, second = sums(bench, feed, OWN, terms(2, sample=NOBODY))
    third = sums(*desk(), OWN, terms(1, sample=NOBODY))[0]
    half = len(first) // 2
    for a, b in ((first, second), (first, third), (first[:-1], first[1:]), (first[:half], first[-half:])):
        if float(a.std()) > 0:
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 6 / math.sqrt(len(a))


def check_sensitivity(desk: Desk) -> None:
    """Without one patient the sum changes by at most the clip: 20 random lots, and 3 in which all pull one way."""
    bench, feed = desk()
    for lot in range(23):
        inputs, labels, patients = random_lot(lot) if lot < 20 else aligned_lot(lot)
        mode = ("hooks", "ghost")[lot % 2]
        clip = (0.01, 1.0, 100.0)[lot % 3]
        views = 4 if lot % 4 == 0 else 1
        whole = sums(bench, feed_of(feed, inputs, labels), patients, quiet(clip=clip, mode=mode, views=views))
        rest = torch.tensor([patient != "gone" for patient in patients])
        others = [patient for patient in patients if patient != "gone"]
        part = sums(bench, feed_of(feed, inputs[rest], labels[rest]), others, quiet(clip=clip, mode=mode, views=views))
        assert float((whole - part).norm()) <= 1.001 * clip, (lot, mode)


def random_lot(seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Six images of noise, of very different scale; the last patient has one to four of them."""
    draw = torch.Generator().manual_seed(seed)
    scale = 10 ** (torch.rand(6, 1, 1, 1, generator=draw) * 4 - 1)
    scale[-1] = 1000
    own = 1 + seed % 4
    labels = torch.randint(0, 3, (6,), generator=draw)
    return torch.randn(6, 1, 32, 32, generator=draw) * scale, labels, [*map(str, range(6 - own)), *["gone"] * own]


def aligned_lot(seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """Six times the same image, two of them the last patient's."""
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed - 20)
    return image.expand(6, -1, -1, -1).clone(), torch.zeros(6, dtype=torch.long), ["0", "1", "2", "3", "gone", "gone"]


def check_sampler(desk: Desk) -> None:
    """The trainer's lots vary in size as independent coins do, and each patient comes as often as the others."""
    bench, feed = desk("table_linear", input={"kind": "table", "numeric": ["a"]}, plan=TABLE_PLAN)
    feed = Feed(cohort(torch.randn(40, 1), {"cls": torch.arange(40) % 3}), TableInput(numeric=("a",)), CPU)
    seen = np.zeros((1000, 40), dtype=bool)
    real, lots = feed.batches, iter(seen)

    def batches(groups: Sequence[Tensor]) -> Iterator[Batch]:
        next(lots)[[at for group in groups for at in group.tolist()]] = True
        return real(groups)

    feed.batches = batches
    sums(bench, feed, list(map(str, range(40))), terms(1000, sample=0.2), named("heads").keys(bench.tags))
    sizes = seen.sum(axis=1)
    assert sizes.mean() == pytest.approx(8, abs=6 * math.sqrt(6.4 / 1000))
    assert sizes.var() == pytest.approx(40 * 0.2 * 0.8, rel=0.3)
    assert seen.mean(axis=0) == pytest.approx(np.full(40, 0.2), abs=6 * math.sqrt(0.16 / 1000))


def check_steps(desk: Desk) -> None:
    """Exactly as many releases as were announced, however many patients came."""
    bench, feed = desk()
    for steps, sample in ((3, NOBODY), (4, 0.1), (2, 1.0)):
        spec = terms(steps, sample=sample, batch_size=4)
        assert len(sums(bench, feed, OWN, spec, named("heads").keys(bench.tags))) == steps


CHECKS = (check_noise_deviation, check_noise_is_fresh, check_sampler, check_steps, check_sensitivity)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_mechanism_is_what_the_guarantee_supposes(desk: Desk, check: Callable[[Desk], None]) -> None:
    check(desk)


# The same checks find out every way of breaking it.


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dpsgd, "clip_factors", lambda norms, clip: torch.ones_like(norms))


def clip_of_the_mean(patch: pytest.MonkeyPatch) -> None:
    def whole(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
        means = [part.mean(dim=0) for part in gradients]
        factor = min(1.0, clip / float(torch.cat([mean.flatten() for mean in means]).norm()))
        return [mean * factor * len(gradients[0]) for mean in means]

    patch.setattr(dpsgd, "clip_and_sum", whole)


def noise_divided_again(patch: pytest.MonkeyPatch) -> None:
    real = dpsgd.noisy_mean
    patch.setattr(dpsgd, "noisy_mean", lambda total, deviation, expected: real(total, deviation / 27, expected))


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    real = dpsgd.noise
    patch.setattr(dpsgd, "noise", lambda like, deviation: real(like, deviation / 2))


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dpsgd, "noise", lambda like, deviation: torch.zeros_like(like, dtype=torch.float64))


def one_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(secret, "_key", lambda: bytes(32))


def seeded_noise(patch: pytest.MonkeyPatch) -> None:
    def seeded(like: Tensor, deviation: float) -> Tensor:
        draw = torch.Generator().manual_seed(like.numel())
        return torch.randn(like.shape, generator=draw, dtype=torch.float64) * deviation

    patch.setattr(dpsgd, "noise", seeded)


def lots_of_one_size(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dpsgd, "draw_units", lambda count, sample: torch.randperm(count)[: round(count * sample)].tolist())


def a_step_too_few(patch: pytest.MonkeyPatch) -> None:
    real = dpsgd._terms
    patch.setattr(dpsgd, "_terms", lambda *args: (*real(*args)[:2], max(1, real(*args)[2] - 1)))


def every_image_clipped_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dpsgd, "units_of", lambda indices, patients, unit: list(indices.split(1)))


BROKEN = (
    (no_clip, check_sensitivity),
    (clip_of_the_mean, check_sensitivity),
    (every_image_clipped_alone, check_sensitivity),
    (noise_divided_again, check_noise_deviation),
    (half_the_noise, check_noise_deviation),
    (no_noise, check_noise_deviation),
    (one_key, check_noise_is_fresh),
    (seeded_noise, check_noise_is_fresh),
    (lots_of_one_size, check_sampler),
    (a_step_too_few, check_steps),
)


@pytest.mark.parametrize(("sabotage", "check"), BROKEN, ids=lambda value: value.__name__)
def test_a_broken_mechanism_is_found_out(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[Desk], None],
) -> None:
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        check(desk)


# What else must hold.


@pytest.mark.parametrize("keys", ["heads", "norm_and_heads", "all"])
def test_nothing_but_what_is_trained_changes_and_nothing_at_all_at_rate_zero(desk: Desk, keys: str) -> None:
    for rate in (0.0, 0.1):
        bench, feed = desk()
        spec = terms(2, sample=0.5, optimiser="adamw", weight_decay=0.1, lr=rate)
        changes = [key for key in named(keys).keys(bench.tags) if bench.tags[key].role is not Role.NORM_STATS]
        before = snapshot(bench)
        figures = train_private(bench, feed, OWN, spec, changes, NOW)
        assert moved(before, snapshot(bench)) == (set(changes) if rate else set())
        assert figures == {"steps": 2, "sigma": 1.0, "sample": 0.5}
        assert tuple(bench.model.state_dict()) == tuple(bench.tags)
        assert not any(part.training for part in bench.model.modules())
        assert not any(part._forward_hooks or part._backward_hooks for part in bench.model.modules())
        assert not any(hasattr(p, "grad_sample") for p in bench.model.parameters())
        assert all(p.grad is None for p in bench.model.parameters())


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_an_image_that_is_no_image_spoils_nothing(desk: Desk, mode: str, value: float) -> None:
    bench, feed = desk()
    inputs = feed._inputs.clone()
    spoilt = inputs.clone()
    spoilt[4, 0, 3, 3] = value
    rest = torch.arange(27) != 4
    spec = quiet(mode=mode)
    labels = feed._targets["cls"]
    got = sums(bench, feed_of(feed, spoilt, labels), OWN, spec)
    want = sums(bench, feed_of(feed, inputs[rest], labels[rest]), OWN[1:], spec)
    assert bool(got.isfinite().all())
    assert float((got - want).norm()) <= (1.001 if value == 1e30 else 1e-4)
    all_bad = sums(bench, feed_of(feed, torch.full_like(inputs, value), labels), OWN, terms(1, mode=mode))
    assert bool(all_bad.isfinite().all())


def test_a_patients_other_images_count_as_if_the_spoilt_one_did_not_exist(desk: Desk) -> None:
    bench, feed = desk()
    inputs, labels = feed._inputs[:6].clone(), feed._targets["cls"][:6]
    inputs[2, 0, 0, 0] = math.nan
    rest = [0, 1, 3, 4, 5]
    got = sums(bench, feed_of(feed, inputs, labels), ["a", "b", "a", "a", "c", "c"], quiet(views=4))
    want = sums(bench, feed_of(feed, inputs[rest], labels[rest]), ["a", "b", "a", "c", "c"], quiet(views=4))
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_layers_that_overflow_spoil_nothing(desk: Desk) -> None:
    """An image that is finite, but of which the gradient is not."""
    for mode in ("hooks", "ghost"):
        bench, feed = desk()
        inputs = feed._inputs.clone()
        inputs[4] = 3e38
        got = sums(bench, feed_of(feed, inputs, feed._targets["cls"]), OWN, quiet(mode=mode))
        assert bool(got.isfinite().all())
        assert float(got.norm()) > 1


def test_norm_layers_that_look_at_the_batch_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, feed = desk()
    with pytest.raises(InputError, match="running statistics"):
        train_private(bench, feed, OWN, terms(), tuple(bench.tags), NOW)
    real = TransferModel.freeze

    def freeze(self: TransferModel, keys: Sequence[str], *, fixed_norm_stats: bool) -> None:
        real(self, [*keys, *(key for key, tag in self.tags().items() if tag.role is Role.NORM_STATS)])

    monkeypatch.setattr(TransferModel, "freeze", freeze)
    with pytest.raises(InputError, match="ties patients together"):
        train_private(bench, feed, OWN, terms(), trainable(bench), NOW)


@pytest.mark.parametrize(
    "bad",
    [{"sigma": 0.0}, {"sigma": -1.0}, {"clip": 0.0}, {"sample": 0.0}, {"sample": 1.5}, {"sigma": math.nan}],
    ids=str,
)
def test_terms_that_promise_nothing_are_refused(desk: Desk, bad: dict[str, float]) -> None:
    bench, feed = desk()
    spec = terms()
    assert spec.private is not None
    spec = spec.model_copy(update={"private": spec.private.model_copy(update=bad)})
    before = snapshot(bench)
    with pytest.raises(InputError):
        train_private(bench, feed, OWN, spec, trainable(bench), NOW)
    assert not moved(before, snapshot(bench))


@pytest.mark.parametrize("changes", [{"clip_norm": 1.0}, {"class_weights": "balanced"}, {"mode": "ghost", "views": 2}])
def test_work_that_ties_patients_together_is_refused(desk: Desk, changes: dict[str, object]) -> None:
    bench, feed = desk()
    with pytest.raises(InputError):
        train_private(bench, feed, OWN, terms(**changes), trainable(bench), NOW)


def test_two_images_of_a_patient_never_enter_a_step(desk: Desk) -> None:
    cases = units.units_of(torch.arange(12), [str(number // 4) for number in range(12)], "patient")
    assert [own.tolist() for own in cases] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    drawn = torch.stack([torch.cat(units.draw_rows(cases, 1, augmented=False)) for _ in range(400)])
    assert (drawn // 4).tolist() == [[0, 1, 2]] * 400
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert 50 < int(counts.min()) <= int(counts.max()) < 150
    for views, augmented, lengths in ((3, False, [3, 1]), (3, True, [3, 3]), (9, False, [4, 1]), (1, True, [1, 1])):
        rows = units.draw_rows([torch.arange(4), torch.tensor([7])], views, augmented=augmented)
        assert [len(own) for own in rows] == lengths
        assert len(set(rows[0].tolist())) == min(views, 4)
    assert [own.tolist() for own in units.units_of(torch.tensor([3, 5]), ["a"] * 6, "image")] == [[3], [5]]


def test_nothing_that_is_drawn_follows_the_studys_seed(desk: Desk) -> None:
    """Not the lots, nor augmentation, nor dropout: the same visit twice, without noise to tell it apart."""
    for backbone, spec in (
        ("slim_resnet", quiet(sample=0.5)),
        ("slim_resnet", quiet(augment=Augment())),
        ("efficientnet_b0", quiet(clip=10.0)),
    ):
        bench, feed = desk(backbone)
        first, second = (sums(bench, feed, OWN, spec)[0] for _ in range(2))
        assert float((first - second).norm()) > 1e-3


def test_noise_is_gaussian_in_its_tails() -> None:
    drawn = np.sort(secret.normal(200_001))
    assert len(drawn) == 200_001
    for deviations in (0.5, 1, 2, 3):
        share = math.erfc(deviations / math.sqrt(2))
        spread = 6 * math.sqrt(share / len(drawn))
        assert np.mean(np.abs(drawn) > deviations) == pytest.approx(share, abs=spread)
    assert secret.seed() != secret.seed()
    assert secret.uniform(0).shape == secret.normal(0).shape == (0,)
