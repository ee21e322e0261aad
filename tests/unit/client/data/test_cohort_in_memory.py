"""What decoded cohorts take: no digest of all of them at every start, grey stored once, and one budget for floats."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts import cache
from fedgraft.client.data.cohorts.batches import fit, fit_once, stacked_inputs, to_float
from fedgraft.client.data.cohorts.cache import Decoded, load, store
from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.training.model import loader
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task

DRAW = np.random.default_rng(0)
INPUTS = DRAW.integers(-32768, 32767, (6, 1, 16, 16)).astype(np.int16)
MASKS = DRAW.integers(-1, 2, (6, 16, 16)).astype(np.int8)
DECODED = Decoded(INPUTS, {"cls": np.arange(6), "seg": MASKS}, tuple("abcdef"), {}, {})


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    store(tmp_path / "cache", "one", DECODED)
    return tmp_path / "cache"


def same(found: Decoded | None) -> bool:
    return found is not None and all(
        (np.asarray(one) == other).all()
        for one, other in ((found.inputs, INPUTS), (found.targets["seg"], MASKS), (found.targets["cls"], np.arange(6)))
    )


def flip(path: Path) -> None:
    """Change a bit in place, and set the file's own time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_start_does_not_read_all_of_the_cache(kept, monkeypatch):
    monkeypatch.setattr(cache, "digest_arrays", lambda _: pytest.fail("all of the cache was read"))
    assert same(load(kept, "one"))


@pytest.mark.parametrize("name", ["one.npy", "one-seg.npy"])
def test_what_was_changed_in_place_is_noticed_though_its_time_was_set_back(kept, name):
    flip(kept / name)
    assert load(kept, "one") is None


@pytest.mark.parametrize("name", ["one.npy", "one-seg.npy"])
def test_a_full_check_finds_what_no_time_tells(kept, name, monkeypatch):
    """As a disk changes bits by itself."""
    stamps = cache._stamps(kept, "one", ["seg"])
    flip(kept / name)
    monkeypatch.setattr(cache, "_stamps", lambda *_: stamps)
    assert load(kept, "one") is not None
    assert load(kept, "one", full=True) is None


def test_a_cache_that_was_copied_is_read_once_and_then_trusted(kept, tmp_path, monkeypatch):
    shutil.copytree(kept, tmp_path / "copy")
    assert same(load(tmp_path / "copy", "one"))
    monkeypatch.setattr(cache, "digest_arrays", lambda _: pytest.fail("all of the copy was read again"))
    assert same(load(tmp_path / "copy", "one"))


def test_the_digest_covers_what_is_trusted(kept):
    """Times that somebody wrote into the file that holds the digests."""
    flip(kept / "one.npy")
    stamps = cache._stamps(kept, "one", ["seg"])
    content = (kept / "one.json").read_text()
    start = content.index('"stamps": ') + len('"stamps": ')
    (kept / "one.json").write_text(content[:start] + str(stamps) + content[content.index("]]", start) + 2 :])
    assert load(kept, "one") is None


@pytest.mark.parametrize("size", [(40, 60), (16, 16), (9, 3)])
@pytest.mark.parametrize("normalise", ["zscore", "fixed"])
def test_grey_that_is_stored_once_gives_the_bits_of_grey_stored_three_times(size, normalise):
    spec = ImageInput(size=32, channels=3, normalise=normalise, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    images = [DRAW.random(size, dtype=np.float32) for _ in range(5)]
    thrice = torch.from_numpy(np.stack([fit(image, 1.2, spec) for image in images]))
    once = torch.from_numpy(stacked_inputs([fit_once(image, 1.2, spec) for image in images]))
    assert (thrice.shape, once.shape) == ((5, 3, 32, 32), (5, 1, 32, 32))
    assert torch.equal(to_float(once, spec), to_float(thrice, spec))


def test_grey_among_colour_is_repeated():
    spec = ImageInput(size=16, channels=3)
    images = [DRAW.random((16, 16), dtype=np.float32), DRAW.random((16, 16, 3), dtype=np.float32)]
    stored = [fit_once(image, 1.0, spec) for image in images]
    found = stacked_inputs(list(stored))
    assert (found == np.stack([fit(image, 1.0, spec) for image in images])).all()
    left = list(stored)
    stacked_inputs(left)
    assert left == [], "all cases are in memory twice"


def test_a_grey_cohort_for_a_model_of_colours_is_a_third(make_dicom, tmp_path):
    for number in range(4):
        make_dicom(DRAW.integers(0, 255, (20, 20)).astype(np.uint8), f"dicom/{number}.dcm", PatientID=f"P{number}")
    spec, wanted = CohortSpec(kind="dicom", root=tmp_path / "dicom"), ImageInput(size=16, channels=3)
    request = CohortRequest([Task(name="cls", classes=("no", "yes"))], wanted, SplitSpec(), 0)
    place = Place(tmp_path / "state", tmp_path / "cache", b"secret")
    cohort = load_cohort("north", spec, request, place)
    assert cohort.inputs.shape == (4, 1, 16, 16)
    (batch,) = Loader(cohort, wanted, torch.device("cpu")).batches([torch.arange(4)])
    assert batch.inputs.shape == (4, 3, 16, 16)


def site(numbers: int) -> Cohort:
    inputs = torch.from_numpy(DRAW.integers(-32768, 32767, (numbers // 256, 1, 16, 16)).astype(np.int16))
    return Cohort("one", inputs, {}, (), {}, (), {})


def test_small_sites_share_one_budget_for_floats_and_it_changes_no_bit(monkeypatch):
    monkeypatch.setattr(loader, "_FLOATS", loader._Floats(3000))
    spec, cohorts = ImageInput(size=16), [site(1024) for _ in range(5)]
    loaders = [Loader(cohort, spec, torch.device("cpu")) for cohort in cohorts]
    assert [one._ready for one in loaders] == [True, True, False, False, False]
    some = torch.tensor([3, 0, 2])
    for one, cohort in zip(loaders, cohorts, strict=True):
        (batch,) = one.batches([some])
        assert torch.equal(batch.inputs, to_float(cohort.inputs, spec)[some])
    del one, loaders[0], loaders[0]
    gc.collect()
    assert Loader(cohorts[0], spec, torch.device("cpu"))._ready, "what was let go of is free again"


@pytest.mark.slow
def test_a_first_decode_does_not_hold_all_images_twice(make_dicom, tmp_path):
    """Measured from outside: the most memory of a process that reads a folder, above what it had before."""
    cases, size = 320, 512
    for number in range(cases):
        make_dicom(np.full((32, 32), number % 256, np.uint8), f"dicom/{number}.dcm", PatientID=f"P{number}")
    code = f"""
import re, sys
from pathlib import Path
from fedgraft.client.data.cohorts.cohort import CohortRequest, Place, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task

def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def read(count, name):
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    for path in sorted(Path(sys.argv[1], "dicom").iterdir())[:count]:
        (folder / path.name).symlink_to(path)
    request = CohortRequest([Task(name="cls", classes=("no", "yes"))], ImageInput(size={size}), SplitSpec(), 0)
    place = Place(folder.with_suffix(".state"), folder.with_suffix(".cache"), b"secret")
    return load_cohort("north", CohortSpec(kind="dicom", root=folder), request, place)

read(3, "few")  # what the first image brings with it
before = most()
assert len(read({cases}, "all").inputs) == {cases}
print(most() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    images = cases * size * size * 2
    print(f"{int(done.stdout) / images:.2f} times the images")
    assert 0.5 * images < int(done.stdout) < 1.5 * images


def resident_kb(folder: Path) -> int:
    """How much of the images that are mapped from below a folder is in this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize("few", [True, False])
def test_images_whose_floats_are_kept_are_not_in_memory_twice(make_dicom, tmp_path, monkeypatch, few):
    """They lie on the disk; whoever asks for them again has them as they were. Without floats they stay as they are."""
    for number in range(8):
        make_dicom(DRAW.integers(0, 255, (64, 64)).astype(np.uint8), f"dicom/{number}.dcm", PatientID=f"P{number}")
    spec, wanted = CohortSpec(kind="dicom", root=tmp_path / "dicom"), ImageInput(size=64)
    request = CohortRequest([Task(name="cls", classes=("no", "yes"))], wanted, SplitSpec(), 0)
    place = Place(tmp_path / "state", tmp_path / "cache", b"secret")
    load_cohort("north", spec, request, place)
    cohort = load_cohort("north", spec, request, place)
    before = cohort.inputs.clone()
    assert resident_kb(tmp_path) >= cohort.inputs.nbytes // 1024
    if not few:
        monkeypatch.setattr(loader, "_FLOATS", loader._Floats(0))
    made = Loader(cohort, wanted, torch.device("cpu"))
    assert (resident_kb(tmp_path) == 0) == few
    (batch,) = made.batches([torch.arange(8)])
    assert torch.equal(batch.inputs, to_float(before, wanted))
    assert torch.equal(cohort.inputs, before)
