"""What a site keeps for itself is what its last exchange left, whoever carried it out and however often."""

from pathlib import Path

import numpy as np

from fedgraft.client.privacy.ledger.reply_store import Replies
from fedgraft.client.runtime.visit.local_state import LocalState


def entries(value: float) -> dict[str, np.ndarray]:
    return {"backbone.bn.weight": np.full(3, value, np.float32)}


def value(found: dict[str, np.ndarray]) -> float | None:
    return float(found["backbone.bn.weight"][0]) if found else None


def test_at_first_there_is_nothing(tmp_path):
    assert LocalState(tmp_path / "local_state").before(1) == {}


def test_an_exchange_sees_what_the_one_before_left(tmp_path):
    kept = LocalState(tmp_path / "local_state")
    for exchange in range(1, 8):
        kept.save(exchange, entries(exchange))
        assert value(kept.before(exchange + 1)) == exchange
    assert value(LocalState(tmp_path / "local_state").before(8)) == 7
    assert len(list((tmp_path / "local_state").iterdir())) == 3


def test_a_repeated_exchange_starts_where_it_started_before(tmp_path):
    kept = LocalState(tmp_path / "local_state")
    kept.save(1, entries(1))
    kept.save(2, entries(2))
    assert value(kept.before(2)) == 1
    assert value(LocalState(tmp_path / "local_state").before(3)) == 1  # what the first course left at 2 is gone


def test_another_process_may_have_answered_in_between(tmp_path):
    one, other = LocalState(tmp_path / "local_state"), LocalState(tmp_path / "local_state")
    one.save(1, entries(1))
    assert value(one.before(2)) == 1
    assert value(other.before(2)) == 1
    other.save(2, entries(2))
    assert value(one.before(3)) == 2


def test_it_is_the_owners_alone(tmp_path):
    LocalState(tmp_path / "local_state").save(1, entries(1))
    assert (tmp_path / "local_state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "local_state").iterdir()} == {0o600}


def test_what_another_process_has_deleted_already_is_deleted(tmp_path, monkeypatch):
    kept, replies = LocalState(tmp_path / "local_state"), Replies(tmp_path / "replies")
    unlink = Path.unlink

    def late(path, missing_ok=False):
        unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", late)
    for exchange in range(1, 6):
        kept.save(exchange, entries(exchange))
        replies.keep(exchange, entries(exchange), {})
    assert value(kept.before(4)) == 3
    assert [path.stem for path in (tmp_path / "local_state").iterdir()] == ["000003"]
    assert sorted(path.stem for path in (tmp_path / "replies").iterdir()) == ["000003", "000004", "000005"]
