"""`site check` looks at the machine and tries the study's work; each fault is real, or made by what it reads."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from pydicom import dcmread

from fedgraft.client.preflight import environment
from fedgraft.client.preflight.memory import PeakMemory
from fedgraft.client.preflight.report import Level
from fedgraft.client.training import microbatching
from fedgraft.client.training.model.local_model import LocalModel
from helpers.site_home import Hospital, study

ENVIRONMENT = {"versions", "gpu", "disk_state", "disk_cache", "private", "memory", "cores", "clock", "records"}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_a_machine_in_order(hospital: Hospital) -> None:
    lines = hospital.lines("environment")
    assert set(lines) == ENVIRONMENT
    assert {line.level for line in lines.values()} == {Level.FINE}
    assert f"torch {version('torch')}" in lines["versions"].description
    assert lines["memory"].figures["total_gb"] >= lines["memory"].figures["free_gb"] > 0
    assert lines["cores"].figures["cores"] == len(os.sched_getaffinity(0))


def test_a_package_of_a_version_that_was_not_asked_for_fails(hospital: Hospital, monkeypatch) -> None:
    monkeypatch.setattr(environment, "requires", lambda _: ["flwr==1.0.*", "numpy>=1", "nowhere>=1", "ray; extra=='x'"])
    line = hospital.lines("environment")["versions"]
    assert line.level is Level.FAILS
    assert "flwr, nowhere;" in line.description
    assert "numpy" not in line.description


def test_a_package_that_does_not_import_fails_and_its_text_stays_here(hospital: Hospital, monkeypatch) -> None:
    folder = hospital.home / "packages"
    folder.mkdir()
    (folder / "broken_package.py").write_text("raise RuntimeError('/home/DOE/lib is odd')")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(environment, "_MODULES", ("broken_package",))
    report = hospital.check("environment")
    line = report.parts[0].findings.lines[0]
    assert (line.name, line.level) == ("versions", Level.FAILS)
    assert "broken_package" in line.description
    assert "DOE" in report.private[0]
    assert "DOE" not in str(report.content())


@no_gpu
def test_a_gpu_that_is_asked_for_must_be_there(hospital: Hospital) -> None:
    hospital.write_config(device="cuda")
    assert hospital.lines("environment")["gpu"].level is Level.FAILS


def test_a_full_disk_fails(hospital: Hospital, monkeypatch) -> None:
    usage = shutil.disk_usage(hospital.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000_000))
    lines = hospital.lines("environment")
    assert lines["disk_state"].level is lines["disk_cache"].level is Level.FAILS
    assert lines["disk_state"].figures == {"free_gb": 1.0, "needed_gb": 2.0}


def test_the_decoded_cohort_counts_in_what_the_cache_needs(hospital: Hospital) -> None:
    large = study(input={"kind": "image", "size": 1024, "channels": 3})
    needed = hospital.lines("environment", against=large)["disk_cache"].figures["needed_gb"]
    assert needed == pytest.approx(2 + 64 * 3 * 1024**2 * 2 / 1e9, abs=0.06)


def test_a_folder_that_cannot_be_written_fails(hospital: Hospital) -> None:
    (hospital.home / "cache").write_text("in the way")
    report = hospital.check("environment")
    levels = {line.name: line.level for line in report.parts[0].findings.lines}
    assert levels["disk_cache"] is Level.FAILS
    assert levels["disk_state"] is Level.FINE
    assert str(hospital.home) in report.private[0]
    assert str(hospital.home) not in str(report.content())


def test_files_that_others_may_read_fail(hospital: Hospital) -> None:
    hospital.lines("data")  # draws the key
    key = hospital.home / "state" / "patients.key"
    key.chmod(0o644)
    (hospital.home / "state").chmod(0o755)
    line = hospital.lines("environment")["private"]
    assert (line.level, line.figures) == (Level.FAILS, {"files": 1})
    (hospital.home / "state").chmod(0o700)
    assert hospital.lines("environment")["private"].level is Level.FINE
    (hospital.home / "site.yaml").chmod(0o666)
    assert hospital.lines("environment")["private"].figures == {"files": 1}


def test_a_file_that_a_site_at_work_replaces_is_not_open(hospital: Hospital, monkeypatch) -> None:
    state, is_file = hospital.home / "state", Path.is_file
    hospital.lines("data")
    (state / ".passing.json.0a1b").touch(0o644)
    state.chmod(0o755)

    def there(path: Path) -> bool:
        found = is_file(path)
        if path.name == ".passing.json.0a1b":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", there)
    assert hospital.lines("environment")["private"].level is Level.FINE
    assert not (state / ".passing.json.0a1b").exists()


def test_too_little_memory_fails(hospital: Hospital, monkeypatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: (8e9, 1.5e9))
    line = hospital.lines("environment")["memory"]
    assert (line.level, line.description) == (Level.FAILS, "1.5 of 8.0 GB free, 2 GB needed")


def test_more_threads_than_cores_are_noted(hospital: Hospital) -> None:
    hospital.write_config(threads=4096)
    assert hospital.lines("environment")["cores"].level is Level.NOTE


def test_a_clock_before_this_software_fails(hospital: Hospital, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 946_684_800.0)
    assert hospital.lines("environment")["clock"].level is Level.FAILS


def test_every_stage_is_tried_and_nothing_of_it_is_kept(hospital: Hospital) -> None:
    hospital.lines("data")
    before = {path: path.read_bytes() for path in (hospital.home / "state").rglob("*") if path.is_file()}
    lines = hospital.lines("training")
    assert {name: line.level for name, line in lines.items()} == dict.fromkeys(
        ("stage_probe", "stage_train", "stage_adapt", "peak_memory"), Level.FINE
    )
    assert lines["stage_train"].figures["steps"] == 4  # one epoch of 32 images in batches of 8
    assert lines["stage_train"].figures["step_s"] > 0
    assert lines["peak_memory"].figures["bytes"] > 100e6
    after = {path: path.read_bytes() for path in (hospital.home / "state").rglob("*") if path.is_file()}
    assert after == before


def test_a_round_that_takes_longer_than_the_study_waits_fails(hospital: Hospital) -> None:
    slow = study(rounds={"deadline_s": 0.001})
    line = hospital.lines("training", against=slow)["stage_train"]
    assert line.level is Level.FAILS
    assert "the study waits 0.001 s" in line.description


def test_stages_for_other_sites_are_skipped(hospital: Hospital) -> None:
    hospital.write_config(cohort={"labels": None})
    lines = hospital.lines("training")
    assert lines["stage_train"].level is lines["stage_probe"].level is Level.SKIPPED
    assert lines["stage_adapt"].level is Level.FINE


def test_too_few_cases_for_a_step_fail(hospital: Hospital) -> None:
    first = dcmread(hospital.files()[0]).PatientID
    keep = [file for file in hospital.files() if dcmread(file).PatientID == first][:1]
    for file in hospital.files():
        if file not in keep:
            file.unlink()
    lines = hospital.lines("training")
    assert lines["stage_train"].level is lines["stage_adapt"].level is Level.FAILS
    assert "too few" in lines["stage_train"].description


def test_numbers_that_grow_without_end_fail(hospital: Hospital) -> None:
    wild = study(method={"name": "fedavg", "rounds": 1, "local": {"epochs": 1, "lr": 1e30, "optimiser": "sgd"}})
    line = hospital.lines("training", against=wild)["stage_train"]
    assert line.level is Level.FAILS
    assert "not finite" in line.description


def test_no_memory_for_a_batch_fails_and_the_rest_goes_on(hospital: Hospital, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(microbatching, "train", full)
    lines = hospital.lines("training")
    assert lines["stage_train"].level is Level.FAILS
    assert "memory" in lines["stage_train"].description
    assert lines["stage_adapt"].level is Level.FINE


def test_no_memory_for_the_model_fails(hospital: Hospital, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LocalModel, "__init__", full)
    assert hospital.lines("training")["model"].level is Level.FAILS


def use(size: int) -> None:
    """Memory that surely goes back to the system: a heap with gaps may keep what it is given back."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1


def test_peak_memory_counts_what_was_given_back() -> None:
    memory = PeakMemory(torch.device("cpu"))
    if memory.whole_life:
        pytest.skip("this system does not count peak memory anew")
    before = memory.peak()
    use(320_000_000)
    grown = memory.peak() - before
    assert 250e6 < grown < 450e6
    again = PeakMemory(torch.device("cpu"))
    assert again.peak() < before + 150e6


@pytest.mark.parametrize("deaf", [True, False])
def test_peak_memory_says_when_it_is_that_since_the_process_began(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaf: bool
) -> None:
    """Some systems refuse to count anew; others take the word and do nothing."""
    (tmp_path / "deaf").mkdir()
    clear = tmp_path / ("deaf" if deaf else "none") / "clear"
    use(320_000_000)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (tmp_path / "sandbox").write_text("\n".join(line for line in status.splitlines() if "VmHWM" not in line))
    for name, path in (("_CLEAR", clear), ("_STATUS", Path("/proc/self/status") if deaf else tmp_path / "sandbox")):
        monkeypatch.setattr(f"fedgraft.client.preflight.memory.{name}", path)
    memory = PeakMemory(torch.device("cpu"))
    assert memory.whole_life
    assert memory.peak() > 320e6
    assert "since it began" in hospital.lines("training")["peak_memory"].description


def test_a_part_that_breaks_down_is_a_line_and_the_others_go_on(hospital: Hospital, monkeypatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("patient DOE^JANE")

    monkeypatch.setattr("fedgraft.client.preflight.check.check_environment", breaks)
    report = hospital.check("environment", "connection")
    assert [part.findings.lines[0].name for part in report.parts] == ["broken", "server"]
    assert report.failing == 1
    assert "DOE" in report.private[0]
    assert "DOE" not in str(report.content())


def test_the_parts_are_timed(hospital: Hospital) -> None:
    seconds = hospital.check("environment", "connection").content()["seconds"]
    assert set(seconds) == {"environment", "connection"}
    assert all(0 <= value < 60 for value in seconds.values())
