"""Recalibration moves norm statistics to the plain average, and a failed visit leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.recalibrate import recalibrate
from fedgraft.common.protocol.instructions import (
    Code,
    Instruction,
    Refusal,
    Update,
)
from fedgraft.common.study.plan import Gradient, Recalibrate, named
from helpers.work import CPU, NOW, MakeStudy, a_site, cohort, images, moved, snapshot, steps


def test_statistics_become_the_plain_average_over_the_batches(attack_target) -> None:
    local_model, loader = attack_target()
    train(local_model, loader, steps(), tuple(local_model.tags), NOW)
    before = snapshot(local_model)
    layers = {name: part for name, part in local_model.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in layers}
    hooks = [
        part.register_forward_pre_hook(lambda _part, args, name=name: seen[name].append(args[0].numpy().copy()))
        for name, part in layers.items()
    ]
    facts = recalibrate(local_model, loader, Recalibrate(batch_size=8))
    for hook in hooks:
        hook.remove()
    after = snapshot(local_model)
    assert facts == {"examples": 21}
    for name, inputs in seen.items():
        assert len(inputs) == 3
        mean = np.mean([batch.mean((0, 2, 3), dtype=np.float64) for batch in inputs], 0)
        variance = np.mean([batch.var((0, 2, 3), dtype=np.float64, ddof=1) for batch in inputs], 0)
        np.testing.assert_allclose(after[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[f"{name}.running_var"], variance, rtol=1e-4, atol=1e-6)
        assert after[f"{name}.num_batches_tracked"] == 3
    stats = set(named("norm_stats").keys(local_model.tags))
    assert moved(before, after) <= stats
    assert {key for key in stats if "running" in key} <= moved(before, after)


@pytest.mark.parametrize(("cases", "size"), [(3, 2), (5, 2), (2, 64), (21, 5), (4, 3)])
def test_no_batch_of_one_image_is_recalibrated_on(attack_target, make_study: MakeStudy, cases: int, size: int) -> None:
    """At 32 pixels the last layers of a ResNet see one number per channel and image: one image has no variance."""
    local_model, _ = attack_target("resnet18")
    inputs, known = images(cases)
    loader = Loader(cohort(inputs, {"cls": known}), make_study().input, CPU)
    recalibrate(local_model, loader, Recalibrate(batch_size=size))
    assert all(np.isfinite(value).all() for value in snapshot(local_model).values())


def test_recalibration_between_other_work_changes_nothing_but_statistics(attack_target) -> None:
    (local_model, loader), (plain, _) = attack_target(), attack_target()
    heads = named("heads").keys(local_model.tags)
    train(local_model, loader, steps(), tuple(local_model.tags), NOW)
    recalibrate(local_model, loader, Recalibrate())
    scores = {task: sums.arrays() for task, sums in evaluate(local_model, loader, "val").items()}
    before = snapshot(local_model)
    plain.load(before)
    fresh = {task: sums.arrays() for task, sums in evaluate(plain, loader, "val").items()}
    assert all(np.array_equal(scores["cls"][key], fresh["cls"][key]) for key in fresh["cls"])
    assert not moved(before, snapshot(local_model)), "evaluation moves nothing"
    train(local_model, loader, steps(), heads, NOW)
    train(plain, loader, steps(), heads, NOW)
    assert not moved(snapshot(local_model), snapshot(plain))
    assert moved(before, snapshot(local_model)) == set(heads)
    train(local_model, loader, steps(), tuple(local_model.tags), NOW)
    train(plain, loader, steps(), tuple(local_model.tags), NOW)
    assert not moved(snapshot(local_model), snapshot(plain)), "the layers' momentum is what it was"


def test_accuracy_comes_back_under_a_change_of_style(make_study: MakeStudy) -> None:
    spec = {"kind": "image", "size": 32, "normalise": "fixed"}
    study = make_study(model={"backbone": "slim_resnet"}, input=spec)
    local_model = LocalModel(study, CPU)
    inputs, known = images(96)
    here = Loader(cohort(inputs, {"cls": known}, held_out=36), study.input, CPU)
    train(local_model, here, Gradient(epochs=5, batch_size=12, lr=3e-3), tuple(local_model.tags), NOW)
    values = (inputs.double() + 32768) / 65535
    dim = ((values * 0.35 + 0.6) * 65535 - 32768).round().to(torch.int16)
    there = Loader(cohort(dim, {"cls": known}, held_out=36, name="south"), study.input, CPU)

    def accuracy(loader: Loader) -> float:
        return float(evaluate(local_model, loader, "val")["cls"].values()["accuracy"] or 0)

    assert accuracy(here) > 0.9
    shifted = accuracy(there)
    recalibrate(local_model, there, Recalibrate(batch_size=12))
    assert accuracy(there) > max(0.9, shifted + 0.2)


# A site's visit after one that failed.


class Interrupted(Loader):
    """A feed whose second batch cannot be had, once."""

    broken = True

    def batches(self, groups: Sequence[Tensor]) -> Iterator[Batch]:
        for at, batch in enumerate(super().batches(groups)):
            if at == 1 and self.broken:
                self.broken = False
                raise OSError("the disk is gone")
            yield batch


RECALIBRATE = {"local": {"kind": "recalibrate", "batch_size": 8}, "keep": "norm_stats"}
TRAIN_ALL = {"local": {"kind": "gradient", "steps": 3, "batch_size": 8}, "share": "all", "aggregate": {"kind": "mean"}}


@pytest.mark.parametrize("stage", [RECALIBRATE, TRAIN_ALL])
def test_a_visit_after_a_failed_one_is_as_if_nothing_had_happened(make_study, tmp_path, monkeypatch, stage) -> None:
    study = make_study(plan=[{"name": "only", **stage}])
    inputs, known = images(27)
    mine = cohort(inputs, {"cls": known}, held_out=6)
    tensors = LocalModel(study, CPU).read(LocalModel(study, CPU).tags)
    instruction = Instruction(study.digest, 1, 0, 1, work=True, evaluate="val", tensors=tensors)
    calm = a_site(study, mine, tmp_path / "calm")
    want = calm.visit(instruction)
    monkeypatch.setattr("fedgraft.client.runtime.visit.workplace.Loader", Interrupted)
    shaken = a_site(study, mine, tmp_path / "shaken")
    assert shaken.visit(instruction) == Refusal(1, Code.FAILED)
    got = shaken.visit(instruction)
    assert isinstance(want, Update)
    assert isinstance(got, Update)
    assert not moved(dict(want.tensors), dict(got.tensors))
    assert not moved(dict(want.metrics["cls"]), dict(got.metrics["cls"]))
    later = Instruction(study.digest, 2, 0, 1, work=False, evaluate="test", tensors=tensors)
    assert not moved(dict(calm.visit(later).metrics["cls"]), dict(shaken.visit(later).metrics["cls"]))


def test_a_failed_recalibration_leaves_the_layers_as_they_were(attack_target) -> None:
    (local_model, loader), (plain, _) = attack_target(), attack_target()
    start = snapshot(local_model)
    broken = Interrupted(cohort(images(27)[0], {"cls": images(27)[1]}, held_out=6), loader._spec, CPU)
    with pytest.raises(OSError, match="the disk is gone"):
        recalibrate(local_model, broken, Recalibrate(batch_size=8))
    assert not any(part.training for part in local_model.model.modules())
    local_model.load(start)
    train(local_model, loader, steps(), tuple(local_model.tags), NOW)
    train(plain, loader, steps(), tuple(plain.tags), NOW)
    assert not moved(snapshot(local_model), snapshot(plain))
