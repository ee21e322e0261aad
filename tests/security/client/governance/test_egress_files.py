"""An egress log is sealed piece by piece, so that no file grows for ever, and stays one chain that can be checked."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedgraft.client.governance import egress_files
from fedgraft.client.governance.egress import FIRST, EgressLog
from fedgraft.client.governance.egress_files import EgressFiles
from fedgraft.client.privacy.ledger.hash_chain import Mark
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.protocol.instructions import Code, Refusal

MESSAGES = 30


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_files, "SEGMENT_BYTES", 2_000)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A log of many messages, by two processes' worth of objects."""
    one, other = EgressLog(tmp_path / "state"), EgressLog(tmp_path / "state")
    for number in range(MESSAGES):
        (one, other)[number % 2].record("ab", Refusal(number, Code.BUDGET, "north"), "a constant word")
    return tmp_path / "state"


def test_no_file_grows_for_ever_and_all_can_be_read(state: Path):
    files = EgressFiles(state)
    assert [path.name for path in files.sealed()][:2] == ["egress-000001.jsonl", "egress-000002.jsonl"]
    assert all(2_000 < path.stat().st_size < 3_000 for path in files.sealed())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files.sizes())
    entries = list(EgressLog(state).entries())
    assert [entry.seq for entry in entries] == list(range(1, MESSAGES + 1))
    assert [entry.exchange for entry in entries] == list(range(MESSAGES))
    assert EgressLog(state).witnessed() == [Mark(MESSAGES, entries[-1].hash)]


def test_a_log_that_was_just_sealed_goes_on_from_its_last_line(state: Path):
    files = EgressFiles(state)
    files.active.rename(state / f"egress-{len(files.sealed()) + 1:06d}.jsonl")
    EgressLog(state).record("ab", Refusal(99, Code.BUDGET, "north"), "a constant word")
    assert [entry.seq for entry in EgressLog(state).entries()][-1] == MESSAGES + 1


def test_reading_on_goes_across_files(state: Path):
    log, mark, size, seen = EgressLog(state), FIRST, 0, []
    for _ in range(MESSAGES):
        entry, size = next(log.after(mark, size))
        mark = Mark(entry.seq, entry.hash)
        seen.append(entry.exchange)
    assert seen == list(range(MESSAGES))
    assert list(log.after(mark, size)) == []


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "swapped"])
def test_a_sealed_file_that_is_not_what_it_was_shows(state: Path, harm: str):
    first, second, *_ = EgressFiles(state).sealed()
    match harm:
        case "changed":
            second.write_bytes(second.read_bytes().replace(b"budget", b"policy", 1))
        case "cut":
            second.write_bytes(b"".join(second.read_bytes().splitlines(keepends=True)[:-1]))
        case "gone":
            second.unlink()
        case "swapped":
            kept = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(kept)
    with pytest.raises(LedgerError, match="was changed, or lines before it are gone"):
        list(EgressLog(state).entries())


def test_many_at_once_lose_no_line(tmp_path: Path):
    def write(number: int) -> None:
        log = EgressLog(tmp_path / "state")
        for exchange in range(10):
            log.record(f"{number}", Refusal(exchange, Code.BUDGET, "north"), "a constant word")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        numbers = [entry.seq for entry in EgressLog(tmp_path / "state").entries()]  # while they seal
        assert numbers == list(range(1, len(numbers) + 1))
    assert len(list(EgressLog(tmp_path / "state").entries())) == 40
    assert len(EgressFiles(tmp_path / "state").sealed()) > 3


def test_a_file_that_is_sealed_while_it_is_measured_counts_once(state: Path, monkeypatch: pytest.MonkeyPatch):
    """A process of the same site seals it between this one's looks; the log then has no file that is written."""
    files, seen = EgressFiles(state), [entry.seq for entry in EgressLog(state).entries()]
    listed, looks = EgressFiles.sealed, []

    def sealed(self: EgressFiles) -> list[Path]:
        found = listed(self)
        looks.append(len(found))
        if len(looks) == 1:
            files.active.rename(state / f"egress-{len(found) + 1:06d}.jsonl")
        return found

    monkeypatch.setattr(EgressFiles, "sealed", sealed)
    assert [entry.seq for entry in EgressLog(state).entries()] == seen
    assert looks[0] + 1 == looks[-1]
