"""Reading a folder of DICOM files as a cohort, against a loop over plain pydicom that a person would write.

    OMP_NUM_THREADS=1 python -m benchmarks.decoding --runs 5

Files of 512 x 512 become images of 224, in turns within one run; CPU time, with that of the process that decodes. Both
give one channel of 16 bits. The loop reads the file, applies slope, intercept and window in float32 and resizes with
anti-aliasing; fedgraft also looks for copies, padding, LUTs and objects that are no images, and keeps memory in bounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_rescale, apply_voi_lut

from fedgraft.client.data.cohorts.scan import files_of, scan
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.phantoms.dicom import DicomWriter, Shot
from fedgraft.simulations.phantoms.phantoms import Modality
from fedgraft.simulations.phantoms.scanners import Scanner

STORED, SIZE = 512, 224
KINDS: dict[str, tuple[Modality, Scanner]] = {
    "CT, window": ("ct", Scanner(matrix=STORED)),
    "CT signed, RLE": ("ct", Scanner(matrix=STORED, signed=True, intercept=0.0, syntax="rle")),
    "X-ray, no window": ("xr", Scanner(matrix=STORED, window="none", polarity="MONOCHROME1")),
    "X-ray, 16 bits": ("xr", Scanner(matrix=STORED, bits_stored=16)),
    "X-ray, JPEG 2000": ("xr", Scanner(matrix=STORED, syntax="jpeg2000")),
}


def write(folder: Path, modality: Modality, scanner: Scanner, count: int) -> CohortSpec:
    """Files that differ in every pixel, and their labels."""
    folder.mkdir()
    writer, random = DicomWriter(scanner, modality, "bench"), np.random.default_rng(0)
    low, high = scanner.stored_range
    across = np.linspace(0.1, 0.9, STORED)
    for number in range(count):
        noisy = across[None, :] * across[:, None] + random.normal(0, 0.05, (STORED, STORED))
        pixels = (low + noisy.clip(0, 1) * (high - low)).astype(np.int16 if scanner.signed else np.uint16)
        (folder / f"{number}.dcm").write_bytes(writer.file(pixels, Shot(f"P{number}", 50, "O", 1, "bench")))
    labels = folder.with_suffix(".csv")
    labels.write_text("patient_id,label\n" + "".join(f"P{number},{'ab'[number % 2]}\n" for number in range(count)))
    return CohortSpec(kind="dicom", root=folder, labels=labels)


def ours(spec: CohortSpec) -> list[NDArray[np.int16]]:
    """As a site reads its cohort for the first time."""
    return scan(spec, [Task(name="label", classes=("a", "b"))], ImageInput(size=SIZE), files_of(spec)).inputs


def resized(shown: NDArray[Any], inverted: bool) -> NDArray[np.int16]:
    """As both loops bring an image in [0, 1] to its size."""
    planes = torch.from_numpy(shown.astype(np.float32, copy=False))[None, None]
    small = F.interpolate(1 - planes if inverted else planes, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
    return np.asarray((small * 65535).round().sub(32768).to(torch.int16).numpy())


def plain(spec: CohortSpec) -> list[NDArray[np.int16]]:
    """The loop with pydicom's own functions for rescale and window."""
    images = []
    for path in sorted(spec.root.iterdir()):
        dataset = pydicom.dcmread(path)
        values = apply_rescale(dataset.pixel_array, dataset)
        if "WindowCenter" in dataset:
            shown = apply_voi_lut(values, dataset)
            bits = dataset.BitsStored
            low, high = (
                (0, 2**bits - 1) if not dataset.PixelRepresentation else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            )
            slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
            low, high = low * slope + intercept, high * slope + intercept
        else:
            shown = values
            low, high = np.percentile(values, (0.5, 99.5))
        unit = ((shown - low) / (high - low)).clip(0, 1)
        images.append(resized(unit, dataset.PhotometricInterpretation == "MONOCHROME1"))
    return images


def bare(spec: CohortSpec) -> list[NDArray[np.int16]]:
    """The leanest loop: the window as two lines of float32."""
    images = []
    for path in sorted(spec.root.iterdir()):
        dataset = pydicom.dcmread(path)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        values = dataset.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        if "WindowCenter" in dataset:
            center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
            low, high = center - width / 2, center - 1 + width / 2
        else:
            low, high = map(float, np.percentile(values, (0.5, 99.5)))
        unit = ((values - np.float32(low)) / np.float32(high - low)).clip(0, 1)
        images.append(resized(unit, dataset.PhotometricInterpretation == "MONOCHROME1"))
    return images


def cpu_s() -> float:
    """CPU seconds of this process and of those that any of its threads has started, whether they still run or not."""
    ended = os.times()
    ticks = 0
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            stat = Path(f"/proc/{child}/stat").read_text(encoding="utf-8")
            ticks += sum(map(int, stat.rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ended.children_user + ended.children_system + ticks / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[CohortSpec], list[NDArray[np.int16]]], spec: CohortSpec) -> tuple[float, NDArray[np.int16]]:
    """CPU seconds of the work, and its images."""
    start = cpu_s()
    images = work(spec)
    return cpu_s() - start, np.stack(images)


def compare(name: str, spec: CohortSpec, runs: int) -> None:
    """All in turn; images must be alike but for the rounding of float32."""
    works = (ours, plain, bare)
    for work in works:  # imports, and the process that decodes
        work(spec)
    seconds: list[list[float]] = []
    for _ in range(runs):
        found = [timed(work, spec) for work in works]
        for _, theirs in found[1:]:
            gap = int(np.abs(found[0][1].astype(np.int32) - theirs).max())
            assert gap <= 4, f"{name}: images differ by {gap} of 65535"
        seconds.append([each for each, _ in found])
    mine, by_pydicom, by_hand = (spec_images(spec) / statistics.median(run[at] for run in seconds) for at in range(3))
    first, second = (statistics.median(run[at] / run[0] for run in seconds) for at in (1, 2))
    print(
        f"{name:18} {mine:5.0f} images a CPU second; pydicom's functions {by_pydicom:5.0f}, ratio {first:.2f}; "
        f"leanest loop {by_hand:5.0f}, ratio {second:.2f}"
    )


def pooled(name: str, spec: CohortSpec, runs: int, threads: int) -> None:
    """How long a person waits with one process that decodes and with `threads`, in turns; the images are the same."""
    seconds: list[list[float]] = []
    for _ in range(runs):
        found = []
        for number in (1, threads):
            torch.set_num_threads(number)
            start = time.perf_counter()
            images = ours(spec)
            found.append((time.perf_counter() - start, np.stack(images)))
        torch.set_num_threads(1)
        assert np.array_equal(found[0][1], found[1][1])
        seconds.append([each for each, _ in found])
    one, several = (spec_images(spec) / statistics.median(run[at] for run in seconds) for at in range(2))
    ratio = statistics.median(run[0] / run[1] for run in seconds)
    print(f"{name:18} {one:5.0f} images a second with one process, {several:5.0f} with {threads}: ratio {ratio:.2f}")


def spec_images(spec: CohortSpec) -> int:
    """How many files there are."""
    return len(list(spec.root.iterdir()))


def main() -> None:
    """All kinds of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0, help="measure only how long it takes with so many threads")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="only these kinds")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as temporary:
        for number, name in enumerate(asked.only or KINDS):
            spec = write(Path(temporary) / str(number), *KINDS[name], asked.images)
            if asked.threads:
                pooled(name, spec, asked.runs, asked.threads)
            else:
                compare(name, spec, asked.runs)


if __name__ == "__main__":
    main()
