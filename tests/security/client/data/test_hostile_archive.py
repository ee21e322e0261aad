"""An archive (PACS) that lies, breaks off, floods or sends elsewhere: what is kept is whole, and is what was asked."""

from __future__ import annotations

import gzip
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from conftest import Command
from fedgraft.client.data.pacs import dicomweb
from fedgraft.client.data.pacs.address import PacsAddress
from fedgraft.client.data.pacs.dicomweb import Dicomweb
from fedgraft.client.data.pacs.pace import Pace
from fedgraft.client.data.pacs.pull import Outcome, Wanted, pull
from fedgraft.client.data.pacs.store import Store
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.identity.keys import load_certificate, load_node_key
from fedgraft.server.provisioning.pki import new_authority, server_certificate
from helpers.archives import MULTIPART, Handler, PlayedArchive, an_object, listing, played, pulled, whole
from helpers.eavesdropper import eavesdropper
from helpers.federation import Started

STUDY, OTHER = "1.2.3", "1.2.4"
FIRST = an_object(STUDY, "1.2.3.1", "1.2.3.1.1")
SECOND = an_object(STUDY, "1.2.3.1", "1.2.3.1.2")
THIRD = an_object(OTHER, "1.2.4.1", "1.2.4.1.1")
ALL = Wanted(keys={"PatientName": "*"})


@pytest.fixture
def archive() -> Iterator[PlayedArchive]:
    with played(SECOND, FIRST, THIRD) as made:
        yield made


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def fetch(archive: PlayedArchive, out: Path, wanted: Wanted = ALL, object_mb: int = 1) -> Outcome:
    """A pull that loses no time between repetitions."""
    with PacsAddress(archive.url).open() as client:
        pacs = Dicomweb(client, Pace(1000), first_wait_s=0.002)
        return pull(pacs, Store(out, object_mb), wanted, lambda _: None, dry=False)


def end_of(archive: PlayedArchive, out: Path) -> str:
    """Why a pull ended before its end, in its search or behind it."""
    try:
        return fetch(archive, out).stopped
    except RunError as error:
        return str(error)


def outside(folder: Path) -> set[str]:
    """What lies in the folder that a pull into its `got` was not to make."""
    return {str(path) for path in folder.rglob("*") if folder / "got" not in (path, *path.parents)}


BAD_UIDS = ("../../../gone", "/tmp/gone", "..", "", "1.2/../../../gone", "1.2.3\n", "1" * 65, "१.२", "1.2.3.dcm", "CON")


@pytest.mark.parametrize("level", ["study", "series", "object"])
def test_a_name_that_is_a_path_writes_nowhere(archive: PlayedArchive, tmp_path: Path, level: str) -> None:
    end = {"study": "/studies", "series": "/1.2.3/series", "object": "/1.2.3.1/instances"}[level]
    beside = [OTHER] if level == "study" else []
    for uid in BAD_UIDS:
        archive.instead = {end: [lambda handler, uid=uid: handler.give(listing(level, uid, *beside))]}
        outcome = fetch(archive, tmp_path / "got")
        assert not outcome.is_complete, uid
        assert "no UID" in str((outcome.failed, outcome.not_found))
        assert set(pulled(tmp_path / "got")) == {THIRD[0]}
        assert outside(tmp_path) == set()


def _another(handler: Handler) -> None:
    handler.give(whole(THIRD[1]), MULTIPART)


def _of_another_study(handler: Handler) -> None:
    handler.give(whole(an_object(OTHER, "1.2.3.1", "1.2.3.1.2")[1]), MULTIPART)


def _of_another_series(handler: Handler) -> None:
    handler.give(whole(an_object(STUDY, "1.2.3.9", "1.2.3.1.2")[1]), MULTIPART)


def _two(handler: Handler) -> None:
    handler.give(whole(SECOND[1], THIRD[1]), MULTIPART)


def _none(handler: Handler) -> None:
    handler.give(whole(), MULTIPART)


def _no_dicom(handler: Handler) -> None:
    handler.give(whole(b"%PDF-1.7 of somebody"), MULTIPART)


def _json(handler: Handler) -> None:
    handler.give(b'{"error": "no"}')


def _gone(handler: Handler) -> None:
    handler.give(b"", status=410)


@pytest.mark.parametrize(
    "answer", [_another, _of_another_study, _of_another_series, _two, _none, _no_dicom, _json, _gone]
)
def test_what_was_not_asked_for_is_not_kept(
    archive: PlayedArchive, tmp_path: Path, answer: Callable[[Handler], None]
) -> None:
    """And all else is: the study's other object, which comes after it, and the other study."""
    archive.instead["/1.2.3.1.2"] = [answer]
    outcome = fetch(archive, tmp_path / "got")
    assert (list(outcome.failed), outcome.pulled) == ([STUDY], 1)
    assert pulled(tmp_path / "got") == dict([FIRST, THIRD])
    manifest = (tmp_path / "got" / "manifest.csv").read_text()
    assert (OTHER in manifest, STUDY in manifest) == (True, False), "a study that is not whole is in no manifest"

    del archive.instead["/1.2.3.1.2"]
    assert fetch(archive, tmp_path / "got", Wanted()).pulled == 1
    assert pulled(tmp_path / "got") == dict([FIRST, SECOND, THIRD])
    assert len([path for path in archive.paths("instances") if path.endswith("/1.2.3.1.1")]) == 1


def test_an_object_of_somebody_else_is_kept_nowhere(tmp_path: Path) -> None:
    with played(SECOND) as archive:
        archive.instead["/1.2.3.1.2"] = [_another]
        assert list(fetch(archive, tmp_path / "got").failed) == [STUDY]
    assert list((tmp_path / "got").rglob("*.dcm")) == []


def _cut_by_length(handler: Handler) -> None:
    body = whole(SECOND[1])
    handler.begin(MULTIPART, headers={"Content-Length": str(len(body))})
    handler.wfile.write(body[:2000])


def _cut_without_length(handler: Handler) -> None:
    handler.begin(MULTIPART)
    handler.wfile.write(whole(SECOND[1])[:2000])


def _cut_with_a_length_that_fits(handler: Handler) -> None:
    handler.give(whole(SECOND[1])[:-30], MULTIPART)


def _cut_in_the_head(handler: Handler) -> None:
    handler.begin(MULTIPART)
    handler.wfile.write(b"--here ends one\r\nContent-")


def _busy(handler: Handler) -> None:
    handler.give(b"", status=503)


def _broken(handler: Handler) -> None:
    handler.give(b"", status=500)


@pytest.mark.parametrize(
    "answer",
    [_cut_by_length, _cut_without_length, _cut_with_a_length_that_fits, _cut_in_the_head, _busy, _broken],
)
def test_half_an_object_is_asked_for_again_and_never_counts(
    archive: PlayedArchive, tmp_path: Path, answer: Callable[[Handler], None]
) -> None:
    usual = lambda handler: handler.give(whole(SECOND[1]), MULTIPART)  # noqa: E731
    archive.instead["/1.2.3.1.2"] = [answer, answer, usual]
    assert fetch(archive, tmp_path / "twice").is_complete
    assert pulled(tmp_path / "twice") == dict([FIRST, SECOND, THIRD])

    archive.instead["/1.2.3.1.2"] = [answer]
    outcome = fetch(archive, tmp_path / "always")
    assert (list(outcome.failed), outcome.pulled) == ([STUDY], 1)
    assert pulled(tmp_path / "always") == dict([FIRST, THIRD])


def test_an_archive_that_is_away_is_not_asked_for_all_the_rest(tmp_path: Path) -> None:
    objects = [an_object(f"1.2.{number}", f"1.2.{number}.1") for number in range(8)]
    with played(*objects) as archive:
        archive.instead["/series"] = [_busy]
        outcome = fetch(archive, tmp_path / "got")
        assert (len(outcome.failed), outcome.waiting) == (3, 5)
        assert "The rest was not asked for. Repeat the command later" in outcome.stopped
        del archive.instead["/series"]
        assert fetch(archive, tmp_path / "got", Wanted()).pulled == 8, "those that failed, and those that wait"


def _later(seconds: int) -> Callable[[Handler], None]:
    return lambda handler: handler.give(b"", status=429, Retry_After=str(seconds))


@pytest.mark.slow
def test_it_is_left_alone_for_as_long_as_it_asks(archive: PlayedArchive, tmp_path: Path) -> None:
    archive.instead["/1.2.3/series"] = [_later(1), lambda handler: handler.give(listing("series", "1.2.3.1"))]
    began = time.monotonic()
    assert fetch(archive, tmp_path / "got").is_complete
    assert time.monotonic() - began >= 1
    archive.instead["/studies"] = [_later(7200)]
    with pytest.raises(RunError, match=r"left alone for 120 minutes.*goes on where it was"):
        fetch(archive, tmp_path / "got")


def _endless(start: bytes, kind: str = MULTIPART) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.begin(kind)
        handler.wfile.write(start)
        while True:  # until nobody listens any more
            handler.wfile.write(b"x" * (1 << 16))

    return answer


HEAD = b"--here ends one\r\nContent-Type: application/dicom\r\n\r\n"


@pytest.mark.parametrize("start", [b"", HEAD[:20], HEAD, HEAD + SECOND[1][:-2000]])
def test_a_body_without_an_end_is_left(archive: PlayedArchive, tmp_path: Path, start: bytes) -> None:
    archive.instead["/1.2.3.1.2"] = [_endless(start)]
    outcome = fetch(archive, tmp_path / "got")
    assert list(outcome.failed) == [STUDY]
    assert pulled(tmp_path / "got") == dict([FIRST, THIRD])
    assert sum(path.stat().st_size for path in (tmp_path / "got").rglob("*") if path.is_file()) < 10**5


@pytest.mark.parametrize("end", ["/1.2.3.1.2", "/1.2.3/series"])
def test_what_comes_packed_is_not_unpacked(archive: PlayedArchive, tmp_path: Path, end: str) -> None:
    """Packed twice a gigabyte travels as some kilobytes, and would be unpacked in one piece."""
    once = gzip.compress(bytes(1 << 26))
    packed = gzip.compress(once)
    kind = MULTIPART if end.endswith("2") else "application/dicom+json"
    archive.instead[end] = [lambda handler: handler.give(packed, kind, Content_Encoding="gzip, gzip")]
    tracemalloc.start()
    outcome = fetch(archive, tmp_path / "got")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.failed == {STUDY: "answers with what is packed, though it was asked not to"}
    assert most < 1 << 24


def test_nothing_that_an_archive_wants_remembered_is(archive: PlayedArchive, tmp_path: Path) -> None:
    """Cookies of new names in each answer would grow for as long as it pulls, and be sent back with each request."""
    found = listing("study", STUDY)
    archive.instead["/studies"] = [lambda handler: handler.give(found, Set_Cookie=f"c{len(archive.asked)}=1; Path=/")]
    with PacsAddress(archive.url).open() as client:
        Dicomweb(client, Pace(1000)).search("/studies")
        Dicomweb(client, Pace(1000)).search("/studies")
        assert len(client.cookies.jar) == 0
    assert not any("Cookie" in headers for _, _, headers in archive.asked)


def test_a_body_that_drips_is_left(archive: PlayedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drips(handler: Handler) -> None:
        handler.begin(MULTIPART)
        handler.wfile.write(HEAD)
        while True:  # until nobody listens any more
            handler.wfile.write(b"x")
            time.sleep(0.02)

    monkeypatch.setattr(dicomweb, "_PATIENCE_S", 0.1)
    archive.instead["/1.2.3.1.2"] = [drips, lambda handler: handler.give(whole(SECOND[1]), MULTIPART)]
    assert fetch(archive, tmp_path / "got").is_complete
    assert len([path for path in archive.paths("instances") if path.endswith("/1.2.3.1.2")]) == 2


def test_what_follows_the_last_boundary_is_not_waited_for(archive: PlayedArchive, tmp_path: Path) -> None:
    archive.instead["/1.2.3.1.2"] = [_endless(whole(SECOND[1]))]
    assert fetch(archive, tmp_path / "got").is_complete


def test_a_search_without_an_end_is_left(
    archive: PlayedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "_JSON_BYTES", 1 << 20)
    archive.instead["/1.2.3/series"] = [_endless(b"[", "application/dicom+json")]
    assert list(fetch(archive, tmp_path / "got").failed) == [STUDY]

    page = iter(range(10**6))
    monkeypatch.setattr(dicomweb, "_MOST_FOUND", 200)
    archive.instead["/1.2.3/series"] = [
        lambda handler: handler.give(listing("series", *(f"1.9.{next(page)}" for _ in range(60))))
    ]
    assert list(fetch(archive, tmp_path / "again").failed) == [STUDY]

    monkeypatch.setattr(dicomweb, "_MOST_FOUND", 10**6)
    monkeypatch.setattr(dicomweb, "_SEARCH_BYTES", 10**5)
    assert "search for fewer" in fetch(archive, tmp_path / "pages").failed[STUDY], "each page is small, and all are not"


def test_pages_of_a_search_are_all_turned(tmp_path: Path) -> None:
    """Also where the archive does not say that it shows no more than some at once. One that turns none fails."""
    objects = [an_object(STUDY, "1.2.3.1", f"1.2.3.1.{number}") for number in range(70)]
    with played(*objects) as archive:
        names = [sop for _, _, sop in archive.objects]

        def page(handler: Handler, **headers: str) -> None:
            begin = 0 if headers else int(archive.asked[-1][1].get("offset", 0))
            handler.give(listing("object", *names[begin : begin + 50]), **headers)

        archive.instead["/1.2.3.1/instances"] = [page]
        assert fetch(archive, tmp_path / "got").objects == 70
        archive.instead["/1.2.3.1/instances"] = [lambda handler: page(handler, Warning='299 web "more"')]
        assert "shows only a part" in fetch(archive, tmp_path / "part").failed[STUDY]


def test_objects_that_are_counted_and_not_listed_are_missed(archive: PlayedArchive, tmp_path: Path) -> None:
    entry = {"0020000E": {"Value": ["1.2.3.1"]}, "00201209": {"vr": "IS", "Value": [5]}}
    archive.instead["/1.2.3/series"] = [lambda handler: handler.give(json.dumps([entry]).encode())]
    assert fetch(archive, tmp_path / "got").failed == {STUDY: "lists 2 of 5 objects of the study"}
    archive.instead["/1.2.3.1/instances"] = [lambda handler: handler.give(b"", status=204)]
    del entry["00201209"]
    assert fetch(archive, tmp_path / "none").failed == {STUDY: "lists no object of the study"}


def test_nobody_is_followed_with_credentials(
    archive: PlayedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDGRAFT_PACS_USER", "reader")
    monkeypatch.setenv("FEDGRAFT_PACS_PASSWORD", "a secret")
    with played() as elsewhere:
        for end in ("/studies", "/1.2.3.1.2"):
            where = elsewhere.url.replace("localhost", "127.0.0.1") + "/studies"
            archive.instead = {end: [lambda handler, where=where: handler.give(b"", status=302, Location=where)]}
            assert re.search(r"sends requests on to 127\.0\.0\.1.*does not follow", end_of(archive, tmp_path / "got"))
        assert elsewhere.asked == []
    assert all(headers["Authorization"].startswith("Basic ") for _, _, headers in archive.asked)


def _login(handler: Handler) -> None:
    handler.give(b"<html><form>Who are you?", "text/html; charset=utf-8")


@pytest.mark.parametrize("end", ["/studies", "/1.2.3/series", "/1.2.3.1.2"])
def test_a_page_to_log_in_ends_the_pull_with_a_word(archive: PlayedArchive, tmp_path: Path, end: str) -> None:
    archive.instead[end] = [_login]
    assert re.search(r"is a web page, and no DICOMweb service.*ask for a token", end_of(archive, tmp_path / "got"))


def test_a_token_that_ends_is_read_anew(archive: PlayedArchive, command: Command, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")

    def ended(handler: Handler) -> None:
        handler.give(b"", status=401)

    archive.instead["/1.2.3.1.2"] = [ended]
    words = ("site", "pull", "--from", archive.url, "--out", "got", "--token-file", token, "--rate", 1000)
    code, out, err = command(*words, "--query", "PatientName=*")
    assert code == 1
    assert re.search(r"waiting +│ 2", out), "what is there is counted all the same"
    assert "has the token ended? Repeat the command then: it goes on where it was." in err
    assert "old" not in err
    token.write_text("new\n")
    del archive.instead["/1.2.3.1.2"]
    assert command(*words)[0] == 0
    assert {headers["Authorization"] for _, _, headers in archive.asked} == {"Bearer old", "Bearer new"}
    assert pulled(tmp_path / "got") == dict([FIRST, SECOND, THIRD])


@pytest.mark.parametrize(
    "url", ["http://pacs.example.org/dicom-web", "http://192.0.2.1/dicom-web", "http://localhost.example.org/web"]
)
def test_images_do_not_travel_in_the_open(command: Command, url: str) -> None:
    code, _, err = command("site", "pull", "--from", url, "--out", "got", "--query", "PatientID=p1")
    assert (code, "without encryption" in err) == (2, True)
    PacsAddress(url, plain=True).open().close()


def test_a_password_in_an_address_is_refused_and_not_repeated(command: Command) -> None:
    url = "https://reader:secret@pacs.example.org/dicom-web"
    code, out, err = command("site", "pull", "--from", url, "--out", "got", "--query", "PatientID=p1")
    assert (code, "FEDGRAFT_PACS_PASSWORD" in err, "secret" in out + err) == (2, True, False)


def test_no_patient_is_named_in_logs_records_or_messages(
    archive: PlayedArchive, command: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    archive.patients = {STUDY: "patient-77", OTHER: "patient-78"}
    (tmp_path / "list.csv").write_text("PatientID\npatient-77\n")
    archive.instead["/studies"] = [
        lambda handler: handler.give(
            json.dumps([{"0020000D": {"Value": [STUDY]}, "00100020": {"Value": ["patient-77"]}}]).encode()
        )
    ]
    archive.instead["/1.2.3.1.2"] = [_another]
    words = ("site", "pull", "--from", archive.url, "--out", "got", "--worklist", "list.csv", "--rate", 1000)
    code, out, err = command(*words)
    assert (code, STUDY in out) == (1, True)
    assert [keys for path, keys, _ in archive.asked if path == "/studies"] == [{"PatientID": "patient-77"}]
    written = [path.read_bytes() for path in (tmp_path / "got").rglob("*") if path.is_file() and path.suffix != ".dcm"]
    said = out + err + caplog.text + "".join(map(str, written)) + str(list((tmp_path / "got").rglob("*")))
    assert "patient-7" not in said
    assert "Somebody" not in said


def test_an_archive_that_does_not_search_by_patient_gives_none_of_others(
    archive: PlayedArchive, command: Command, tmp_path: Path
) -> None:
    archive.patients = {STUDY: "p1", OTHER: "p2"}
    (tmp_path / "list.csv").write_text("PatientID\np1\n")
    words = ("site", "pull", "--from", archive.url, "--out", "got", "--rate", 1000)
    code, _, err = command(*words, "--worklist", "list.csv")
    assert (code, pulled(tmp_path / "got")) == (1, {})
    assert "list.csv, line 2: of 2 studies that the PACS answers with, 1 are not what was asked for" in err
    (tmp_path / "list.csv").write_text("PatientID\n*\n")
    code, _, err = command(*words, "--worklist", "list.csv")
    assert (code, "has a wildcard" in err) == (2, True)


@pytest.mark.parametrize(
    ("key", "value", "own", "other"),
    [
        ("PatientName", "doe^j*", {"Alphabetic": "Doe^Jane^^^", "Ideographic": "山田"}, {"Alphabetic": "Roe^Jane"}),
        ("PatientName", "Doe^Jane", {"Alphabetic": "DOE^JANE^"}, {"Alphabetic": "Doe^Janet"}),
        ("ReferringPhysicianName", "Who^A", {"Alphabetic": "Who^A"}, None),
        ("PatientID", "12*", "1234", "4712"),
        ("PatientID", "1[2", "1[2", "12"),
        ("StudyID", "7", "7", "77"),
        ("StudyTime", "08-0930", "093000.5", "094500"),
        ("StudyTime", "-1000", "080000", "110000"),
        ("StudyDate", "20200101-", "20210101", None),
    ],
)
def test_an_archive_that_passes_over_a_key_gives_none_of_others(
    archive: PlayedArchive, tmp_path: Path, key: str, value: str, own: object, other: object
) -> None:
    """DICOMweb lets an archive leave out keys that it does not search by: all that it has would be pulled."""
    tag = f"{tag_for_keyword(key):08X}"
    found = [
        {"0020000D": {"Value": [study]}, tag: {"Value": [] if said is None else [said]}}
        for study, said in ((STUDY, own), (OTHER, other))
    ]
    archive.instead["/studies"] = [lambda handler: handler.give(json.dumps(found).encode())]
    with pytest.raises(RunError, match="of 2 studies that the PACS answers with, 1 are not what was asked for"):
        fetch(archive, tmp_path / "got", Wanted(keys={key: value}))
    assert pulled(tmp_path / "got") == {}
    del found[1]
    assert fetch(archive, tmp_path / "got", Wanted(keys={key: value})).pulled == 1


def test_keys_that_nobody_can_ask_by_are_told_without_them(archive: PlayedArchive, command: Command) -> None:
    Path("list.csv").write_text(f"PatientID\n{'patient-77' * 8000}\n")
    words = ("site", "pull", "--from", archive.url, "--out", "got", "--rate", 1000)
    code, out, err = command(*words, "--worklist", "list.csv")
    assert (code, "list.csv, line 2: the PACS cannot be asked by what is so long" in out) == (1, True)
    assert "patient-77" not in out + err
    for typed in ("PatientID: patient-77", "patient-77", "patient-77=x", "PatientID="):
        code, out, err = command(*words, "--query", typed)
        assert (code, "--query: write KEY=VALUE" in err) == (2, True)
        assert "patient-77" not in out + err


@pytest.mark.parametrize("name", ["partial/theirs.txt", "manifest.csv", "studies/theirs.json"])
def test_a_folder_that_holds_what_is_somebody_elses_is_left_as_it_is(
    archive: PlayedArchive, tmp_path: Path, name: str
) -> None:
    theirs = tmp_path / "got" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("all that they have\n")
    with pytest.raises(InputError, match=f"{name.partition('/')[0]}.*is there, and is of no pull"):
        fetch(archive, tmp_path / "got")
    assert theirs.read_text() == "all that they have\n"
    assert [path for path in (tmp_path / "got").rglob("*") if path.is_file()] == [theirs]


def test_links_in_the_folder_of_a_pull_let_nothing_be_written_or_deleted_elsewhere(
    archive: PlayedArchive, tmp_path: Path
) -> None:
    fetch(archive, tmp_path / "got", Wanted(keys={"StudyInstanceUID": OTHER}))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("mine")
    (tmp_path / "got" / "partial" / "object.dcm").symlink_to(theirs / "file")
    assert fetch(archive, tmp_path / "got", Wanted(keys={"StudyInstanceUID": STUDY})).pulled == 1
    assert (theirs / "file").read_text() == "mine"
    assert not any(path.is_symlink() for path in (tmp_path / "got").rglob("*"))
    (tmp_path / "got" / "partial").rmdir()
    (tmp_path / "got" / "partial").symlink_to(theirs)
    fetch(archive, tmp_path / "got")
    assert [path.name for path in theirs.iterdir()] == ["file"]


@pytest.mark.slow
def test_one_that_is_killed_in_an_object_leaves_no_half(archive: PlayedArchive, tmp_path: Path) -> None:
    archive.objects = dict([FIRST, SECOND, THIRD])

    def stalls(handler: Handler) -> None:
        handler.begin(MULTIPART)
        handler.wfile.write(HEAD + SECOND[1] * 40)
        time.sleep(60)

    archive.instead["/1.2.3.1.2"] = [stalls, lambda handler: handler.give(whole(SECOND[1]), MULTIPART)]
    words = ["site", "pull", "--from", archive.url, "--out", str(tmp_path / "got"), "--query", "PatientName=*"]
    process = Started([sys.executable, "-m", "fedgraft", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half = tmp_path / "got" / "partial" / "object.dcm"
    while process.poll() is None and not (half.is_file() and half.stat().st_size > len(SECOND[1])):
        time.sleep(0.02)
    with pytest.raises(RunError, match="another pull is at work there"):
        fetch(archive, tmp_path / "got")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert pulled(tmp_path / "got") == dict([FIRST])
    assert fetch(archive, tmp_path / "got", Wanted()).is_complete
    assert pulled(tmp_path / "got") == dict([FIRST, SECOND, THIRD])
    assert list((tmp_path / "got" / "partial").iterdir()) == []


def test_over_tls_each_side_shows_a_certificate_that_the_other_trusts(tmp_path: Path, command: Command) -> None:
    def kept(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    authority, own = new_authority("hospital"), new_authority("reader")
    signs = load_certificate(kept("ca.pem", authority.certificate)), load_node_key(authority.key, "ca")
    server = server_certificate(*signs, ["localhost"], 1)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=kept("readers.pem", own.certificate))
    tls.load_cert_chain(kept("server.pem", server.certificate + server.key))
    tls.verify_mode = ssl.CERT_REQUIRED
    kept("own.pem", own.certificate)
    kept("own.key", own.key)
    with played(FIRST, tls=tls) as archive:
        words = ("site", "pull", "--from", archive.url, "--out", "got", "--query", "PatientName=*", "--rate", 1000)
        code, _, err = command(*words)
        assert (code, "nobody whom this machine trusts vouches for it" in err) == (1, True)
        code, _, err = command(*words, "--ca", "ca.pem")
        assert (code, "--certificate" in err) == (1, True), err
        code, _, err = command(*words, "--ca", "ca.pem", "--certificate", "own.pem", "--key", "own.key")
        assert (code, err) == (0, "")
    assert pulled(tmp_path / "got") == dict([FIRST])


def test_without_a_word_which_studies_nothing_is_pulled(archive: PlayedArchive, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Give --worklist FILE or --query"):
        fetch(archive, tmp_path / "got", Wanted())
    assert archive.asked == []


def test_an_address_or_a_list_that_is_wrong_is_called_so(archive: PlayedArchive, command: Command) -> None:
    words = ("site", "pull", "--out", "got", "--from")
    code, _, err = command(*words, f"{archive.url}/nowhere", "--query", "Modality=DX")
    assert (code, "search for studies (status 404). Is the path in --from right" in err) == (1, True)
    code, _, err = command(*words, archive.url, "--worklist", "none.csv")
    assert (code, "there is no none.csv. --worklist names a CSV file." in err) == (2, True)


def test_what_comes_from_this_machine_without_encryption_does_not_leave_it(
    archive: PlayedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that the environment names would read images and passwords."""
    monkeypatch.setattr("fedgraft.client.data.pacs.address._TIMEOUT_S", 2)
    with eavesdropper(monkeypatch) as proxy:
        assert fetch(archive, tmp_path / "got").is_complete
        assert not proxy.heard()
