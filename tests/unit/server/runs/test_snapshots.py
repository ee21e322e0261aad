"""Checkpoints write what has changed, and give back the whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import ResumeError
from fedgraft.server.runs.run_folder import NOTICE, RunFolder
from fedgraft.server.runs.snapshots import Snapshots


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"backbone": rng.normal(size=10_000), "head": rng.normal(size=10), "steps": np.arange(3)}


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> bool:
    return got.keys() == want.keys() and all(got[key].tobytes() == want[key].tobytes() for key in want)


def test_what_stays_is_written_once_and_comes_back_whole(tmp_path: Path) -> None:
    snapshots, state = Snapshots(tmp_path), arrays()
    assert list(snapshots.write("1.safetensors", state)) == ["1.safetensors"]
    for number in (2, 3):
        state = state | {"head": np.full(10, float(number))}
        files = snapshots.write(f"{number}.safetensors", state)
        snapshots.forget_all_but(files)
        names = list(files)
        assert names == ["1.safetensors", f"{number}.safetensors"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert (tmp_path / names[1]).stat().st_size < 1000
        fresh = Snapshots(tmp_path)
        assert same(fresh.read(files), state)
    # One that was read goes on from there.
    state = fresh.read(files) | {"head": np.zeros(10)}
    files = fresh.write("4.safetensors", state)
    assert list(files) == ["1.safetensors", "4.safetensors"]
    assert same(Snapshots(tmp_path).read(files), state)


def test_a_state_of_which_most_has_changed_is_written_whole(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write("1.safetensors", arrays())
    state = arrays(1)
    files = snapshots.write("2.safetensors", state)
    assert list(files) == ["2.safetensors"]
    assert same(Snapshots(tmp_path).read(files), state)


@pytest.mark.parametrize("change", ["gone", "new", "back"])
def test_entries_may_come_go_and_return_to_what_they_were(tmp_path: Path, change: str) -> None:
    snapshots, state = Snapshots(tmp_path), arrays()
    snapshots.write("1.safetensors", state)
    changed = state | {"head": np.ones(10)}
    names = snapshots.write("2.safetensors", changed)
    if change == "gone":
        state = {key: array for key, array in changed.items() if key != "steps"}
    elif change == "new":
        state = changed | {"memory of the aggregation:m": np.ones(4)}
    names = snapshots.write("3.safetensors", state)
    snapshots.forget_all_but(names)
    assert same(Snapshots(tmp_path).read(names), state)


def notices(run: Path) -> list[str]:
    """What whoever watches the run is told in words."""
    lines = (run / "events.jsonl").read_text().splitlines() if (run / "events.jsonl").exists() else []
    return [event["text"] for event in map(json.loads, lines) if event["event"] == NOTICE]


def run_of(tmp_path: Path, exchanges: int) -> tuple[RunFolder, list[dict[str, np.ndarray]]]:
    """A run's folder after so many exchanges, each with a checkpoint, and the state after each."""
    folder, states = RunFolder(tmp_path), [arrays()]
    for number in range(1, exchanges + 1):
        states.append(states[-1] | {"head": np.full(10, float(number))})
        folder.append_history({"exchange": number, "words": "x" * number})
        folder.save_checkpoint(number, states[-1], {"m": np.full(2, number)}, {"bytes_up": number})
    return folder, states


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": lambda path: flip(path, -3),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["000003.safetensors", "state.json"])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(tmp_path: Path, name: str, damage: str) -> None:
    """One flipped bit gave other weights, without a word."""
    _, states = run_of(tmp_path, 3)
    DAMAGE[damage](tmp_path / "checkpoint" / name)
    folder = RunFolder(tmp_path)
    found = folder.load_checkpoint()
    assert found is not None
    assert (found.exchange, found.totals) == (2, {"bytes_up": 2})
    assert same(found.state, states[2])
    assert same(found.memory, {"m": np.full(2, 2)})
    assert [row["exchange"] for row in folder.history()] == [1, 2]
    if (name, damage) != ("state.json", "gone"):  # as a kill leaves it between the two files
        assert any(name in text and "goes on from the checkpoint before" in text for text in notices(tmp_path))
    folder.save_checkpoint(3, states[3], {}, {})
    assert same(RunFolder(tmp_path).load_checkpoint().state, states[3])  # type: ignore[union-attr]


def test_if_both_are_damaged_the_run_says_what_is_wrong_and_keeps_all(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    flip(tmp_path / "checkpoint" / "000001.safetensors", -3)  # what both rest on
    before = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(ResumeError, match=r"000001\.safetensors: is not as it was written.*begin a new run"):
        RunFolder(tmp_path).load_checkpoint()
    assert (tmp_path / "history.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", ["a flipped bit", "half", "empty", "gone"])
def test_a_history_that_is_not_what_it_was_is_not_gone_on_with(tmp_path: Path, damage: str) -> None:
    """A shorter one was filled up with NULs, and the run failed at its very end."""
    folder, _ = run_of(tmp_path, 3)
    DAMAGE[damage](tmp_path / "history.jsonl")
    left = len((tmp_path / "history.jsonl").read_bytes()) if damage != "gone" else 0
    if damage == "a flipped bit":  # the third exchange alone
        found = RunFolder(tmp_path).load_checkpoint()
        assert found is not None
        assert (found.exchange, len(folder.history())) == (2, 2)
    else:
        with pytest.raises(ResumeError, match=r"history\.jsonl: is shorter than it was, or was changed"):
            RunFolder(tmp_path).load_checkpoint()
        assert len((tmp_path / "history.jsonl").read_bytes() if damage != "gone" else b"") == left


def test_checkpoints_that_are_gone_do_not_begin_the_run_anew(tmp_path: Path) -> None:
    run_of(tmp_path, 3)
    for name in ("state.json", "before.json"):
        (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(ResumeError, match=r"state\.json: is gone, after 3 exchanges"):
        RunFolder(tmp_path).load_checkpoint()
    assert len(RunFolder(tmp_path).history()) == 3


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    RunFolder(tmp_path).append_history({"exchange": 1})
    assert RunFolder(tmp_path).load_checkpoint() is None
    assert not (tmp_path / "history.jsonl").exists()
    assert notices(tmp_path) == []


def test_a_run_that_has_lost_its_folder_of_checkpoints_says_that_it_begins_anew(tmp_path: Path) -> None:
    """Three rounds were done again in silence."""
    run_of(tmp_path, 3)
    shutil.rmtree(tmp_path / "checkpoint")
    assert RunFolder(tmp_path).load_checkpoint() is None
    (said,) = notices(tmp_path)
    assert (
        said == f"{tmp_path / 'checkpoint'}: there is no checkpoint, though 3 exchanges were done. The run begins anew."
    )


def test_checkpoints_that_cannot_be_looked_at_are_not_taken_for_none(tmp_path: Path) -> None:
    """The history was deleted, and the run began anew, since an account might not open the folder."""
    run_of(tmp_path, 3)
    (tmp_path / "checkpoint").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoint").symlink_to("checkpoint")
    with pytest.raises(OSError, match="symbolic links") as failed:
        RunFolder(tmp_path).load_checkpoint()
    assert "checkpoint/state.json" in str(failed.value.filename)
    assert len(RunFolder(tmp_path).history()) == 3


def test_tensors_of_another_run_are_not_those_of_the_checkpoint(tmp_path: Path) -> None:
    """A whole file with a right digest of its own, in the place of the one that was written."""
    run_of(tmp_path, 3)
    (tmp_path / "other").mkdir()
    run_of(tmp_path / "other", 2)
    path = tmp_path / "checkpoint" / "000003.safetensors"
    (tmp_path / "other" / "checkpoint" / "000002.safetensors").replace(path)
    found = RunFolder(tmp_path).load_checkpoint()
    assert found is not None
    assert found.exchange == 2
    assert "000003.safetensors: is not as it was written" in notices(tmp_path)[0]
