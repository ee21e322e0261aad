"""Training on a GPU against a hand-written loop, resnet50 at 224 pixels in bf16, and what else is done there.

    python -m benchmarks.gpu --runs 5
    python -m benchmarks.gpu --only streamed private

`resident` and `streamed` take the same steps over the same images as a loop that a person would write, turn by turn,
from the GPU's memory and from the CPU's; `augmented` is held against the same steps without; `private` is all of a
resnet18 at 64 pixels in ghost mode against plain training; `noise` is that for 11.2 million entries; `packed` is a
study of 8 sites on one card, in process and with workers. Each timing ends with a synchronisation. `--device cpu` with
a small backbone only shows that it works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.noise_images import cohort
from benchmarks.privacy import CASES as PRIVATE
from benchmarks.privacy import works
from benchmarks.workloads import study as study_of
from benchmarks.workloads import workload, write
from fedgraft.client.data.cohorts.batches import to_float
from fedgraft.client.privacy.dp.noise import Noises, noisy_mean
from fedgraft.client.training.gradient import train
from fedgraft.client.training.losses.base import RoundContext
from fedgraft.client.training.model import loader as loading
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.stages.training import Augment
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.run import Engine, prepare, resume

Work = Callable[[], object]
NOW = RoundContext(seed=0, round=1, rounds=1)


def study(backbone: str, size: int) -> Study:
    """A study of one head over colour images."""
    return parse_study(
        {
            "name": "gpu",
            "tasks": [{"name": "cls", "classes": ["a", "b"]}],
            "input": {"kind": "image", "size": size, "channels": 3, "normalise": "fixed"},
            "model": {"backbone": backbone, "weights": None},
            "method": "fedavg",
        },
        "gpu",
    )


class Training:
    """One model and one cohort, trained by fedgraft and by hand."""

    def __init__(self, asked: argparse.Namespace, *, resident: bool = True, compiled: bool = False) -> None:
        self.device, self.images, self.batch = torch.device(asked.device), asked.images, asked.batch
        plan, data = study(asked.backbone, asked.size), cohort(asked.images, asked.size)
        self.local_model = LocalModel(plan, self.device, compile=compiled)
        kept, loading._RESIDENT_SHARE = loading._RESIDENT_SHARE, loading._RESIDENT_SHARE if resident else 0.0
        self.loader = Loader(data, plan.input, self.device)
        loading._RESIDENT_SHARE = kept
        self.input, self.stored, self.resident = plan.input, data.inputs, resident
        self.floats = to_float(data.inputs.to(self.device), plan.input) if resident else torch.empty(0)
        self.labels = data.targets["cls"].to(self.device)

    def ours(self, augment: Augment | None = None) -> None:
        """One epoch of fedgraft's."""
        spec = Gradient(epochs=1, batch_size=self.batch, optimiser="adamw", lr=1e-3, augment=augment)
        train(self.local_model, self.loader, spec, tuple(self.local_model.tags), NOW)

    def by_hand(self) -> None:
        """One epoch as a person would write it: autocast, channels last, a fused optimiser where there is one."""
        model, on_gpu = self.local_model.model, self.device.type == "cuda"
        model.requires_grad_(True)
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=on_gpu or None)
        for inputs, labels in self._batches():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
                loss = F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last))["cls"], labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self.images)
        for indices, own in zip(order.split(self.batch), order.to(self.device).split(self.batch), strict=True):
            if self.resident:
                yield self.floats[own], self.labels[own]
            else:
                rows = self.stored[indices].pin_memory().to(self.device, non_blocking=True)
                yield to_float(rows, self.input), self.labels[own]


def seconds(work: Work, device: torch.device) -> float:
    """Seconds of one call, to the end of what it started on the device."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def turns(works: dict[str, Work], device: torch.device, runs: int) -> dict[str, list[float]]:
    """Seconds of all, which take turns; the first turn is for warming up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            took = seconds(work, device)
            found[name] += [took] if run else []
    return found


def ratio(found: dict[str, list[float]], of: str, to: str) -> float:
    """The median, over turns, of how many times as long `of` took as `to`."""
    return statistics.median(a / b for a, b in zip(found[of], found[to], strict=True))


def speeds(name: str, asked: argparse.Namespace, *, resident: bool) -> None:
    """Images per second by hand and by fedgraft."""
    work = Training(asked, resident=resident)
    found = turns({"by hand": work.by_hand, "fedgraft": work.ours}, work.device, asked.runs)
    rates = ", ".join(f"{who} {asked.images / statistics.median(took):.0f} images/s" for who, took in found.items())
    print(f"{name:10} {rates}; fedgraft's speed {ratio(found, 'by hand', 'fedgraft'):.3f} of the loop's", flush=True)


def augmented(asked: argparse.Namespace) -> None:
    """How much longer an epoch takes with changes of images than without."""
    work = Training(asked)
    changes = Augment(flip=True, rotate_deg=10, shift=0.05, contrast=0.1, brightness=0.1)
    found = turns({"without": work.ours, "with": lambda: work.ours(changes)}, work.device, asked.runs)
    print(f"augmented  {ratio(found, 'with', 'without'):.3f} times as long as without", flush=True)


def compiled(asked: argparse.Namespace) -> None:
    """Images per second with compiled passes and without; what compiling takes is in the turn that is not counted."""
    work, other = Training(asked), Training(asked, compiled=True)
    found = turns({"plain": work.ours, "compiled": other.ours}, work.device, asked.runs)
    rates = ", ".join(f"{who} {asked.images / statistics.median(took):.0f} images/s" for who, took in found.items())
    print(f"compiled   {rates}; {ratio(found, 'plain', 'compiled'):.3f} of the speed without", flush=True)


def private(asked: argparse.Namespace) -> None:
    """Private steps of all of a resnet18 against plain ones, by size of the batch."""
    for batch in (32, 128):
        case = replace(PRIVATE["all"], batch=batch, images=8 * batch, steps=20)
        plain, noised = works(case, asked.device)
        found = turns({"plain": plain, "private": noised}, torch.device(asked.device), asked.runs)
        took = {name: statistics.median(times) * 1000 / case.steps for name, times in found.items()}
        words = f"{took['plain']:.1f} ms a step plain, {took['private']:.1f} private"
        print(f"private    batch {batch}: {words}, ratio {ratio(found, 'private', 'plain'):.2f}", flush=True)


def noise(asked: argparse.Namespace) -> None:
    """Milliseconds of the noise of one step."""
    device = torch.device(asked.device)
    total = [torch.zeros(1_400_000, device=device) for _ in range(8)]
    found = turns({"noise": lambda: noisy_mean(total, Noises(1.0, 1, 1.0), 100)}, device, asked.runs)
    print(f"noise      {statistics.median(found['noise']) * 1000:.1f} ms for 11.2 million entries", flush=True)


def packed(asked: argparse.Namespace) -> None:
    """Wall seconds of a study of 8 sites, by how many workers share the device."""
    load = replace(workload("heavy", 10, 8), train=asked.site_images)
    plan = study_of(load)
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        os.environ["FEDGRAFT_HOME"] = temporary
        hospitals = write(load, Path(temporary))
        for workers in (0, *asked.workers):
            out = Path(temporary) / f"run-{workers}"
            prepare(plan, hospitals, out)
            engine = Engine(name="pool", workers=workers) if workers else Engine(name="inprocess")
            took = seconds(lambda out=out, engine=engine: resume(out, engine), torch.device("cpu"))  # type: ignore[misc]
            print(f"packed     {f'{workers} workers' if workers else 'in process'}: {took:.1f} s", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "resident": lambda asked: speeds("resident", asked, resident=True),
    "streamed": lambda asked: speeds("streamed", asked, resident=False),
    "augmented": augmented,
    "compiled": compiled,
    "private": private,
    "noise": noise,
    "packed": packed,
}


def main() -> None:
    """Print all figures, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--site-images", type=int, default=1000, help="training images of each packed site")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    where = torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else "CPU"
    print(f"{where}, {asked.backbone} at {asked.size} pixels, batch {asked.batch}")
    for name in asked.only:
        PARTS[name](asked)


if __name__ == "__main__":
    main()
