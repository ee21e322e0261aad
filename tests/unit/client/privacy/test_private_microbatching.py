"""Private steps where memory runs out: the same sums from smaller groups, and nothing left of the pass that failed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_full_backward_pre_hook

from fedgraft.client.training.device.alike import SPARE
from helpers.dp import MakeModel, private_work, quiet, sums, trainable
from helpers.work import NOW, snapshot

PATIENTS = ["a", "a", "b", "c", "c", "c", *["d"] * 3, *map(str, range(18))]
ALONE = tuple(map(str, range(27)))


class Gpu:
    """Lets convolutions see at most `cases` at once, as a GPU with little memory; counts how often it ran out."""

    def __init__(self, cases: int) -> None:
        self.cases, self.failed, self._seen = cases, 0, 0

    @contextmanager
    def of(self, way: str) -> Iterator[None]:
        """On the way through the model, or on the way back, when layers before have left what they leave."""
        register = register_module_forward_pre_hook if way == "forward" else register_module_full_backward_pre_hook
        handle = register(self._look)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="For backward hooks")
                yield
        finally:
            handle.remove()

    def _look(self, module: nn.Module, given: Any) -> None:
        if isinstance(module, nn.Conv2d):
            self._seen += 1
            if len(given[0]) > self.cases and self._seen % 4 == 0:
                self.failed += 1
                raise torch.OutOfMemoryError


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_small_gpu_gives_the_sums_of_a_large_one(attack_target: MakeModel, mode: str, way: str, caplog) -> None:
    local_model, loader = attack_target()
    spec = quiet(steps=3, max_grad_norm=0.5, mode=mode, batch_size=26)  # and a quarter more: 32
    wanted = sums(local_model, loader, ALONE, spec)
    gpu = Gpu(8 + SPARE)
    with gpu.of(way), caplog.at_level(logging.WARNING):
        got = sums(local_model, loader, ALONE, spec)
    assert gpu.failed == 2, "32 and 16 cases are too many, 8 are not, and the next steps know"
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    assert "in groups of 8" in caplog.text


def test_a_patient_is_clipped_once_in_whatever_group(attack_target: MakeModel) -> None:
    local_model, loader = attack_target()
    spec = quiet(max_grad_norm=0.1, augmentation_multiplicity=3, batch_size=16)
    wanted = sums(local_model, loader, PATIENTS, spec)
    gpu = Gpu(4)
    with gpu.of("forward"):
        got = sums(local_model, loader, PATIENTS, spec)
    assert gpu.failed
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def test_what_does_not_fit_case_by_case_ends_and_leaves_nothing(attack_target: MakeModel) -> None:
    local_model, loader = attack_target()
    before = snapshot(local_model)
    with Gpu(0).of("backward"), pytest.raises(torch.OutOfMemoryError):
        sums(local_model, loader, ALONE, private_work())
    assert all((value == before[key]).all() for key, value in snapshot(local_model).items())
    left = ("grad_sample", "_current_grad_sample", "_norm_sample", "_forward_counter")
    assert not [key for key in trainable(local_model) for name in left if hasattr(local_model.parameters[key], name)]
    assert all(local_model.parameters[key].grad is None for key in trainable(local_model))


def test_the_figures_do_not_tell_that_memory_ran_out(attack_target: MakeModel) -> None:
    """They are public, and a group is full only if enough patients were drawn."""
    from fedgraft.client.privacy.dp.dpsgd import train_private

    local_model, loader = attack_target()
    spec = private_work(batch_size=16)
    whole = train_private(local_model, loader, ALONE, spec, trainable(local_model), NOW)
    with Gpu(4).of("forward"):
        parts = train_private(local_model, loader, ALONE, spec, trainable(local_model), NOW)
    assert whole == parts


def test_noise_is_drawn_once_a_step(attack_target: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedgraft.client.privacy.dp import noise as noising

    local_model, loader = attack_target()
    real, drawn = noising.steps_of_noise, []

    def counted(like: Tensor, deviation: float) -> Iterator[Tensor]:
        drawn.append(like.shape)
        return real(like, deviation)

    monkeypatch.setattr(noising, "steps_of_noise", counted)
    sums(local_model, loader, ALONE, quiet(steps=2, batch_size=16))
    whole = list(drawn)
    drawn.clear()
    with Gpu(4).of("forward"):
        sums(local_model, loader, ALONE, quiet(steps=2, batch_size=16))
    assert drawn == whole
