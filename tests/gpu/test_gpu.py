"""On a CUDA device: the same study, the same learning, and no more memory than there is."""

from __future__ import annotations

import gc
import json
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch

from fedgraft.client.privacy.dp.chacha import DeviceWords
from fedgraft.client.privacy.dp.noise import granularity, noise
from fedgraft.client.training.augment import augment
from fedgraft.client.training.device.streaming import placed, streamed
from fedgraft.client.training.gradient import train
from fedgraft.client.training.microbatching import Microbatching
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.study.plan import Role
from fedgraft.common.study.stages.training import Augment
from fedgraft.simulations.engines.run import Engine
from helpers.simulated import simulate
from helpers.work import NOW, cohort, images, steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_study_runs_on_the_gpu_without_a_change(hospitals, make_study, tmp_path, engine: str):
    study = make_study(method={"name": "graft", "rounds": 4, "local": {"epochs": 2, "batch_size": 8, "lr": 0.003}})
    run = simulate(study, hospitals, tmp_path / "run", Engine(name=engine))
    assert read_json(run / "environment.json")["device"] == torch.cuda.get_device_name(0)
    assert read_json(run / "result.json")["metrics"]["cls"]["pooled"]["auroc"] > 0.9
    assert all(np.isfinite(array).all() for array in load_tensors(run / "model.safetensors").values())


def test_recalibrated_entries_stay_at_the_sites(hospitals, make_study, tmp_path):
    run = simulate(make_study(method="graft"), hospitals, tmp_path / "run")
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-2])
    assert (last["stage"], last["bytes_up"] < 10_000) == ("adapt", True)
    assert list((run / "sites" / "north" / "local_state").rglob("*.safetensors"))


@pytest.mark.parametrize("few", [True, False])
def test_resident_and_streamed_cohorts_train_alike(make_study, monkeypatch, few: bool):
    """A cohort that does not fit is streamed through pinned memory; the batches are the same."""
    monkeypatch.setattr("fedgraft.client.training.model.loader._FEW_NUMBERS", 1 << 22 if few else 0)
    inputs, labels = images(27)
    study, losses = make_study(), []
    for share in (0.4, 0.0):
        monkeypatch.setattr("fedgraft.client.training.model.loader._RESIDENT_SHARE", share)
        local_model, loader = LocalModel(study, GPU), Loader(cohort(inputs, {"cls": labels}), study.input, GPU)
        losses.append(train(local_model, loader, steps(6), tuple(local_model.tags), NOW)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_streamed_rows_are_those_asked_for_while_memory_is_used_again():
    stored = torch.arange(512 * 3000, dtype=torch.int32).view(512, 3000)
    order = torch.randperm(512 * 8, generator=torch.Generator().manual_seed(0)) % 512
    groups = list(order.split(37))
    work = torch.randn(2000, 2000, device=GPU)
    for rows, indices in zip(streamed(stored, groups, GPU), groups, strict=True):
        work = work @ work / work.norm()  # what is queued before is still at work when the rows are looked at
        assert torch.equal(rows.cpu(), stored[indices])
    assert [len(own) for own in placed(groups, GPU)] == [len(own) for own in groups]


def test_the_secret_stream_is_that_of_the_cpu():
    key = bytes(range(32))
    there, here = (DeviceWords(key, 4003, torch.device(name)) for name in ("cuda", "cpu"))
    assert all(torch.equal(there.next().cpu(), here.next()) for _ in range(3))


def test_noise_made_on_the_gpu_is_normal_and_lies_on_the_grid():
    drawn = noise(torch.zeros(1 << 21, device=GPU), 2.0).cpu().double()
    assert scipy.stats.kstest(drawn.numpy() / 2, "norm").pvalue > 1e-7
    steps = drawn / granularity(2.0)
    assert torch.equal(steps, steps.round())


def test_augmentation_is_that_of_the_cpu():
    images = torch.rand(16, 3, 32, 32)
    spec = Augment(flip=True, rotate_deg=20, shift=0.1, contrast=0.2, brightness=0.2)
    here, there = (augment(images.to(name), spec, torch.Generator().manual_seed(5)).cpu() for name in ("cpu", "cuda"))
    assert torch.allclose(here, there, atol=1e-4)


def test_a_gpu_that_is_too_small_works_on_parts_of_batches(make_study):
    study = make_study(model={"backbone": "resnet18", "weights": None}, input={"kind": "image", "size": 64})
    inputs, labels = images(256, size=64)
    spec, losses = steps(3, batch_size=256), []
    total = torch.cuda.get_device_properties(GPU).total_memory
    share = 1.0
    for small in (False, True):
        local_model = LocalModel(study, GPU)
        loader = Loader(cohort(inputs, {"cls": labels}), study.input, GPU)
        begin = partial(local_model.begin, local_model.read(local_model.tags), tuple(local_model.tags))
        changes = [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(GPU)
        before = torch.cuda.memory_reserved(GPU)
        torch.cuda.set_per_process_memory_fraction(share, 0)
        try:
            figures = Microbatching(local_model).train(loader, spec, changes, NOW, begin)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
        assert (figures.get("parts", 1) > 1) == small
        losses.append(figures["loss"])
        share = (before + 0.5 * (torch.cuda.max_memory_reserved(GPU) - before)) / total
        del local_model, loader, begin
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_what_goes_in_comes_out(make_study):
    local_model = LocalModel(make_study(model={"backbone": "resnet18", "weights": None}), GPU)
    rng = np.random.default_rng(0)
    before = local_model.read(local_model.tags)
    arrays = {key: rng.normal(size=a.shape).astype(a.dtype) for key, a in before.items()}
    local_model.load(arrays)
    after = local_model.read(local_model.tags)
    assert all((after[key] == arrays[key]).all() for key in arrays)
    assert local_model.finite(local_model.tags)
    local_model.load({key: np.full_like(a, np.nan) if a.dtype.kind == "f" else a for key, a in arrays.items()})
    assert not local_model.finite(local_model.tags)


def test_a_site_checks_itself_on_the_gpu(hospital):
    lines = hospital.lines("environment", "training")
    assert lines["gpu"].figures["name"] == torch.cuda.get_device_name(0)
    assert lines["peak_memory"].figures["device"] == "cuda"
    assert 1e6 < lines["peak_memory"].figures["bytes"] < 4e9
    assert lines["stage_train"].level == "ok"
