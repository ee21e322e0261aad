"""On a CUDA device: every method takes its rounds, and what is private there keeps its bound."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedgraft.client.privacy.dp.dpsgd import full_precision, train_private
from fedgraft.client.privacy.dp.gradients.book_keeping import Tape
from fedgraft.client.privacy.dp.gradients.trainer import attached, clip_factors
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.files import load_tensors
from fedgraft.common.study.stages.methods import METHODS
from fedgraft.simulations.engines.run import Engine, Hospitals
from helpers.dp import private_work, quiet, trainable
from helpers.plans import MANY_KINDS
from helpers.simulated import simulate
from helpers.work import NOW, MakeStudy, cohort, images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
GPU = torch.device("cuda")
LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.01}
RESNET = {"model": {"backbone": "resnet18", "weights": None}, "input": {"kind": "image", "size": 64, "channels": 3}}


def finite(run: Path) -> bool:
    return all(np.isfinite(array).all() for array in load_tensors(run / "model.safetensors").values())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_methods_take_their_rounds(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, kind: str, optimiser: str
) -> None:
    study = make_study(method={"name": kind, "rounds": 2, "local": LOCAL | {"optimiser": optimiser}})
    assert finite(simulate(study, hospitals, tmp_path / "run", Engine(name="inprocess")))


def test_stages_of_all_kinds_take_their_rounds(hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    assert finite(simulate(make_study(plan=MANY_KINDS), hospitals, tmp_path / "run", Engine(name="inprocess")))


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_private_steps_of_convolutions(make_study: MakeStudy, mode: str, optimiser: str) -> None:
    """Their entries lie in memory channels last, and the gradients of the mechanism do not."""
    study = make_study(**RESNET)
    local_model, (inputs, labels) = LocalModel(study, GPU), images(24, size=64)
    loader = Loader(cohort(inputs.expand(-1, 3, -1, -1).contiguous(), {"cls": labels}), study.input, GPU)
    keys = trainable(local_model)
    before = local_model.read(keys)
    spec = private_work(3, mode=mode, optimiser=optimiser, lr=0.01, sample_rate=0.5)
    train_private(local_model, loader, [str(n) for n in range(24)], spec, keys, NOW)
    after = local_model.read(keys)
    assert all((before[key] != after[key]).any() for key in keys)


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_sums_are_those_of_the_cpu(make_study: MakeStudy, mode: str) -> None:
    study, found = make_study(**RESNET), []
    inputs, labels = images(12, size=64)
    whole = torch.arange(12)
    start = None
    for device in (torch.device("cpu"), GPU):
        local_model = LocalModel(study, device)
        start = start or local_model.read(local_model.tags)
        local_model.load(start)
        keys = trainable(local_model)
        loader = Loader(cohort(inputs.expand(-1, 3, -1, -1).contiguous(), {"cls": labels}), study.input, device)
        local_model.model.freeze(keys, fixed_norm_stats=True)
        private = quiet(mode=mode, max_grad_norm=0.1).private
        assert private is not None
        (batch,) = loader.batches([whole])
        with full_precision(), attached(local_model, loader, keys, private) as trainer:
            found.append([part.cpu() for part in trainer.sum_of(batch, Rows(whole, whole, 12))])
    flat = [torch.cat([part.flatten() for part in sums]) for sums in found]
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-2


LAYERS = {
    "3x3": (nn.Conv2d(128, 128, 3, padding=1, bias=False), (128, 4, 4), (128, 4, 4)),
    "1x1": (nn.Conv2d(256, 256, 1, bias=False), (256, 3, 3), (256, 3, 3)),
    "strides and groups": (nn.Conv2d(128, 128, 3, stride=2, padding=1, groups=2, bias=False), (128, 4, 4), (128, 2, 2)),
    "7x7": (nn.Conv2d(64, 64, 7, padding=3, bias=False), (64, 6, 6), (64, 6, 6)),
    "linear": (nn.Linear(256, 256, bias=False), (256,), (256,)),
}


def longest(name: str, clip: float, *, cancelling: bool) -> float:
    """The longest gradient of one unit in clips, as it is summed on the GPU, over crafted models and batches."""
    layer, shape, out = LAYERS[name]
    layer, most = layer.to(GPU), 0.0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        inputs, weights = torch.randn(4, *shape, generator=draw), torch.randn(4, *out, generator=draw) * 1e3
        if cancelling and len(shape) > 1:
            inputs = torch.randn(4, shape[0], 1, 1, generator=draw).expand(4, *shape).contiguous()
            weights -= weights.mean(dim=(2, 3), keepdim=True)
        tape, rows = Tape(layer, [layer.weight]), Rows(torch.arange(4), torch.arange(4), 4)
        losses = (layer(inputs.to(GPU)) * weights.to(GPU)).flatten(1).sum(dim=1)
        (found,) = tape.gradients(losses, torch.ones_like(losses))
        part = found.of_units(rows)
        tape.cleanup()
        factors = clip_factors(part.norms(clip), clip)
        for one in torch.eye(4, device=GPU):
            length = float(part.weighted_sum(factors * one).double().norm()) / clip
            assert math.isfinite(length)
            most = max(most, length)
    return most


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("cancelling", [False, True])
def test_no_unit_moves_a_sum_by_more_than_the_clip(name: str, cancelling: bool) -> None:
    with full_precision():
        found = longest(name, 1e-6, cancelling=cancelling)
    print(f"{name}, {cancelling=}: {found:.7f} clips, {longest(name, 1e-6, cancelling=cancelling):.7f} with TF32")
    assert found <= 1.001
