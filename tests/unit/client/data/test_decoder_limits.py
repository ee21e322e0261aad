"""One file costs itself at most: not the run, not the site, not all of its time or memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding import decoder, images
from fedgraft.client.data.decoding.decoder import DecodingLimits
from fedgraft.client.data.decoding.dicom import dicom_file as dicom
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.decoding.wall import wall
from fedgraft.client.data.spec import CohortSpec, Window
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput, SplitSpec
from fedgraft.common.study.tasks import Task

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


class Panic(BaseException):
    """What a decoder in Rust raises: pyo3's PanicException is no Exception."""


def read(path: Path, limits: DecodingLimits) -> object:
    if path.suffix == ".dcm":
        return decoder.read_dicom(path, None, "middle", (), limits)
    return decoder.read_images(path, "middle", limits)


def reason(path: Path, limits: DecodingLimits = decoder.USUAL) -> str:
    is_dicom = path.suffix == ".dcm"
    with pytest.raises(UnusableError) as refused:
        _ = (
            decoder.read_dicom(path, None, "middle", (), limits)
            if is_dicom
            else decoder.read_images(path, "middle", limits)
        )
    return refused.value.reason


def load(spec: CohortSpec, tmp_path: Path) -> Cohort:
    wanted = CohortRequest([Task(classes=("none", "nodule"))], ImageInput(size=16), SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(tmp_path / "state", tmp_path / "cache", b"secret"))


def worker() -> int:
    """The number of the process that decodes."""
    process = decoder._DECODER._process
    assert process is not None
    return process.pid


@pytest.mark.parametrize("error", [Panic("index 7"), ValueError("x"), RecursionError(), MemoryError()])
def test_whatever_a_decoder_raises_is_a_reason(error):
    with pytest.raises(UnusableError) as refused, wall("undecodable"):
        raise error
    assert refused.value.reason == ("too_large" if isinstance(error, MemoryError) else "undecodable")
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes(end):
    with pytest.raises(end), wall("undecodable"):
        raise end


def test_a_decoder_that_cannot_be_started_is_no_fault_of_a_file(make_dicom, tmp_path, monkeypatch):
    path = make_dicom(RAMP)
    for start in (tmp_path / "nothing", Path("/bin/false")):
        decoder._DECODER.close()
        monkeypatch.setattr(sys, "executable", str(start))
        with pytest.raises(DataError, match=r"The process that decodes files could not be started: .*Try `"):
            decoder.read_dicom(path, None, "middle")


def test_a_panic_costs_its_file(make_dicom, monkeypatch):
    """pylibjpeg's decoder of RLE panics on some damaged frames."""

    def panic(*_: object, **__: object) -> None:
        raise Panic("attempt to subtract with overflow")

    monkeypatch.setattr(dicom, "pixel_array", panic)
    with pytest.raises(UnusableError, match="undecodable"):
        dicom.read_dicom(make_dicom(RAMP), None, "middle")
    monkeypatch.setattr(images, "_page", panic)
    Image.fromarray(RAMP).save(make_dicom(RAMP).with_suffix(".png"))
    with pytest.raises(UnusableError, match="unreadable"):
        images.read_images(make_dicom(RAMP).with_suffix(".png"), "middle")


def test_damaged_frames_of_every_kind_cost_their_file_alone(make_dicom, tmp_path):
    whole = make_dicom(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), "dicom/a.dcm", RLELossless)
    content, draw = whole.read_bytes(), np.random.default_rng(1)
    for number in range(20):
        damaged = bytearray(content)
        for at in draw.integers(len(content) - 4200, len(content), 40):
            damaged[at] = draw.integers(256)
        (tmp_path / "dicom" / f"{number}.dcm").write_bytes(damaged)
    cohort = load(CohortSpec(kind="dicom", root=tmp_path / "dicom"), tmp_path)
    assert len(cohort.inputs) >= 1


def test_the_process_gives_what_this_one_would(make_dicom, tmp_path):
    path = make_dicom(np.stack([RAMP, RAMP.T]), PixelSpacing=["2", "1"], Modality="CT", PatientID="p\u00fc")
    window = Window(center=100, width=50)
    here, there = (one(path, window, "all", ()) for one in (dicom.read_dicom, decoder.read_dicom))
    assert [frame.tolist() for frame in here.frames] == [frame.tolist() for frame in there.frames]
    for name in ("pixel_aspect", "width_mm", "keys", "facts", "notes"):
        assert getattr(here, name) == getattr(there, name)
    odd = tmp_path / os.fsdecode(b"M\xfcller.png")
    Image.fromarray(np.stack([RAMP] * 3, axis=-1)).save(odd)
    assert decoder.read_images(odd, "all").frames[0].shape == (16, 16, 3)


def test_a_file_that_takes_too_long_is_left_out_and_the_next_one_read(make_dicom, tmp_path):
    slow = tmp_path / "slow.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 2000), np.uint8)).save(slow, compress_level=1)
    began = time.monotonic()
    assert reason(slow, DecodingLimits(seconds=0.01)) == "too_slow"
    assert time.monotonic() - began < 30
    assert decoder.read_images(slow, "middle").frames[0].shape == (2000, 2000)


def test_a_file_that_grows_beyond_its_memory_is_left_out_and_the_next_one_read(make_dicom):
    """A deflated file of some kilobytes holds many megabytes."""
    bomb = make_dicom(np.zeros((60, 1000, 1000), np.uint8), "bomb.dcm", DeflatedExplicitVRLittleEndian)
    assert bomb.stat().st_size < 2_000_000
    assert reason(bomb, DecodingLimits(gigabytes=0.03)) == "too_large"
    assert decoder.read_dicom(make_dicom(RAMP), None, "middle").frames[0].shape == (16, 16)


def test_the_limits_are_the_cohorts(tmp_path):
    for folder in ("none", "nodule"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "none" / "a.png", compress_level=1)
    Image.fromarray(RAMP).save(tmp_path / "images" / "nodule" / "b.png")
    spec = CohortSpec(kind="images", root=tmp_path / "images", file_gigabytes=0.005)
    cohort = load(spec, tmp_path)
    assert {problem.reason: problem.count for problem in cohort.problems} == {"too_large": 1}
    assert len(cohort.inputs) == 1


@pytest.mark.parametrize(("how", "word"), [(signal.SIGSEGV, "undecodable"), (signal.SIGKILL, "too_large")])
def test_a_process_that_dies_costs_the_file_at_hand(tmp_path, how, word, monkeypatch):
    """As when a decoder in C reads where it must not, or the system ends what takes too much memory."""
    path = tmp_path / "a.png"
    Image.fromarray(RAMP).save(path)
    decoder.read_images(path, "middle")
    process = worker()
    os.kill(process, signal.SIGSTOP)  # so that it does not answer first

    read = decoder.messages.read

    def ended(stream: object) -> object:
        """The process ends when it was asked, and has not answered."""
        os.kill(process, how)
        os.kill(process, signal.SIGCONT)
        return read(stream)

    with monkeypatch.context() as patch:
        patch.setattr(decoder.messages, "read", ended)
        assert reason(path) == word
    assert worker_after(path) != process


def worker_after(path: Path) -> int:
    assert decoder.read_images(path, "middle").frames[0].shape == (16, 16)
    return worker()


def test_an_answer_that_was_broken_off_is_not_the_next_ones(make_dicom, monkeypatch):
    """As by Ctrl-C in a notebook, whose next cell reads the next file."""
    first, second = (make_dicom(np.full((16, 16), n, np.uint8), f"{n}.dcm", WindowCenter="128", WindowWidth="256")
                     for n in (10, 200))  # fmt: skip
    decoder.read_dicom(first, None, "middle")

    def interrupted(stream: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder.messages, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.read_dicom(first, None, "middle")
    frame = decoder.read_dicom(second, None, "middle").frames[0]
    assert abs(float(frame.mean()) * 255 - 200) < 1


@pytest.mark.slow
def test_an_idle_process_ends_and_comes_back(make_dicom, monkeypatch):
    """A site that takes part for weeks does not keep one."""
    decoder._DECODER.close()
    monkeypatch.setattr(decoder, "_IDLE_S", 0.2)
    path = make_dicom(RAMP)
    decoder.read_dicom(path, None, "middle")
    process = decoder._DECODER._process
    assert process is not None
    process.wait(30)
    monkeypatch.setattr(process, "poll", lambda: None)  # it ends between a look at it and the question
    monkeypatch.setattr(decoder, "_IDLE_S", 30.0)
    assert decoder.read_dicom(path, None, "middle").frames[0].shape == (16, 16)
    assert worker() != process.pid


@pytest.mark.slow
def test_the_process_ends_with_the_one_that_asks(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom fedgraft.client.data.decoding import decoder\n"
        "decoder.read_images(Path(sys.argv[1]), 'middle')\nprint(decoder._DECODER._process.pid, flush=True)\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 9
    until = time.monotonic() + 30
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_threads_share_the_process_without_mixing_answers(make_dicom):
    paths = [
        make_dicom(np.full((16, 16), n, np.uint8), f"{n}.dcm", WindowCenter="128", WindowWidth="256") for n in range(8)
    ]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(5):
            frame = decoder.read_dicom(paths[number], None, "middle").frames[0]
            if abs(float(frame.mean()) * 255 - number) > 0.6:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
