"""The training loop on a GPU against a hand-written one: images per second, resnet50 at 224 pixels, bf16.

Run it from the repository: python -m benchmarks.gpu --runs 5
Both take the same steps over the same images, which lie in the GPU's memory; they take turns, and each run ends with a
synchronisation. `--device cpu` with a small backbone only shows that it works.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study, parse_study

CLASSES = ("a", "b")


def study(backbone: str, size: int) -> Study:
    """A study of one head over colour images."""
    return parse_study(
        {
            "name": "gpu",
            "tasks": [{"name": "cls", "classes": list(CLASSES)}],
            "input": {"kind": "image", "size": size, "channels": 3, "normalise": "fixed"},
            "model": {"backbone": backbone, "weights": None},
            "method": "fedavg",
        },
        "gpu",
    )


def cohort(images: int, size: int) -> Cohort:
    """Noise, as stored, all of it for training."""
    inputs = torch.randint(-32768, 32767, (images, 3, size, size), dtype=torch.int16)
    splits = {"train": torch.arange(images), "val": torch.arange(0), "test": torch.arange(0)}
    return Cohort("noise", inputs, {"cls": torch.arange(images) % 2}, tuple(map(str, range(images))), splits, (), {})


def by_hand(local_model: LocalModel, images: Tensor, labels: Tensor, batch: int) -> None:
    """One epoch as a person would write it: float images on the device, autocast, channels last."""
    model = local_model.model
    model.requires_grad_(True)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for indices in torch.randperm(len(images), device=images.device).split(batch):
        inputs = images[indices].contiguous(memory_format=torch.channels_last)
        with torch.autocast(local_model.device.type, torch.bfloat16, enabled=local_model.device.type == "cuda"):
            loss = F.cross_entropy(model(inputs)["cls"], labels[indices])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def seconds(work: object, device: torch.device) -> float:
    """Seconds of one call, to the end of what it started on the device."""
    assert callable(work)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Print images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    device, plan = torch.device(asked.device), study(asked.backbone, asked.size)
    data = cohort(asked.images, asked.size)
    local_model = LocalModel(plan, device)
    loader = Loader(data, plan.input, device)
    images = next(loader.batches([loader.splits["train"]])).inputs
    labels = data.targets["cls"].to(device)
    spec = Gradient(epochs=1, batch_size=asked.batch, optimiser="adamw", lr=1e-3)

    def ours() -> None:
        train(local_model, loader, spec, tuple(local_model.tags), RoundContext(seed=0, round=1, rounds=1))

    def theirs() -> None:
        by_hand(local_model, images, labels, asked.batch)

    found: dict[str, list[float]] = {"by hand": [], "fedgraft": []}
    for run in range(asked.runs + 1):  # the first is for warming up
        for name, work in (("by hand", theirs), ("fedgraft", ours)):
            took = seconds(work, device)
            found[name] += [asked.images / took] if run else []
    ratios = [ours / theirs for ours, theirs in zip(found["fedgraft"], found["by hand"], strict=True)]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, {asked.backbone} at {asked.size} pixels, batch {asked.batch}")
    for name, rates in found.items():
        print(f"{name:9} {statistics.median(rates):8.1f} images/s")
    print(f"ratio     {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
