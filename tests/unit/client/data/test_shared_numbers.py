"""Answers of the process that decodes lie in memory that it shares with who asks, and nobody is harmed by that."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgraft.client.data.decoding import decoder, frames
from fedgraft.client.data.decoding.dicom.dicom_file import read_dicom
from fedgraft.client.data.decoding.shades import Shades

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
Pair = tuple[frames.SharedNumbers, frames.SharedNumbers]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The two ends of one memory."""
    descriptor = frames.shared_memory()
    if descriptor is None:
        pytest.skip("this system has no memory to share so")
    yield frames.SharedNumbers(descriptor), frames.SharedNumbers(descriptor)
    os.close(descriptor)


@pytest.fixture(params=["shared", "pipe"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A process that has such memory, and one on a system without it."""
    decoder._DECODER.close()
    if request.param == "pipe":
        monkeypatch.setattr(decoder.messages, "shared_memory", lambda: None)
    yield request.param
    decoder._DECODER.close()


def test_images_stay_what_they_were_while_other_files_are_read(way: str, make_dicom: Callable[..., Path]) -> None:
    grey = [make_dicom(np.roll(RAMP, by), f"{by}.dcm", WindowCenter="128", WindowWidth="256") for by in range(4)]
    floats = make_dicom((RAMP / 255).astype(np.float32), "floats.dcm")
    paths = [*grey, floats, *grey]
    found = [decoder.read_dicom(path, None, "all").frames[0] for path in paths]
    assert (decoder._DECODER._shared is not None) == (way == "shared")
    for path, image in zip(paths, found, strict=True):
        assert (image == read_dicom(path, None, "all").frames[0]).all()


def test_what_has_no_room_comes_all_the_same(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert way
    large = np.random.default_rng(0).random((4100, 4100)).astype(np.float32)
    assert large.nbytes > frames._ROOM
    path = tmp_path / "large.npz"
    np.savez(path, large=large, small=RAMP)
    options = {"names": ["large", "small"]}
    for names in (["large", "small"], ["small"], ["large"], []):
        words, arrays = decoder.decode("fedgraft.client.data.decoding.npz:read", path, options | {"names": names})
        assert words["names"] == names
        assert all(
            (array == {"large": large, "small": RAMP}[name]).all() for name, array in zip(names, arrays, strict=True)
        )


def test_a_process_that_has_gone_bad_cannot_end_the_one_that_asks(pair: Pair) -> None:
    """It would by making their memory smaller: who then reads it is ended by the system."""
    code = f"import os, sys; os.ftruncate(int(sys.argv[1]), {mmap.PAGESIZE})"
    descriptor = frames.shared_memory()
    assert descriptor is not None
    here = frames.SharedNumbers(descriptor)
    words, _ = here.put({}, [RAMP])
    done = subprocess.run(
        [sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor], check=False, capture_output=True
    )
    assert b"PermissionError" in done.stderr
    assert os.fstat(descriptor).st_size == frames._ROOM
    os.close(descriptor)
    assert (frames.received(dict(words), (), here)[1][0] == RAMP).all()


def test_an_answer_that_points_outside_is_none(pair: Pair) -> None:
    there, here = pair
    words, arrays = there.put({"a": 1}, [RAMP])
    assert not arrays
    for place in (
        ("|u1", (16, 16), frames._ROOM - 200),
        ("|u1", (1 << 40,), 0),
        ("<f4", (1 << 25,), 0),
        ("|u1", (4,), -9),
    ):
        with pytest.raises(EOFError):
            frames.received({**words, "shared": [place]}, (), here)
    with pytest.raises(EOFError):
        frames.received(dict(words), (), None)
    assert (frames.received(dict(words), (), here)[1][0] == RAMP).all()


def test_a_pixel_outside_its_table_is_an_error() -> None:
    table, entries = np.zeros(4, np.float32), np.array([[0, 3], [4, 0]], np.uint8)
    with pytest.raises(IndexError):
        Shades(table, entries).image()
    assert Shades(table, entries.clip(0, 3)).image().shape == (2, 2)
    assert Shades(table, entries[:0]).image().shape == (0, 2)


def resident() -> int:
    """Bytes of this process that lie in shared memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[2])
    return pages * mmap.PAGESIZE


def test_what_a_large_answer_took_is_given_back(pair: Pair) -> None:
    there, here = pair
    before = resident()
    words, _ = there.put({}, [np.ones((6000, 1000), np.float64)])
    assert resident() > before + 40_000_000
    _, (found,) = frames.received(dict(words), (), here)
    assert found.sum() == 6_000_000
    assert resident() < before + 10_000_000


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")

    def open_now() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    decoder._DECODER.close()
    before = open_now()
    for _ in range(3):
        decoder.read_images(tmp_path / "a.png", "middle")
        decoder._DECODER.close()
    assert open_now() == before
