"""Who may pass the gate: signatures count once, strangers use up nobody's share, and senders are slowed down alone."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.common.identity.keys import NodeKey, new_node_key, public_pem
from fedgraft.server.operations.request_auth import AuthVerdict, Bucket, RequestAuth


def headers(key: NodeKey, age_s: float = 0.0, signer: NodeKey | None = None) -> dict[bytes, bytes]:
    stamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    signature = (signer or key).sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        b"flwr-public-key": base64.b64encode(public_pem(key)),
        b"flwr-timestamp": stamp.encode(),
        b"flwr-signature": base64.b64encode(signature),
    }


@pytest.fixture
def key() -> NodeKey:
    return new_node_key()


@pytest.fixture
def guard(key: NodeKey) -> RequestAuth:
    return RequestAuth(lambda: {public_pem(key).decode(): "north"})


def test_a_known_key_with_a_fresh_signature_passes(guard, key):
    assert guard.judge(headers(key), "1.2.3.4") is AuthVerdict.PASS
    assert guard.judge(headers(key), "1.2.3.4") is AuthVerdict.PASS


def test_a_signature_counts_once(guard, key):
    once = headers(key)
    assert guard.judge(once, "1.2.3.4") is AuthVerdict.PASS
    assert guard.judge(once, "1.2.3.4") is AuthVerdict.UNKNOWN
    # Another signature over the same moment is no new one: ECDSA has two for every message.
    other = key.sign(once[b"flwr-timestamp"], ec.ECDSA(hashes.SHA256()))
    assert guard.judge(once | {b"flwr-signature": base64.b64encode(other)}, "1.2.3.4") is AuthVerdict.UNKNOWN


@pytest.mark.parametrize("age_s", [-60, -6, 306, 3600])
def test_a_moment_outside_the_window_is_refused(guard, key, age_s):
    assert guard.judge(headers(key, age_s), "1.2.3.4") is AuthVerdict.UNKNOWN


@pytest.mark.parametrize("age_s", [-4, 0, 290])
def test_a_moment_inside_the_window_passes(guard, key, age_s):
    assert guard.judge(headers(key, age_s), "1.2.3.4") is AuthVerdict.PASS


def test_strangers_and_forgers_are_refused(guard, key):
    stranger = new_node_key()
    assert guard.judge(headers(stranger), "1.2.3.4") is AuthVerdict.UNKNOWN
    assert guard.judge(headers(key, signer=stranger), "1.2.3.4") is AuthVerdict.UNKNOWN
    assert guard.judge({}, "1.2.3.4") is AuthVerdict.UNKNOWN


@pytest.mark.parametrize("name", [b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"])
@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"A" * 5000, b"2026-01-01", b"=", b"2026-13-45T99:99:99"])
def test_garbage_in_a_header_is_refused(guard, key, name, value):
    assert guard.judge(headers(key) | {name: value}, "1.2.3.4") is AuthVerdict.UNKNOWN


def test_a_revoked_key_is_refused_at_once(key):
    admitted = {public_pem(key).decode(): "north"}
    guard = RequestAuth(lambda: admitted)
    assert guard.judge(headers(key), "1.2.3.4") is AuthVerdict.PASS
    admitted.clear()
    assert guard.judge(headers(key), "1.2.3.4") is AuthVerdict.UNKNOWN


def test_strangers_at_a_sites_address_do_not_use_up_its_share(key):
    guard = RequestAuth(lambda: {public_pem(key).decode(): "north"}, strangers=Bucket(burst=3, per_s=0.001))
    verdicts = [guard.judge({}, "1.2.3.4") for _ in range(5)]
    assert verdicts == [AuthVerdict.UNKNOWN] * 3 + [AuthVerdict.TOO_OFTEN] * 2
    assert guard.judge({}, "1.2.3.5") is AuthVerdict.UNKNOWN
    assert guard.judge(headers(key), "1.2.3.4") is AuthVerdict.PASS


def test_a_site_that_asks_too_often_is_slowed_down(key):
    guard = RequestAuth(lambda: {public_pem(key).decode(): "north"}, known=Bucket(burst=2, per_s=0.001))
    assert [guard.judge(headers(key), "1.2.3.4") for _ in range(3)] == [
        AuthVerdict.PASS,
        AuthVerdict.PASS,
        AuthVerdict.TOO_OFTEN,
    ]


def test_a_bucket_fills_again():
    now = [0.0]
    bucket = Bucket(burst=2, per_s=1, clock=lambda: now[0])
    assert [bucket.take("a") for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert [bucket.take("a") for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [bucket.take("a") for _ in range(3)] == [True, True, False]
