"""`fedgraft site pull` from a real archive: what a hospital asks for is in a folder, each object once, and counted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from conftest import Command
from helpers.archives import HAS_ORTHANC, USER, Objects, Orthanc, an_object, pulled
from helpers.federation import Started
from helpers.site_home import Hospital

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_ORTHANC, reason="needs Orthanc and its DICOMweb")]

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FAST = ("--rate", 1000)
CHEST, HEAD, OLD, LONG = (f"1.2.826.0.1.3680043.8.498.{number}" for number in (1, 2, 3, 4))
OBJECTS: Objects = dict(
    [
        an_object(CHEST, f"{CHEST}.1", AccessionNumber="A1", PatientID="p1"),
        an_object(CHEST, f"{CHEST}.1", AccessionNumber="A1", PatientID="p1"),
        an_object(CHEST, f"{CHEST}.2", AccessionNumber="A1", PatientID="p1", Modality="CR"),
        an_object(HEAD, f"{HEAD}.1", AccessionNumber="A2", PatientID="p2", Modality="CT"),
        an_object(OLD, f"{OLD}.1", AccessionNumber="A3", PatientID="p2", StudyDate="20100101"),
        *(an_object(LONG, f"{LONG}.1", AccessionNumber="A4", PatientID="p4", Modality="MR") for _ in range(12)),
    ]
)


def of(*studies: str, modality: str | None = None) -> Objects:
    """The objects of these studies."""
    series = {"DX": ".1", "CR": ".2"}.get(modality or "", "")
    return {key: file for key, file in OBJECTS.items() if key[0] in studies and key[1].endswith(series)}


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    archive = Orthanc(tmp_path_factory.mktemp("pacs") / "orthanc")
    archive.put(*OBJECTS.values())
    yield archive
    archive.close()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_PACS_USER", USER[0])
    monkeypatch.setenv("FEDGRAFT_PACS_PASSWORD", USER[1])


@pytest.mark.usefixtures("known")
def test_what_a_search_finds_is_pulled_as_it_is_stored(command: Command, orthanc: Orthanc, tmp_path: Path) -> None:
    words = ("site", "pull", "--from", orthanc.url, "--out", "got", *FAST)
    query = ("--query", "Modality=DX", "--query", "StudyDate=20200101-20201231")
    code, out, _ = command(*words, *query, "--dry-run")
    assert (code, (tmp_path / "got").exists()) == (0, False)
    assert "to pull" in out

    code, out, err = command(*words, *query, "--json")
    said = json.loads(out)
    assert (code, said["asked"], said["pulled"], said["objects"]) == (0, 1, 1, 2), err
    assert pulled(tmp_path / "got") == of(CHEST, modality="DX")
    with (tmp_path / "got" / "manifest.csv").open(newline="") as file:
        rows = {row["path"]: row["sha256"] for row in csv.DictReader(file)}
    files = {path: (tmp_path / "got" / "images" / path).read_bytes() for path in rows}
    assert {path: hashlib.sha256(file).hexdigest() for path, file in files.items()} == rows
    assert len(rows) == 2

    code, out, _ = command(*words, *query, "--json")
    assert (code, json.loads(out)["already"], json.loads(out)["objects"]) == (0, 1, 0)
    code, out, _ = command(*words, "--query", "StudyDate=20200101-", "--query", "PatientID=p1", "--json")
    assert (code, json.loads(out)["pulled"]) == (0, 1), "the same study with all its series is not there yet"
    assert pulled(tmp_path / "got") == of(CHEST)


@pytest.mark.usefixtures("known")
def test_a_work_list_names_studies_in_three_ways(command: Command, orthanc: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        f"StudyInstanceUID;AccessionNumber;PatientID\n;A1;p1\n;;p2\n{LONG};;\n;A1;p2\n;;nobody\n{LONG}.9;;\n"
    )
    words = ("site", "pull", "--from", orthanc.url, "--out", "got", "--worklist", "list.csv", *FAST)
    code, out, _ = command(*words)
    assert code == 1, "two rows fit nothing, and one names a study that is not there"
    assert "list.csv, line 5: the PACS has no such study." in out
    assert "list.csv, line 6: the PACS has no such study." in out
    assert f"{LONG}.9: the PACS has no such study." in out
    assert "nobody" not in out
    assert pulled(tmp_path / "got") == OBJECTS
    counts = dict(line.split("│")[1:3] for line in out.splitlines() if line.count("│") == 3)
    assert {name.strip(): int(count) for name, count in counts.items()} == {
        "asked for": 7,
        "already there": 0,
        "pulled": 4,
        "without series of that modality": 0,
        "failed": 1,
        "not found": 2,
        "waiting": 0,
    }
    state = json.loads((tmp_path / "got" / "studies" / f"{LONG}.9.json").read_text())
    assert (state["state"], state["why"]) == ("failed", "has no such study")


@pytest.mark.usefixtures("known")
def test_a_pull_that_is_killed_goes_on_where_it_was(command: Command, orthanc: Orthanc, tmp_path: Path) -> None:
    for number in range(5):  # on a busy machine one may be done before it is killed
        got = tmp_path / str(number)
        words = ["site", "pull", "--from", orthanc.url, "--out", str(got), "--query", "AccessionNumber=A4"]
        process = Started([sys.executable, "-m", "fedgraft", *words, "--rate", "15"], stdout=subprocess.DEVNULL)
        while len(pulled(got)) < 3 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if 3 <= len(half := pulled(got)) < 12:
            break
    assert 3 <= len(half) < 12
    assert half.items() <= of(LONG).items()
    written = {path: path.stat().st_ino for path in (got / "images").rglob("*.dcm")}

    code, out, err = command("site", "pull", "--from", orthanc.url, "--out", got, *FAST, "--json")
    assert (code, json.loads(out)["pulled"]) == (0, 1), err
    assert pulled(got) == of(LONG)
    assert {path: path.stat().st_ino for path in written} == written, "none was pulled twice"


@pytest.mark.usefixtures("known")
def test_the_archive_is_asked_no_faster_than_it_was_said(command: Command, orthanc: Orthanc) -> None:
    words = ("site", "pull", "--from", orthanc.url, "--query", "AccessionNumber=A4")
    began = time.monotonic()
    assert command(*words, "--out", "slow", "--rate", 20)[0] == 0
    assert time.monotonic() - began >= 14 / 20, "a search for studies, one for series, one for objects, and 12 objects"
    began = time.monotonic()
    assert command(*words, "--out", "narrow", *FAST, "--mb-per-s", 0.1)[0] == 0
    assert time.monotonic() - began >= sum(map(len, of(LONG).values())) / 1e5


def test_who_asks_must_be_known(
    command: Command, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("site", "pull", "--from", orthanc.url, "--out", "got", "--query", "PatientID=p1", *FAST)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    code, _, err = command(*words)
    assert (code, "does not know who asks (status 401)" in err) == (1, True)
    (tmp_path / "netrc").write_text(f'machine localhost login {USER[0]} password "{USER[1]}"\n')
    assert command(*words)[0] == 0
    assert pulled(tmp_path / "got") == of(CHEST)


@pytest.mark.usefixtures("known")
def test_what_the_page_types_works(
    command: Command, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS", orthanc.url)
    (tmp_path / "studies.csv").write_text(f"StudyInstanceUID,finding\n{CHEST},no\n{OLD},yes\n")
    (block,) = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "how_to" / "pacs.md").read_text(), re.DOTALL)
    for line in block.splitlines():
        code, out, err = command(*map(os.path.expandvars, shlex.split(line.removeprefix("$ fedgraft "))))
        assert code == 0, f"{line}: {out}{err}"
    assert pulled(tmp_path / "pulled") == of(CHEST, OLD)


@pytest.mark.usefixtures("known")
def test_a_cohort_of_what_was_pulled_is_the_same(
    command: Command, orthanc: Orthanc, hospital: Hospital, tmp_path: Path
) -> None:
    """Patients, labels and images are those of the folder that the objects came from."""
    files = hospital.files()
    orthanc.put(*(path.read_bytes() for path in files))
    studies = sorted({str(dcmread(path, stop_before_pixels=True).StudyInstanceUID) for path in files})
    (tmp_path / "list.csv").write_text("\n".join(["StudyInstanceUID", *studies, ""]))
    before = hospital.lines("data")
    words = ("site", "pull", "--from", orthanc.url, "--out", "got", "--worklist", "list.csv", *FAST)
    code, out, err = command(*words)
    assert code == 0, out + err
    hospital.write_config(cohort={"root": str(tmp_path / "got" / "images")})
    assert hospital.lines("data") == before
