"""Messages between processes of one machine arrive as they were sent, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Instruction
from fedgraft.simulations.engines.workers import shared_messages as frames
from fedgraft.simulations.engines.workers.shared_messages import ExchangeFolder, SharedMessages

SMALL = {"bias": np.arange(3, dtype=np.float32), "count": np.array(7)}
LARGE = {"weight": np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32), **SMALL}


@pytest.fixture(autouse=True)
def _base(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_MEMORY", tmp_path / "nowhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1


def message(arrays: dict[str, np.ndarray], packed: object = None) -> Message:
    record = packed or wire.pack_tensors(arrays, views=True)
    content = wire.pack_instruction(Instruction("d", 1, 0, 1, True, "val", arrays), record)
    return Message(content, 5, wire.VISIT, group_id="1")


@pytest.mark.parametrize("arrays", [SMALL, LARGE, {}])
def test_a_message_arrives_as_it_was_sent(arrays):
    folder = ExchangeFolder()
    here, there = SharedMessages(folder.path, "to"), SharedMessages(folder.path, "from0")
    got = there.thaw(here.freeze(message(arrays)), once=False)
    assert (got.metadata.dst_node_id, got.metadata.message_type, got.metadata.group_id) == (5, wire.VISIT, "1")
    found = wire.unpack_instruction(got.content).tensors
    assert set(found) == set(arrays)
    assert all((found[key] == arrays[key]).all() and found[key].dtype == arrays[key].dtype for key in arrays)
    folder.close()
    assert not folder.path.exists()
    assert all((found[key] == arrays[key]).all() for key in arrays), "what is mapped stays readable"


def test_tensors_that_many_messages_share_are_written_once():
    folder = ExchangeFolder()
    sender, packed = SharedMessages(folder.path, "to"), wire.pack_tensors(LARGE)
    for _ in range(4):
        sender.freeze(message(LARGE, packed))
    files = [path for path in folder.path.iterdir() if path.name != "lock"]
    assert len(files) == 1
    sender.clear()
    assert [path.name for path in folder.path.iterdir()] == ["lock"]
    folder.close()


def test_what_a_killed_run_has_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    code = f"""
import os, tempfile
from pathlib import Path
from fedgraft.simulations.engines.workers import shared_messages as messages
messages._MEMORY, tempfile.tempdir = Path({str(tmp_path / "nowhere")!r}), {str(tmp_path)!r}
folder = messages.ExchangeFolder()
(folder.path / "tensors").write_bytes(b"x")
print(folder.path, flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    left, in_use = Path(killed.stdout.strip()), ExchangeFolder()
    assert not left.exists()
    other = ExchangeFolder()
    assert in_use.path.exists()
    for folder in (in_use, other):
        folder.close()
    assert not list(tmp_path.glob("fedgraft-exchange-*"))


def test_a_run_that_begins_takes_no_other_that_begins_for_abandoned(tmp_path, monkeypatch):
    """The second one looks after the first has made its file, and before it has locked it."""
    lock, others = frames.lock, []

    def locked_late(file):
        if not others:
            others.append(None)
            others[0] = ExchangeFolder()
        lock(file)

    monkeypatch.setattr(frames, "lock", locked_late)
    first = ExchangeFolder()
    (first.path / "tensors").write_bytes(b"x")
    for folder in (first, *others):
        folder.close()
    assert not list(tmp_path.glob("fedgraft-exchange-*"))
