"""When memory runs out: the same step from parts of a batch, the same visit from its beginning, and a word about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fedgraft.client.training.gradient import train
from fedgraft.client.training.microbatching import PARTS, Microbatching
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel, NoGpu, device_named
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.protocol.instructions import Instruction
from fedgraft.common.study.plan import Recalibrate, Role
from helpers.work import CPU, NOW, a_site, cohort, images, snapshot, steps


class Gpu:
    """Lets the model see at most `cases` at once, as a GPU with little memory; counts how often it ran out."""

    def __init__(self, cases: int) -> None:
        self.cases, self.failed = cases, 0

    @contextmanager
    def of(self, local_model: LocalModel) -> Iterator[None]:
        def full(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if len(inputs[0]) > self.cases:
                self.failed += 1
                raise torch.OutOfMemoryError

        # In the middle of a pass, so that layers before it have been at work.
        middle = list(local_model.model.backbone.modules())[-3]
        hook = middle.register_forward_pre_hook(full)
        yield
        hook.remove()


def unbound(local_model: LocalModel) -> list[str]:
    """All that can be trained without tying the cases of a batch together."""
    return [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]


def worked(
    local_model: LocalModel, loader: Loader, changes: list[str], microbatching: Microbatching | None = None, **spec
) -> dict[str, float]:
    before = snapshot(local_model)
    microbatching = microbatching or Microbatching(local_model)
    return microbatching.train(
        loader, steps(5, **spec), changes, NOW, lambda: local_model.begin(before, local_model.tags)
    )


@pytest.mark.parametrize(
    "spec", [{}, {"class_weights": "balanced", "clip_norm": 0.5}, {"optimiser": "adamw", "lr": 0.002}]
)
def test_a_small_gpu_trains_what_a_large_one_does(attack_target, spec, caplog):
    local_model, loader = attack_target()
    start = snapshot(local_model)
    whole = train(local_model, loader, steps(5, **spec), unbound(local_model), NOW)
    wanted = snapshot(local_model)
    local_model.load(start)
    gpu = Gpu(3)
    with gpu.of(local_model), caplog.at_level(logging.WARNING):
        local_model.begin(start, local_model.tags)
        found = worked(
            local_model, loader, unbound(local_model), Microbatching(local_model, logging.getLogger("room")), **spec
        )
        assert (found[PARTS], gpu.failed) == (4, 2)
        worked(local_model, loader, unbound(local_model), **spec)
        assert gpu.failed == 2, "the next visit knows"
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert "worked on in 4 parts" in caplog.text
    assert "norm layers" not in caplog.text
    local_model.begin(start, local_model.tags)
    again = worked(local_model, loader, unbound(local_model), **spec)
    assert again["loss"] == found["loss"]
    ours = snapshot(local_model)
    for key, array in wanted.items():
        np.testing.assert_allclose(ours[key], array, rtol=2e-3, atol=2e-5, err_msg=key)


def test_labels_that_are_not_known_count_in_no_part(make_study):
    """A batch of which one part has no label, and another few: the mean is over all known labels of the batch."""
    inputs, labels = images(16)
    labels[[0, 1, 2, 3, 4, 9]] = -1
    study = make_study(
        tasks=[{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["a", "b", "c"]}]
    )
    both = {"cls": labels, "side": images(16)[1]}
    results = []
    for parts in (1, 4):
        local_model = LocalModel(study, CPU)
        local_model.parts = parts
        loader = Loader(cohort(inputs, both), study.input, CPU)
        train(local_model, loader, steps(2, batch_size=16, class_weights="balanced"), unbound(local_model), NOW)
        results.append(snapshot(local_model))
    for key, array in results[0].items():
        np.testing.assert_allclose(results[1][key], array, rtol=1e-3, atol=1e-6, err_msg=key)


def test_a_visit_that_began_again_is_one_that_had_parts_from_the_start(attack_target, caplog):
    """Norm layers moved before memory ran out; nothing of that is left."""
    local_model, loader = attack_target()
    start = snapshot(local_model)
    with Gpu(4).of(local_model), caplog.at_level(logging.WARNING):
        worked(local_model, loader, list(local_model.tags), Microbatching(local_model, logging.getLogger("room")))
    began_again = snapshot(local_model)
    assert "norm layers see parts" in caplog.text
    local_model.begin(start, local_model.tags)
    assert local_model.parts == 2
    train(local_model, loader, steps(5), list(local_model.tags), NOW)
    ours = snapshot(local_model)
    assert all(ours[key].tobytes() == array.tobytes() for key, array in began_again.items())


def test_norm_layers_never_see_a_single_case(attack_target):
    local_model, loader = attack_target()
    with Gpu(1).of(local_model), pytest.raises(torch.OutOfMemoryError):
        worked(local_model, loader, list(local_model.tags))
    assert local_model.parts == 4


def test_looking_at_cases_goes_on_in_halves(attack_target):
    local_model, loader = attack_target()
    whole, sums = predictions(local_model, loader, "train"), feature_sums(local_model, loader)
    gpu = Gpu(2)
    with gpu.of(local_model):
        parts, halves = predictions(local_model, loader, "train"), feature_sums(local_model, loader)
    assert gpu.failed
    np.testing.assert_allclose(parts["cls"][0], whole["cls"][0], rtol=1e-4, atol=1e-5)
    assert all(np.allclose(halves[key], sums[key], rtol=1e-4, atol=1e-5) for key in sums)
    with Gpu(0).of(local_model), pytest.raises(torch.OutOfMemoryError):
        predictions(local_model, loader, "train")


def test_statistics_are_taken_over_smaller_batches(attack_target):
    local_model, loader = attack_target()
    gpu = Gpu(5)
    with gpu.of(local_model):
        Microbatching(local_model).recalibrate(loader, Recalibrate(batch_size=16))
    ours = snapshot(local_model)
    Microbatching(local_model).recalibrate(loader, Recalibrate(batch_size=4))
    assert gpu.failed
    assert all(ours[key].tobytes() == array.tobytes() for key, array in snapshot(local_model).items())


def test_a_site_says_so_in_its_log_and_in_its_figures(make_study, tmp_path):
    inputs, labels = images(24)
    study = make_study(method={"name": "fedavg", "rounds": 2, "local": {"steps": 3, "batch_size": 8, "lr": 0.01}})
    site = a_site(study, cohort(inputs, {"cls": labels}), tmp_path)
    model = site._place.local_model
    instruction = Instruction(study.digest, 1, 0, 1, work=True, evaluate=None, tensors=snapshot(model))
    with Gpu(4).of(site._place.local_model):
        update = site.visit(instruction)
        assert update.train[PARTS] == 2
    log = (tmp_path / "site.log").read_text()
    assert "out of memory: batches are worked on in 2 parts" in log
    with Gpu(0).of(model):
        assert site.visit(instruction).code == "out_of_memory"


def test_only_auto_falls_back_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == device_named("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(NoGpu):
            device_named(name)


def test_the_gpu_with_most_room_is_taken_or_the_one_that_is_named(monkeypatch):
    free = [3 << 30, 7 << 30, 5 << 30]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 8 << 30))
    assert device_named("auto") == device_named("cuda") == torch.device("cuda", 1)
    assert device_named("cuda:2") == torch.device("cuda", 2)
    assert device_named("cpu") == CPU
    with pytest.raises(NoGpu):
        device_named("cuda:3")
