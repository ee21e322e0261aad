"""What goes wrong at a hospital stays there: no text of an exception reaches a message, or the coordinator's files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from flwr.app import Context, Message
from flwr.common.serde import message_to_proto

import fedgraft.client.runtime.app
import fedgraft.client.runtime.sessions
import fedgraft.client.runtime.site
import fedgraft.client.runtime.visit.evaluation
import fedgraft.client.training.microbatching
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.common.base.errors import DataError, QuorumError, RunError
from fedgraft.common.protocol import wire
from fedgraft.simulations.engines import node
from helpers.simulated import simulate

SECRET = "DOE^JANE"
PARTS = ("DOE", "JANE", "patients/")


class Panic(BaseException):
    """What extensions in Rust raise, among them safetensors, cryptography and decoders: it is no Exception."""


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that Flower sends of the replies: their content, or the text of what the ClientApp raised."""
    sent: list[str] = []

    def answer(message: Message, context: Context) -> Message:
        try:
            reply = fedgraft.client.runtime.app.app(message, context)
        except BaseException as error:
            sent.append(f"{type(error)}:<'{error}'>")
            raise
        sent.append(message_to_proto(reply).SerializeToString().decode("latin-1"))
        return reply

    monkeypatch.setattr(node, "client_app", answer)
    return sent


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What the coordinator's terminal and logs show, in whose process the hospitals are."""
    with caplog.at_level(logging.DEBUG):
        yield lambda: [*capfd.readouterr(), caplog.text]


BROKEN: dict[str, tuple[object, str, BaseException]] = {
    "reading, a panic": (fedgraft.client.runtime.sessions, "load_cohort", Panic(SECRET)),
    "training, a panic": (fedgraft.client.training.microbatching, "train", Panic(SECRET)),
    "the instruction, a panic": (wire, "unpack_instruction", Panic(SECRET)),
    "the reply, a panic": (wire, "pack_reply", Panic(SECRET)),
    "reading": (fedgraft.client.runtime.sessions, "load_cohort", RuntimeError(f"/patients/{SECRET}/1.dcm")),
    "reading, known": (
        fedgraft.client.runtime.sessions,
        "load_cohort",
        DataError(f"/patients/{SECRET}/1.dcm: no such file"),
    ),
    "greeting": (fedgraft.client.runtime.site.Site, "greet", KeyError(SECRET)),
    "policy": (PrivacyGuard, "admit", OSError(5, "Input/output error", f"/patients/{SECRET}")),
    "training": (fedgraft.client.training.microbatching, "train", ValueError(f"bad case {SECRET}")),
    "training, memory": (fedgraft.client.training.microbatching, "train", MemoryError(SECRET)),
    "evaluating": (
        fedgraft.client.runtime.visit.evaluation,
        "predictions",
        FileNotFoundError(2, "No such file", f"/patients/{SECRET}/1.dcm"),
    ),
    "a visit": (fedgraft.client.runtime.site.Site, "visit", RuntimeError(SECRET)),
    "what a visit is for": (fedgraft.client.runtime.site.Site, "grounds", RuntimeError(SECRET)),
    "the egress log": (EgressLog, "record", OSError(28, "No space left", f"/patients/{SECRET}")),
    "the instruction": (wire, "unpack_instruction", RuntimeError(SECRET)),
    "the reply": (wire, "pack_reply", RuntimeError(f"/patients/{SECRET}")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_no_exception_says_a_word_to_others(hospitals, make_study, tmp_path, heard, printed, what: str) -> None:
    owner, name, error = BROKEN[what]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, failing(error))
        # One machine plays all hospitals: where its memory ends, it is the run that ends, and no hospital is ill.
        with pytest.raises(RunError if isinstance(error, MemoryError) else QuorumError) as ended:
            simulate(make_study(), hospitals, run)
    assert len(heard) >= 4
    ours = [path for path in run.rglob("*") if path.is_file() and run / "sites" not in path.parents]
    assert ours
    words = [*heard, *printed(), str(ended.value), *(path.read_bytes().decode("latin-1") for path in ours)]
    assert not [part for part in PARTS for text in words if part in text]
