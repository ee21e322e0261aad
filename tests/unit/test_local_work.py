"""What sites do with a model: gradient steps, recalibration and sums, each against a few plain lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.data.batches import to_float
from client.data.cohort import Cohort
from client.local.augment import augment
from client.local.evaluate import evaluate
from client.local.feed import Batch, Feed, shuffled
from client.local.gradient import Diverged, Moment, TooFewCases, rate_factor, supervised, train
from client.local.recalibrate import recalibrate
from client.local.statistics import column_sums, feature_sums
from client.site import Site
from client.workbench import Workbench
from common.closed_form import ridge_head
from common.inputs import TableInput
from common.orders import Code, Order, Refusal, Update
from common.plan import Augment, Gradient, Recalibrate, Role, Select, named
from common.seeds import derive
from common.study import Study

MakeStudy = Callable[..., Study]
CPU = torch.device("cpu")
NOW = Moment(seed=7, round=1, rounds=1)


def images(count: int, seed: int = 0, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar whose place is the class, as stored, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    values = rng.uniform(0.2, 0.6, (count, 1, size, size))
    for image, label in zip(values, labels, strict=True):
        image[:, :, 2 + 10 * label : 8 + 10 * label] += 0.3
    return torch.from_numpy((values * 65535 - 32768).round().astype(np.int16)), torch.from_numpy(labels)


def cohort(inputs: Tensor, targets: dict[str, Tensor], held_out: int = 0, name: str = "north") -> Cohort:
    """The last `held_out` cases are for validation, all others for training."""
    cut = len(inputs) - held_out
    splits = {"train": torch.arange(cut), "val": torch.arange(cut, len(inputs)), "test": torch.arange(0)}
    return Cohort(name, inputs, targets, tuple(map(str, range(len(inputs)))), splits, (), {})


@pytest.fixture
def desk(make_study: MakeStudy) -> Callable[..., tuple[Workbench, Feed]]:
    """A workbench and a site's feed of 21 training images, 6 held out."""

    def make(backbone: str = "slim_resnet", labels: Tensor | None = None, **changes: Any) -> tuple[Workbench, Feed]:
        study = make_study(model={"backbone": backbone}, **changes)
        inputs, known = images(27)
        targets = {task.name: known if labels is None else labels for task in study.tasks}
        bench = Workbench(study, CPU)
        return bench, Feed(cohort(inputs, targets, held_out=6), study.input, CPU)

    return make


def snapshot(bench: Workbench) -> dict[str, np.ndarray]:
    return bench.read(bench.tags)


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Entries of which any bit differs."""
    return {key for key in before if before[key].tobytes() != after[key].tobytes()}


def steps(count: int = 3, **changes: Any) -> Gradient:
    return Gradient(**({"steps": count, "batch_size": 8, "optimiser": "sgd", "lr": 0.05} | changes))


# Freezing, with the real training loop.


@pytest.mark.parametrize("backbone", ["slim_resnet", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5"])
def test_training_heads_leaves_every_other_bit(desk, backbone: str) -> None:
    bench, feed = desk(backbone)
    before = snapshot(bench)
    train(bench, feed, steps(), named("heads").keys(bench.tags), NOW)
    assert moved(before, snapshot(bench)) == {"heads.cls.weight", "heads.cls.bias"}


@pytest.mark.parametrize("backbone", ["slim_resnet", "densenet121"])
def test_training_the_deeper_half_leaves_every_bit_of_the_rest(desk, backbone: str) -> None:
    bench, feed = desk(backbone)
    middle = max(tag.depth for tag in bench.tags.values()) // 2
    chosen = set(Select(min_depth=middle).keys(bench.tags))
    before = snapshot(bench)
    train(bench, feed, steps(), sorted(chosen), NOW)
    after = snapshot(bench)
    assert moved(before, after) <= chosen
    stats = {key for key in chosen if bench.tags[key].role is Role.NORM_STATS}
    assert stats
    assert stats <= moved(before, after)
    counters = {key: after[key] for key in after if key.endswith("num_batches_tracked")}
    assert all(value.shape == () and value == (3 if key in chosen else 0) for key, value in counters.items())


def test_fixed_statistics_stay_while_the_scale_is_trained(desk) -> None:
    bench, feed = desk()
    chosen = [key for key, tag in bench.tags.items() if tag.role is not Role.NORM_STATS]
    before = snapshot(bench)
    train(bench, feed, steps(), chosen, NOW)
    assert moved(before, snapshot(bench)) == set(chosen)


def test_freezing_does_not_outlast_its_stage(desk) -> None:
    bench, feed = desk()
    train(bench, feed, steps(1), named("heads").keys(bench.tags), NOW)
    before = snapshot(bench)
    train(bench, feed, steps(), tuple(bench.tags), NOW)
    assert moved(before, snapshot(bench)) == set(bench.tags)


def test_work_leaves_the_model_in_eval_and_torchs_own_randomness_alone(desk) -> None:
    bench, feed = desk("mobilenet_v3_small")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(bench, feed, steps(augment=Augment()), tuple(bench.tags), NOW)
    recalibrate(bench, feed, Recalibrate())
    evaluate(bench, feed, "val")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in bench.model.modules())


# The gradient loop against a naive twin.


def naive(bench: Workbench, feed: Feed, epochs: int, lr: float, seed: int) -> None:
    """Plain SGD in ten lines, from the same order of cases."""
    model, generator = bench.model.train(), torch.Generator().manual_seed(derive(seed, "batches"))
    indices = feed.splits["train"]
    for _ in range(epochs):
        for group in indices[torch.randperm(len(indices), generator=generator)].split(8):
            x = to_float(feed._inputs[group], feed._spec)
            model.zero_grad()
            F.cross_entropy(model(x)["cls"], feed.targets("cls", group)).backward()
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(value.grad, alpha=-lr)
    model.eval()


def test_every_bit_is_that_of_plain_sgd(desk) -> None:
    (ours, feed), (plain, _) = desk(), desk()
    facts = train(ours, feed, Gradient(epochs=2, batch_size=8, optimiser="sgd", momentum=0, lr=0.1), [*ours.tags], NOW)
    naive(plain, feed, 2, 0.1, NOW.seed)
    assert not moved(snapshot(ours), snapshot(plain))
    assert (facts["steps"], facts["examples"]) == (6, 21)
    assert math.isfinite(facts["loss"])


def test_the_same_seed_trains_the_same_and_another_does_not(desk) -> None:
    results = []
    for seed in (1, 1, 2):
        bench, feed = desk("mobilenet_v3_small")
        train(bench, feed, steps(2, augment=Augment()), tuple(bench.tags), Moment(seed, 1, 1))
        results.append(snapshot(bench))
    assert not moved(results[0], results[1])
    assert moved(results[0], results[2])


def test_the_backbone_learns_at_its_own_rate(desk) -> None:
    (full, feed), (tenth, _) = desk(), desk()
    before = snapshot(full)
    train(full, feed, steps(1, momentum=0), tuple(full.tags), NOW)
    train(tenth, feed, steps(1, momentum=0, backbone_lr_factor=0.1), tuple(tenth.tags), NOW)
    for key in ("backbone.conv1.weight", "backbone.bn1.bias", "heads.cls.weight"):
        whole, part = snapshot(full)[key] - before[key], snapshot(tenth)[key] - before[key]
        np.testing.assert_allclose(part, whole * (1 if key.startswith("heads") else 0.1), rtol=1e-3, atol=1e-7)
        assert np.abs(whole).max() > 1e-4


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The rate of every group at every step taken."""
    seen: list[list[float]] = []
    real = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *args: Any) -> Any:
        seen.append([group["lr"] for group in self.param_groups])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    return seen


def test_the_schedule_runs_over_all_rounds_of_the_stage(desk, rates: list[list[float]]) -> None:
    bench, feed = desk()
    spec = steps(4, lr=0.01, schedule="cosine", warmup=0.25, backbone_lr_factor=0.5)
    for number in (1, 2):
        train(bench, feed, spec, tuple(bench.tags), Moment(7, number, 2))
    want = []
    for step in range(8):
        done = step / 8
        factor = done / 0.25 if done < 0.25 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.25) / 0.75)
        want.append([0.005 * factor, 0.01 * factor])
    np.testing.assert_allclose(rates, want, rtol=1e-12)
    assert rate_factor(spec, 0.25) == 1
    assert rate_factor(spec, 1.0) == pytest.approx(0, abs=1e-12)


def test_a_constant_rate_stays(desk, rates: list[list[float]]) -> None:
    bench, feed = desk()
    train(bench, feed, steps(5), named("heads").keys(bench.tags), NOW)
    assert rates == [[0.05]] * 5


@pytest.mark.parametrize(
    ("cases", "size", "sizes"),
    [(21, 8, [8, 8, 5]), (17, 8, [8, 9]), (16, 8, [8, 8]), (5, 1, [1] * 5), (9, 8, [9]), (3, 2, [3]), (4, 32, [4])],
)
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_sees_every_case_once(desk, monkeypatch, cases: int, size: int, sizes: list[int], epochs: int) -> None:
    bench, _ = desk("table_linear", input={"kind": "table", "numeric": ["a"]}, plan=TABLE_PLAN)
    feed = Feed(cohort(torch.randn(cases, 1), {"cls": torch.arange(cases) % 3}), bench_input("a"), CPU)
    seen: list[list[int]] = []
    real = feed.batches
    monkeypatch.setattr(
        feed, "batches", lambda groups: real([seen.append(group.tolist()) or group for group in groups])
    )
    facts = train(bench, feed, Gradient(epochs=epochs, batch_size=size), named("heads").keys(bench.tags), NOW)
    assert [len(group) for group in seen] == sizes * epochs
    assert facts["steps"] == len(sizes) * epochs
    flat = [case for group in seen for case in group]
    for at in range(epochs):
        assert sorted(flat[at * cases : (at + 1) * cases]) == list(range(cases))
    if epochs == 2 and cases > 4:
        assert flat[:cases] != flat[cases:]


def test_steps_are_counted_and_epochs_begin_anew_when_they_need_to(desk) -> None:
    bench, feed = desk()
    for count in (1, 3, 4, 10):
        facts = train(bench, feed, steps(count), named("heads").keys(bench.tags), NOW)
        assert facts["steps"] == count


def test_a_last_batch_of_one_joins_the_batch_before_it() -> None:
    groups = shuffled(torch.arange(33), 16, torch.Generator().manual_seed(0))
    assert [len(group) for group in groups] == [16, 17]
    assert sorted(torch.cat(groups).tolist()) == list(range(33))


# The loss.


def test_cases_without_a_label_contribute_nothing() -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    target = torch.tensor([0, -1, 2, -1, 1, -1])
    known = target >= 0
    loss = supervised({"cls": logits}, {"cls": target}, {})
    assert loss.item() == pytest.approx(F.cross_entropy(logits[known], target[known]).item(), rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[~known], torch.zeros(3, 3))
    assert (logits.grad[known] != 0).all()


def test_a_task_without_labels_moves_nothing_and_is_no_nan() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    for weights in ({}, {"cls": torch.zeros(3)}):
        loss = supervised({"cls": logits}, {"cls": torch.full((4,), -1)}, weights)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_unlabelled_cases_do_not_change_what_is_trained(desk, make_study: MakeStudy) -> None:
    inputs, known = images(27)
    some = known.clone()
    some[10:21] = -1
    (whole, feed) = desk(labels=some)
    part, study = desk()[0], make_study(model={"backbone": "slim_resnet"})
    alone = Feed(cohort(inputs[:10], {"cls": known[:10]}), study.input, CPU)
    facts = train(whole, feed, steps(), tuple(whole.tags), NOW)
    train(part, alone, steps(), tuple(part.tags), NOW)
    assert facts["examples"] == 10
    assert not moved(snapshot(whole), snapshot(part))


def test_the_loss_of_several_tasks_is_their_sum() -> None:
    outputs = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    targets = {"a": torch.tensor([0, 1, 2, -1, 0]), "b": torch.tensor([-1, -1, 1, 0, 1])}
    weights = {"b": torch.tensor([0.5, 2.0])}
    want = F.cross_entropy(outputs["a"][:3], targets["a"][:3], reduction="sum")
    want = (want + F.cross_entropy(outputs["a"][4:], targets["a"][4:])) / 4
    want = want + F.cross_entropy(outputs["b"][2:], targets["b"][2:], weights["b"])
    assert float(supervised(outputs, targets, weights)) == pytest.approx(float(want), rel=1e-6)


def test_every_head_learns_from_its_own_labels(desk) -> None:
    tasks = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r", "m"]}]
    bench, feed = desk(tasks=tasks)
    feed._targets["side"] = torch.full((27,), -1)
    before = snapshot(bench)
    train(bench, feed, steps(weight_decay=0), tuple(bench.tags), NOW)
    gone = moved(before, snapshot(bench))
    assert "heads.cls.weight" in gone
    assert not {"heads.side.weight", "heads.side.bias"} & gone


def test_balanced_classes_count_the_same(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0] * 12 + [1] * 6 + [-1] * 3 + [2] * 6)  # class 2 is not among the training cases
    bench, feed = desk(labels=labels)
    seen: list[Tensor] = []
    real = supervised
    monkeypatch.setattr(
        "client.local.gradient.supervised", lambda o, t, weights: seen.append(weights["cls"]) or real(o, t, weights)
    )
    train(bench, feed, steps(1, class_weights="balanced"), named("heads").keys(bench.tags), NOW)
    assert seen[0].tolist() == [0.75, 1.5, 0.0]


def test_clipping_bounds_the_step(desk) -> None:
    bench, feed = desk()
    before = snapshot(bench)
    keys = [key for key, tag in bench.tags.items() if tag.role is not Role.NORM_STATS]
    train(bench, feed, steps(1, lr=1.0, momentum=0, clip_norm=0.01), keys, NOW)
    after = snapshot(bench)
    assert math.sqrt(sum(float(np.square(after[k] - before[k]).sum()) for k in keys)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("count", [1, 8])
def test_a_diverging_run_says_so(desk, count: int) -> None:
    bench, feed = desk()
    with pytest.raises(Diverged):
        train(bench, feed, steps(count, lr=1e38, weight_decay=1000), tuple(bench.tags), NOW)


def test_too_few_cases(desk, make_study: MakeStudy) -> None:
    bench, _ = desk()
    inputs, known = images(1)
    one = Feed(cohort(inputs, {"cls": known}), make_study().input, CPU)
    none = Feed(cohort(inputs, {"cls": torch.tensor([-1])}), make_study().input, CPU)
    train(bench, one, steps(1), named("heads").keys(bench.tags), NOW)
    for feed, keys in ((one, tuple(bench.tags)), (none, named("heads").keys(bench.tags))):
        with pytest.raises(TooFewCases):
            train(bench, feed, steps(1), keys, NOW)
    with pytest.raises(TooFewCases):
        recalibrate(bench, one, Recalibrate())


# Augmentation.


def test_augmentation_is_seeded_and_changes_every_image() -> None:
    x = torch.randn(16, 1, 32, 32)
    first, again, other = (augment(x, Augment(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(first, x, strict=True))
    change = [tuple((a - b).flatten()[:3].tolist()) for a, b in zip(first, x, strict=True)]
    assert len(set(change)) == 16


def test_each_augmentation_does_what_it_says() -> None:
    still = {"flip": False, "shift": 0, "rotate_deg": 0, "contrast": 0, "brightness": 0}
    x = torch.rand(32, 3, 16, 16)

    def changed(**one: Any) -> Tensor:
        return augment(x, Augment(**(still | one)), torch.Generator().manual_seed(0))

    assert torch.equal(changed(), x)
    flipped = changed(flip=True)
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(flipped, x, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(flipped, x, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 5 < sum(mirrored) < 27
    offset = changed(brightness=0.5) - x
    assert torch.allclose(offset, offset[:, :1, :1, :1].expand_as(x), atol=1e-5)
    assert 0.2 < offset.abs().max() <= 0.5
    ratio = changed(contrast=0.5) / x
    assert torch.allclose(ratio, ratio[:, :1, :1, :1].expand_as(x), rtol=1e-3)
    assert 0.5 <= ratio.min() < 0.8
    assert 1.2 < ratio.max() <= 1.5


def test_a_shift_is_a_share_of_the_width() -> None:
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 16, 16] = 1
    spec = Augment(flip=False, shift=0.25, rotate_deg=0, contrast=0, brightness=0)
    y = augment(x, spec, torch.Generator().manual_seed(0))
    place = (y * torch.arange(32.0)).sum((1, 2, 3)) / y.sum((1, 2, 3))
    assert 6 < (place - 16).abs().max() <= 8.01


# Recalibration.


def test_statistics_become_the_plain_average_over_the_batches(desk) -> None:
    bench, feed = desk()
    train(bench, feed, steps(), tuple(bench.tags), NOW)
    before = snapshot(bench)
    layers = {name: part for name, part in bench.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    hooks = [
        part.register_forward_pre_hook(lambda _part, args, name=name: seen[name].append(args[0].numpy().copy()))
        for name, part in layers.items()
    ]
    facts = recalibrate(bench, feed, Recalibrate(batch_size=8))
    for hook in hooks:
        hook.remove()
    after = snapshot(bench)
    assert facts == {"examples": 21}
    for name, inputs in seen.items():
        assert len(inputs) == 3
        mean = np.mean([batch.mean((0, 2, 3), dtype=np.float64) for batch in inputs], 0)
        variance = np.mean([batch.var((0, 2, 3), dtype=np.float64, ddof=1) for batch in inputs], 0)
        np.testing.assert_allclose(after[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[f"{name}.running_var"], variance, rtol=1e-4, atol=1e-6)
        assert after[f"{name}.num_batches_tracked"] == 3
    stats = set(named("norm_stats").keys(bench.tags))
    assert moved(before, after) <= stats
    assert {key for key in stats if "running" in key} <= moved(before, after)


@pytest.mark.parametrize(("cases", "size"), [(3, 2), (5, 2), (2, 64), (21, 5), (4, 3)])
def test_no_batch_of_one_image_is_recalibrated_on(desk, make_study: MakeStudy, cases: int, size: int) -> None:
    """At 32 pixels the last layers of a ResNet see one number per channel and image: one image has no variance."""
    bench, _ = desk("resnet18")
    inputs, known = images(cases)
    feed = Feed(cohort(inputs, {"cls": known}), make_study().input, CPU)
    recalibrate(bench, feed, Recalibrate(batch_size=size))
    assert all(np.isfinite(value).all() for value in snapshot(bench).values())


def test_recalibration_between_other_work_changes_nothing_but_statistics(desk) -> None:
    (bench, feed), (plain, _) = desk(), desk()
    heads = named("heads").keys(bench.tags)
    train(bench, feed, steps(), tuple(bench.tags), NOW)
    recalibrate(bench, feed, Recalibrate())
    scores = {task: sums.arrays() for task, sums in evaluate(bench, feed, "val").items()}
    before = snapshot(bench)
    plain.load(before)
    fresh = {task: sums.arrays() for task, sums in evaluate(plain, feed, "val").items()}
    assert all(np.array_equal(scores["cls"][key], fresh["cls"][key]) for key in fresh["cls"])
    assert not moved(before, snapshot(bench)), "evaluation moves nothing"
    train(bench, feed, steps(), heads, NOW)
    train(plain, feed, steps(), heads, NOW)
    assert not moved(snapshot(bench), snapshot(plain))
    assert moved(before, snapshot(bench)) == set(heads)
    train(bench, feed, steps(), tuple(bench.tags), NOW)
    train(plain, feed, steps(), tuple(bench.tags), NOW)
    assert not moved(snapshot(bench), snapshot(plain)), "the layers' momentum is what it was"


def test_accuracy_comes_back_under_a_change_of_style(make_study: MakeStudy) -> None:
    spec = {"kind": "image", "size": 32, "normalise": "fixed"}
    study = make_study(model={"backbone": "slim_resnet"}, input=spec)
    bench = Workbench(study, CPU)
    inputs, known = images(96)
    here = Feed(cohort(inputs, {"cls": known}, held_out=36), study.input, CPU)
    train(bench, here, Gradient(epochs=5, batch_size=12, lr=3e-3), tuple(bench.tags), NOW)
    values = (inputs.double() + 32768) / 65535
    dim = ((values * 0.35 + 0.6) * 65535 - 32768).round().to(torch.int16)
    there = Feed(cohort(dim, {"cls": known}, held_out=36, name="south"), study.input, CPU)

    def accuracy(feed: Feed) -> float:
        return float(evaluate(bench, feed, "val")["cls"].values()["accuracy"] or 0)

    assert accuracy(here) > 0.9
    shifted = accuracy(there)
    recalibrate(bench, there, Recalibrate(batch_size=12))
    assert accuracy(there) > max(0.9, shifted + 0.2)


# A site's visit after one that failed.


class Interrupted(Feed):
    """A feed whose second batch cannot be had, once."""

    broken = True

    def batches(self, groups: Sequence[Tensor]) -> Iterator[Batch]:
        for at, batch in enumerate(super().batches(groups)):
            if at == 1 and self.broken:
                self.broken = False
                raise OSError("the disk is gone")
            yield batch


RECALIBRATE = {"local": {"kind": "recalibrate", "batch_size": 8}, "keep": "norm_stats"}
TRAIN_ALL = {"local": {"kind": "gradient", "steps": 3, "batch_size": 8}, "share": "all", "merge": {"kind": "mean"}}


@pytest.mark.parametrize("stage", [RECALIBRATE, TRAIN_ALL])
def test_a_visit_after_a_failed_one_is_as_if_nothing_had_happened(make_study, tmp_path, monkeypatch, stage) -> None:
    study = make_study(plan=[{"name": "only", **stage}])
    inputs, known = images(27)
    mine = cohort(inputs, {"cls": known}, held_out=6)
    tensors = Workbench(study, CPU).read(Workbench(study, CPU).tags)
    order = Order(study.digest, 1, 0, 1, work=True, evaluate="val", tensors=tensors)
    calm = Site(study, mine, Workbench(study, CPU), tmp_path / "calm")
    want = calm.visit(order)
    monkeypatch.setattr("client.site.Feed", Interrupted)
    shaken = Site(study, mine, Workbench(study, CPU), tmp_path / "shaken")
    assert shaken.visit(order) == Refusal(1, Code.FAILED)
    got = shaken.visit(order)
    assert isinstance(want, Update)
    assert isinstance(got, Update)
    assert not moved(dict(want.tensors), dict(got.tensors))
    assert not moved(dict(want.metrics["cls"]), dict(got.metrics["cls"]))
    later = Order(study.digest, 2, 0, 1, work=False, evaluate="val", tensors=tensors)
    assert not moved(dict(calm.visit(later).metrics["cls"]), dict(shaken.visit(later).metrics["cls"]))


def test_a_failed_recalibration_leaves_the_layers_as_they_were(desk) -> None:
    (bench, feed), (plain, _) = desk(), desk()
    start = snapshot(bench)
    broken = Interrupted(cohort(images(27)[0], {"cls": images(27)[1]}, held_out=6), feed._spec, CPU)
    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(bench, broken, Recalibrate(batch_size=8))
    assert not any(part.training for part in bench.model.modules())
    bench.load(start)
    train(bench, feed, steps(), tuple(bench.tags), NOW)
    train(plain, feed, steps(), tuple(plain.tags), NOW)
    assert not moved(snapshot(bench), snapshot(plain))


# Sums.

TABLE_PLAN = [
    {
        "name": "columns",
        "local": {"kind": "statistics", "of": "columns"},
        "share": {"roles": ["scale"]},
        "merge": {"kind": "standardise"},
    }
]


def bench_input(*columns: str) -> TableInput:
    return TableInput(numeric=columns)


def test_feature_sums_are_those_of_numpy(desk) -> None:
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2] * 3 + [0] * 6)
    bench, feed = desk(labels=labels)
    bench.model.train()  # must not matter
    sums = feature_sums(bench, feed)
    known = (labels[:21] >= 0).nonzero().flatten()
    with torch.no_grad():
        features = bench.model.eval().features(to_float(feed._inputs[known], feed._spec)).double().numpy()
    z = np.hstack([features, np.ones((len(known), 1))])
    y = np.eye(3)[labels[known].numpy()]
    np.testing.assert_allclose(sums["cls/gram"], z.T @ z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums["cls/cross"], z.T @ y, rtol=1e-4, atol=1e-4)
    assert sums["cls/gram"][-1, -1] == 18
    assert sums["cls/gram"].dtype == np.float64


def pooled_ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge on standardised features, written for pooled data and solved as least squares."""
    mean, std = x.mean(0), x.std(0)
    z, count = (x - mean) / std, len(x)
    one_hot = np.eye(3)[y]
    top = np.vstack([z, np.sqrt(count * strength) * np.eye(x.shape[1])])
    right = np.vstack([one_hot - one_hot.mean(0), np.zeros((x.shape[1], 3))])
    weight = np.linalg.lstsq(top, right, rcond=None)[0] / std[:, None]
    return weight.T, one_hot.mean(0) - mean @ weight


def test_a_ridge_over_three_sites_is_the_pooled_one(make_study: MakeStudy) -> None:
    columns = ("a", "b", "c", "d")
    study = make_study(model={"backbone": "table_linear"}, input=bench_input(*columns), plan=TABLE_PLAN)
    bench, rng = Workbench(study, CPU), np.random.default_rng(1)
    x = torch.from_numpy((rng.normal(size=(90, 4)) * [1, 3, 0.2, 5] + [4, -2, 0, 9]).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 90))
    parts = []
    for start, end in pairwise([0, 11, 50, 90]):
        feed = Feed(cohort(x[start:end], {"cls": y[start:end]}), study.input, CPU)
        parts.append(feature_sums(bench, feed))
    gram, cross = (sum(part[f"cls/{name}"] for part in parts) for name in ("gram", "cross"))
    for ours, theirs in zip(
        ridge_head(gram, cross, 0.1), pooled_ridge(x.double().numpy(), y.numpy(), 0.1), strict=True
    ):
        assert np.abs(ours - theirs).max() < 1e-10


def test_column_sums_leave_out_missing_numbers(make_study: MakeStudy) -> None:
    study = make_study(model={"backbone": "table_mlp"}, input=bench_input("a", "b", "c"), plan=TABLE_PLAN)
    nan = float("nan")
    x = torch.tensor([[1.0, nan, nan], [2.0, 5.0, nan], [nan, 7.0, nan], [100.0, 100.0, 100.0]])
    sums = column_sums(study, Feed(cohort(x, {"cls": torch.tensor([0, -1, 1, 2])}, held_out=1), study.input, CPU))
    assert {key: value.tolist() for key, value in sums.items()} == {
        "count": [2, 2, 0],
        "sum": [3, 12, 0],
        "squares": [5, 74, 0],
    }
