"""Several processes decode at a time, and what a cohort is does not show it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.scan import Scan, files_of, scan
from fedgraft.client.data.decoding import ahead, decoder
from fedgraft.client.data.decoding.ahead import DecodingAhead
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.tasks import Task

FILES = 70
MakeDicom = Callable[..., Path]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Says how many threads torch has; the others begin at once."""
    monkeypatch.setattr(ahead, "_AFTER_S", 0.0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def folder(make_dicom: MakeDicom) -> Path:
    """Files that differ, some of which are damaged, copies, large, or nothing."""
    for number in range(FILES):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        path = make_dicom(pixels, f"all/{number:03}.dcm", PatientID=f"p{number}")
        if number % 9 == 4:
            path.write_bytes(path.read_bytes()[:-300])
        if number % 9 == 5:
            (path.parent / f"{number + 1:03}-copy.dcm").write_bytes(path.read_bytes())
        if number % 11 == 3:
            path.with_suffix(".txt").write_text("nothing")
    make_dicom(np.zeros((400, 128, 128), np.uint8), "all/000-large.dcm", PatientID="many")
    return path.parent


def read(folder: Path) -> Scan:
    spec = CohortSpec(kind="dicom", root=folder, frames="all")
    return scan(spec, [Task(name="cls", classes=("a", "b"))], ImageInput(size=16), files_of(spec))


def test_a_cohort_is_the_same_however_many_processes_decode(folder: Path, threads: Callable[[int], None]) -> None:
    found = []
    for number in (1, 3):
        threads(number)
        found.append(read(folder))
    one, several = found
    assert len(one.inputs) > 400
    assert {"duplicate", "not_dicom"} < {reason for _, reason in one.left_out}
    assert len(one.left_out) >= 20
    assert all(np.array_equal(here, there) for here, there in zip(one.inputs, several.inputs, strict=True))
    for name in ("origins", "patients", "keys", "left_out", "problems", "facts", "spacings", "described", "studies"):
        assert getattr(one, name) == getattr(several, name), name


def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / str(number) for number in range(FILES)]
    for path in found:
        path.write_bytes(b"")
    return found


def test_so_many_are_at_work_at_a_time_and_never_more_than_one_is_ahead(
    tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(3)
    lock, at_work, most, begun = threading.Lock(), 0, 0, 0

    def decode(path: Path) -> str:
        nonlocal at_work, most, begun
        with lock:
            at_work, begun = at_work + 1, begun + 1
            most = max(most, at_work)
        time.sleep(0.01)
        with lock:
            at_work -= 1
        return path.name

    with DecodingAhead(decode, files := paths(tmp_path)) as opened:
        for number, path in enumerate(files):
            assert opened.of(path) == path.name
            assert begun <= number + 4
    assert most == 3


def test_for_the_first_seconds_one_process_is_enough(
    tmp_path: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test's own, on which each file takes 20 ms: that of a busy machine does not stand still."""
    threads(2)
    monkeypatch.setattr(ahead, "_AFTER_S", 0.5)
    now, here = [100.0], threading.get_ident()
    monkeypatch.setattr(ahead.time, "monotonic", lambda: now[0])

    def decode(_: Path) -> int:
        return threading.get_ident()

    who = []
    with DecodingAhead(decode, files := paths(tmp_path)) as opened:
        for number, path in enumerate(files):
            now[0] = 100.0 + 0.02 * number
            who.append(opened.of(path))
    assert who[:25] == [here] * 25
    assert here not in who[25:]


def test_what_a_file_raises_is_raised_in_its_turn_and_nothing_is_left_at_work(
    tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(2)
    files = paths(tmp_path)

    def decode(path: Path) -> int:
        if path.name == "5":
            raise DataError("a fault", fix="mend it")
        # With a process of this thread's own, which has to be ended as well.
        with pytest.raises(Exception, match="empty_file"):
            decoder.read_images(path, "all")
        return threading.get_ident()

    seen: set[int] = set()
    before = children()
    with DecodingAhead(decode, files) as opened:
        seen.update(opened.of(path) for path in files[:5])
        with pytest.raises(DataError, match="a fault"):
            opened.of(files[5])
    assert threading.get_ident() not in seen
    assert children() == before
    assert not [one for one in threading.enumerate() if one.name.startswith("decoding")]


def children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return {child for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("when", ["processes start", "files are read"])
def test_ctrl_c_does_not_wait_for_what_is_being_decoded(tmp_path: Path, when: str) -> None:
    """A file that would take 100 seconds is in a process of its own, or about to be, when the person gives up."""
    code = """
        import signal
        import sys
        from pathlib import Path
        import torch
        from fedgraft.client.data.decoding import ahead, decoder
        from fedgraft.client.data.decoding.ahead import DecodingAhead
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are started without
        torch.set_num_threads(2)
        ahead._AFTER_S = 0
        files = [Path(sys.argv[1]) / str(number) for number in range(70)]
        sys.path.insert(0, sys.argv[1])
        try:
            with DecodingAhead(lambda path: decoder.decode("slow_for_test:read", path, {}), files) as opened:
                print("begun", flush=True)
                for path in files:
                    opened.of(path)
        except KeyboardInterrupt:
            print("ended", flush=True)
    """
    paths(tmp_path)
    slow = """
        import time
        def read(path, options):
            path.with_name("begun").touch()
            time.sleep(100)
            path.with_name("whole").touch()
    """
    (tmp_path / "slow_for_test.py").write_text(textwrap.dedent(slow))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if when == "files are read":
            ends = time.monotonic() + 120
            while not (tmp_path / "begun").exists():
                assert time.monotonic() < ends, "no file was begun"
                time.sleep(0.02)
        process.send_signal(2)
        assert process.stdout.read() == "ended\n"
        assert process.wait() == 0
    assert not (tmp_path / "whole").exists(), "it was waited for"
