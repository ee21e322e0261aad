"""Whoever signs in another's name, changes what was signed, or gets into the book without one who is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import TOKEN, fingerprint_of, signed_by
from fedgraft.common.identity.ssh_agent import agent_key, agent_keys
from fedgraft.common.identity.ssh_wire import string

WORDS = {"action": "approve", "study": "0" * 64}
PHRASE = "correct horse battery"


@pytest.fixture
def book(tmp_path: Path) -> PersonBook:
    made = PersonBook(tmp_path / "site")
    made.add_with_passphrase("Anna Berg", PHRASE, None)
    return made


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real ssh-agent with one ed25519 key and one that will not do; the public half of the first."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("this machine has no ssh-agent")
    place = tmp_path / "agent.sock"
    running = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        for kind in ("ecdsa", "ed25519"):
            key = tmp_path / kind
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "anna@berg", "-f", str(key)], check=True)
            subprocess.run(["ssh-add", "-q", str(key)], check=True, env=dict(os.environ))
        yield " ".join((tmp_path / "ed25519.pub").read_text().split()[:2])
    finally:
        running.terminate()
        running.wait()


class Token:
    """What a hardware token does, as OpenSSH's PROTOCOL.u2f says it: no token was at hand."""

    def __init__(self, flags: int = 1) -> None:
        self._key, self._flags = Ed25519PrivateKey.generate(), flags
        blob = string(TOKEN.encode()) + string(self._key.public_key().public_bytes_raw()) + string(b"ssh:")
        self.public = f"{TOKEN} {b64encode(blob).decode()}"

    def sign(self, data: bytes) -> bytes:
        end = bytes([self._flags]) + (7).to_bytes(4, "big")
        own = self._key.sign(hashlib.sha256(b"ssh:").digest() + end + hashlib.sha256(data).digest())
        return string(TOKEN.encode()) + string(own) + end


def test_only_the_passphrase_opens_a_key_and_only_its_owner_s_words_hold(book: PersonBook) -> None:
    signed = book.sign("Anna Berg", lambda: PHRASE, WORDS)
    assert book.holds(signed, WORDS)
    assert not book.holds(signed, WORDS | {"study": "1" * 64})
    assert not book.holds(signed.model_copy(update={"name": "Bo"}), WORDS)
    assert not book.holds(None, WORDS)
    with pytest.raises(InputError, match="cannot be opened"):
        book.sign("Anna Berg", lambda: PHRASE + "x", WORDS)
    with pytest.raises(InputError, match="no person called Bo"):
        book.sign("Bo", lambda: PHRASE, WORDS)
    assert PHRASE not in "".join(str(path.read_bytes()) for path in book.folder.rglob("*") if path.is_file())


def test_a_stranger_s_good_signature_is_none_of_this_book(book: PersonBook, tmp_path: Path) -> None:
    other = PersonBook(tmp_path / "elsewhere")
    other.add_with_passphrase("Anna Berg", PHRASE, None)
    signed = other.sign("Anna Berg", lambda: PHRASE, WORDS)
    assert signed.holds(WORDS)
    assert not book.holds(signed, WORDS)


def test_nobody_gets_into_the_book_whom_none_in_it_has_signed_for(book: PersonBook, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vouch for others"):
        book.add_with_passphrase("Bo Holm", PHRASE, None)
    book.add_with_passphrase("Bo Holm", PHRASE, ("Anna Berg", lambda: PHRASE))
    assert [one.name for one in book.all()] == ["Anna Berg", "Bo Holm"]
    path = book.folder / "persons.json"
    content = json.loads(path.read_text())
    stranger = PersonBook(tmp_path / "elsewhere").add_with_passphrase("Eve", PHRASE, None)
    for forged in (
        [*content, stranger.model_dump(mode="json")],
        [content[0], content[1] | {"key": stranger.key}],
        [content[0], content[1] | {"name": "Eve"}],
        content[1:] + content[:1],
    ):
        path.write_text(json.dumps(forged))
        with pytest.raises(InputError, match="nobody who was in it has signed"):
            book.all()


def test_a_key_in_ssh_agent_signs_and_stays_there(book: PersonBook, agent: str) -> None:
    assert [key.public for key in agent_keys()] == [agent], "an ECDSA key will not do"
    book.add_from_agent("Bo Holm", agent, ("Anna Berg", lambda: PHRASE))
    signed = book.sign("Bo Holm", lambda: pytest.fail("no passphrase is asked for"), WORDS)
    assert book.holds(signed, WORDS)
    assert not book.holds(signed, WORDS | {"more": 1})
    assert fingerprint_of(agent) in subprocess.run(["ssh-add", "-l"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["ssh-add", "-q", "-D"], check=True)
    with pytest.raises(InputError, match="does not have the key"):
        book.sign("Bo Holm", lambda: PHRASE, WORDS)


def test_without_an_agent_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "none"))
    with pytest.raises(InputError, match="ssh-agent does not answer"):
        agent_keys()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    with pytest.raises(InputError, match="No ssh-agent runs"):
        agent_key("ssh-ed25519 A")


def test_a_token_s_signature_holds_if_somebody_touched_it(book: PersonBook) -> None:
    signed = signed_by("Anna Berg", Token(), WORDS)
    assert signed.holds(WORDS)
    assert not signed.holds(WORDS | {"more": 1})
    assert not signed_by("Anna Berg", Token(flags=0), WORDS).holds(WORDS)


@pytest.mark.parametrize("broken", ["", "AAAA", b64encode(string(b"ssh-ed25519")).decode(), "?"])
def test_a_signature_that_is_none_does_not_hold(book: PersonBook, broken: str) -> None:
    signed: Any = book.sign("Anna Berg", lambda: PHRASE, WORDS)
    assert not book.holds(signed.model_copy(update={"signature": broken}), WORDS)
