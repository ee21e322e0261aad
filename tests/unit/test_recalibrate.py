"""Recalibration moves norm statistics to the plain average, and a failed visit leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Batch, Feed
from fedgraft.client.training.model.local_model import Workbench
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.protocol.instructions import (
    Code,
    Order,
    Refusal,
    Update,
)
from fedgraft.common.study.plan import Gradient, Recalibrate, named
from helpers.work import CPU, NOW, MakeStudy, a_site, cohort, images, moved, snapshot, steps


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
    calm = a_site(study, mine, tmp_path / "calm")
    want = calm.visit(order)
    monkeypatch.setattr("fedgraft.client.runtime.site.Feed", Interrupted)
    shaken = a_site(study, mine, tmp_path / "shaken")
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
