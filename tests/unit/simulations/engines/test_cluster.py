"""On a cluster: who works where, messages that arrive as they were sent, and words for what cannot be joined."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.common.base.errors import InputError
from fedgraft.simulations.api.simulate import engine_of
from fedgraft.simulations.cli import commands
from fedgraft.simulations.engines.cluster.connection import joined
from fedgraft.simulations.engines.cluster.node_messages import flat, freeze, thaw
from fedgraft.simulations.engines.cluster.node_worker import listed
from fedgraft.simulations.engines.cluster.places import ClusterNode, places_for
from fedgraft.simulations.engines.engine import Engine

PLAIN = [ClusterNode("b", "10.0.0.2", 8.0, 0.0), ClusterNode("a", "10.0.0.1", 4.0, 0.0)]
CARDS = [*PLAIN, ClusterNode("c", "10.0.0.3", 16.0, 2.0), ClusterNode("d", "10.0.0.4", 16.0, 1.0)]


def dealt(nodes: list[ClusterNode], sites: int, workers: int | None, threads: int = 1) -> tuple[str, float]:
    places = places_for(nodes, sites, workers, threads)
    return "".join(node.key for node in places.nodes), places.gpu_share


def test_workers_are_dealt_out_over_the_nodes_in_turn() -> None:
    assert dealt(PLAIN, 20, 5) == ("ababa", 0.0)
    assert dealt(PLAIN, 3, None) == ("aba", 0.0)
    assert dealt(PLAIN, 20, None) == ("abababab" + "bbbb", 0.0)
    assert dealt(PLAIN, 20, None, threads=4) == ("abb", 0.0)


def test_where_there_are_gpus_only_they_are_used_and_shared_as_workers_ask() -> None:
    assert dealt(CARDS, 20, None) == ("cdc", 1.0)
    assert dealt(CARDS, 20, 2) == ("cd", 1.0)
    assert dealt(CARDS, 20, 6) == ("cdcdcc", 0.5)
    keys, share = dealt(CARDS, 20, 9)
    assert (keys.count("c"), keys.count("d"), share) == (6, 3, 0.3333)


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"), [(PLAIN, 13, 1), (PLAIN, None, 9), (CARDS, 2, 17), ([], 1, 1)]
)
def test_what_does_not_fit_is_refused_with_what_there_is(
    nodes: list[ClusterNode], workers: int | None, threads: int
) -> None:
    with pytest.raises(InputError, match="fewer --workers or --threads"):
        places_for(nodes, 20, workers, threads)


def test_a_message_arrives_as_it_was_sent_and_a_shared_record_is_stored_once() -> None:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "none": np.zeros((0, 2))}
    record = ArrayRecord({key: Array(value) for key, value in values.items()})
    stored: list[np.ndarray] = []

    def store(one: ArrayRecord) -> int:
        stored.append(flat(one))
        return len(stored) - 1

    sent = Message(RecordDict({"t": record, "c": ConfigRecord({"text": "{}"})}), dst_node_id=2, message_type="train")
    frame, kept = freeze(sent, store)
    came = thaw(frame, [stored[at] for at in kept])
    assert came.metadata.dst_node_id == 2
    assert dict(came.content["c"]) == {"text": "{}"}
    for key, value in values.items():
        np.testing.assert_array_equal(came.content.array_records["t"][key].numpy(), value)
    assert len(frame) < 2000


def test_a_listing_knows_names_and_sizes_and_that_something_is_missing(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "1.png").write_bytes(b"12")
    before = listed([tmp_path / "d"])
    assert before is not None
    assert listed([tmp_path / "d"]) == before
    (tmp_path / "d" / "e" / "1.png").write_bytes(b"123")
    assert listed([tmp_path / "d"]) not in (None, before)
    assert listed([tmp_path / "d", tmp_path / "labels.csv"]) is None


def test_an_address_where_nobody_answers_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))  # nobody listens, and nobody else gets it meanwhile
        address = f"127.0.0.1:{kept.getsockname()[1]}"
        with pytest.raises(InputError, match=f"No Ray cluster answers at {address}"), joined(address, {}):
            pass
    for wrong, words in (("ray://10.0.0.1:10001", "only nodes"), ("10.0.0.1", "is no address"), ("h:99999", "answers")):
        with pytest.raises(InputError, match=words), joined(wrong, {}):
            pass


def test_the_cluster_is_where_it_was_said_or_where_rays_own_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Engine(name="ray").cluster is None
    assert engine_of("ray", None, 1, "10.0.0.1:6379").cluster == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert Engine(name="ray").cluster == "10.0.0.2:6379"
    assert commands.engine("ray", None, 1, "10.0.0.1:6379").cluster == "10.0.0.1:6379"
    assert Engine(name="ray", ray_address="local").cluster is None
    assert Engine(name="pool").cluster is None
    assert Engine(name="pool").processes == 2
    for wrong in (lambda: engine_of("pool", 2, 1, "auto"), lambda: commands.engine("pool", 2, 1, "auto")):
        with pytest.raises(InputError, match=r"ray"):
            wrong()
