"""Checkpoints write what has changed, and give back the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.runs.snapshots import Snapshots


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"backbone": rng.normal(size=10_000), "head": rng.normal(size=10), "steps": np.arange(3)}


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> bool:
    return got.keys() == want.keys() and all(got[key].tobytes() == want[key].tobytes() for key in want)


def test_what_stays_is_written_once_and_comes_back_whole(tmp_path: Path) -> None:
    snapshots, state = Snapshots(tmp_path), arrays()
    assert snapshots.write("1.safetensors", state) == ["1.safetensors"]
    for number in (2, 3):
        state = state | {"head": np.full(10, float(number))}
        names = snapshots.write(f"{number}.safetensors", state)
        snapshots.forget_all_but(names)
        assert names == ["1.safetensors", f"{number}.safetensors"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert (tmp_path / names[1]).stat().st_size < 1000
        fresh = Snapshots(tmp_path)
        assert same(fresh.read(names), state)
    # One that was read goes on from there.
    state = fresh.read(names) | {"head": np.zeros(10)}
    assert fresh.write("4.safetensors", state) == ["1.safetensors", "4.safetensors"]
    assert same(Snapshots(tmp_path).read(["1.safetensors", "4.safetensors"]), state)


def test_a_state_of_which_most_has_changed_is_written_whole(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write("1.safetensors", arrays())
    state = arrays(1)
    assert snapshots.write("2.safetensors", state) == ["2.safetensors"]
    assert same(Snapshots(tmp_path).read(["2.safetensors"]), state)


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


def test_a_run_resumes_from_what_an_older_version_wrote(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(1, arrays(), {"m": np.ones(2)}, {})
    facts = tmp_path / "checkpoint" / "state.json"
    facts.write_text(facts.read_text().replace('[\n  "000001.safetensors"\n ]', '"000001.safetensors"'))
    assert '"tensors": "000001.safetensors"' in facts.read_text()
    found = RunFolder(tmp_path).load_checkpoint()
    assert found is not None
    assert same(found.state, arrays())
    assert same(found.memory, {"m": np.ones(2)})


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    folder, state = RunFolder(tmp_path), arrays()
    folder.save_checkpoint(1, state, {}, {})
    folder.save_checkpoint(2, state | {"head": np.ones(10)}, {}, {})
    (tmp_path / "checkpoint" / "000001.safetensors").unlink()
    with pytest.raises(InputError, match="000001"):
        RunFolder(tmp_path).load_checkpoint()
