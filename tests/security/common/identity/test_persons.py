"""Whoever signs in another's name, changes what was signed, or gets into the book without one who is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.person_book import BOOK, PersonBook
from fedgraft.common.identity.persons import (
    TOKEN,
    Signed,
    fingerprint_of,
    new_person_key,
    open_person_key,
    signed_by,
    signed_bytes,
)
from fedgraft.common.identity.ssh_agent import AgentKey, agent_key, agent_keys
from fedgraft.common.identity.ssh_wire import string
from helpers.federation import until

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
        until(place.exists, 60, "ssh-agent")
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


def test_one_key_has_one_spelling(book: PersonBook) -> None:
    """With bytes behind it a key would have as many fingerprints as somebody likes."""
    for signer in (open_person_key(book.folder / "persons" / "Anna Berg.key", PHRASE), Token()):
        key = signer.public
        kind, _, blob = key.partition(" ")
        respelt = f"{kind} {b64encode(b64decode(blob) + b'more').decode()}"
        signature = b64encode(signer.sign(signed_bytes("Anna Berg", WORDS))).decode()
        assert Signed(name="Anna Berg", key=key, signature=signature).holds(WORDS)
        assert not Signed(name="Anna Berg", key=respelt, signature=signature).holds(WORDS)


def test_an_agent_that_answers_anything_is_told_of_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "agent.sock"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(place))
        listening.listen()

        def lie() -> None:
            with listening.accept()[0] as line:
                line.recv(1 << 16)
                line.sendall(string(bytes([14]) + b"\xff\xff\xff\xff"))

        thread = threading.Thread(target=lie)
        thread.start()
        with pytest.raises(InputError, match="answers what cannot be read"):
            AgentKey("ssh-ed25519 AAAA").sign(b"words")
        thread.join()


def test_a_signature_for_one_book_lets_nobody_into_another(agent: str, tmp_path: Path) -> None:
    """One person, with one key, is in the books of two folders."""
    books = [PersonBook(tmp_path / name) for name in ("server", "authority")]
    for book in books:
        book.add_from_agent("Anna Berg", agent, None)
        time.sleep(1.1)  # an entry tells the second
    books[0].add_with_passphrase("Bo Holm", PHRASE, ("Anna Berg", lambda: ""))
    first, bo = (json.loads((book.folder / BOOK).read_text())[-1] for book in reversed(books))
    (books[1].folder / BOOK).write_text(json.dumps([first, bo]))
    with pytest.raises(InputError, match="nobody who was in it has signed for Bo Holm"):
        books[1].all()


@pytest.mark.parametrize(
    "name",
    ["\u0410nna Berg", "Ann\u0430 Berg", "Anna\u200d Berg", "Anna  Berg", "Anna Berg ", "anna berg", "\uff21nna Berg"],
)
def test_nobody_gets_a_name_that_looks_like_another_s(book: PersonBook, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no name|called Anna Berg already"):
        book.add_with_passphrase(name, PHRASE, ("Anna Berg", lambda: PHRASE))
    # Nor by hand, with the signature of one who is in the book.
    path, at = book.folder / BOOK, "2026-01-01T00:00:00+00:00"
    key = new_person_key(tmp_path / "key", PHRASE).public
    words = {"action": "add person", "person": name, "key": key, "at": at, "book": book.first()}
    signed = book.sign("Anna Berg", lambda: PHRASE, words).model_dump(mode="json")
    entry = {"name": name, "key": key, "place": "file", "added": at, "vouched": signed}
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    with pytest.raises(InputError, match=r"is damaged|nobody who was in it"):
        book.all()


def test_two_spellings_of_a_letter_are_one_name(book: PersonBook) -> None:
    by_anna = ("Anna Berg", lambda: PHRASE)
    book.add_with_passphrase("Ren\u00e9", PHRASE, by_anna)
    with pytest.raises(InputError, match="is no name"):
        book.add_with_passphrase("Rene\u0301", PHRASE, by_anna)
    for name in ("\u0410\u043d\u043d\u0430", "\u5f20\u4e09", "O'Brien-Smith 2"):
        book.add_with_passphrase(name, PHRASE, by_anna)


def test_of_two_who_add_one_name_one_is_in_with_their_own_key(book: PersonBook) -> None:
    asked, typed = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        assert typed.wait(60)
        return PHRASE

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(book.add_with_passphrase, "Bo Holm", "the passphrase of one", ("Anna Berg", slow))
        assert asked.wait(60)
        second = pool.submit(book.add_with_passphrase, "Bo Holm", "that of another", ("Anna Berg", lambda: PHRASE))
        wait([second], timeout=2)
        typed.set()
        first.result(60)
        with pytest.raises(InputError):
            second.result(60)
    assert book.holds(book.sign("Bo Holm", lambda: "the passphrase of one", WORDS), WORDS)


def test_a_date_says_no_more_than_when(book: PersonBook, tmp_path: Path) -> None:
    """Who is in the book signs for one whose date goes on with a line about somebody else."""
    key, at = new_person_key(tmp_path / "key", PHRASE).public, "2026-01-01T00:00:00+00:00"
    at = f"{at}, the first\nAnna Berg: SHA256:AAAA (file), {at}"
    words = {"action": "add person", "person": "Bo Holm", "key": key, "at": at, "book": book.first()}
    signed = book.sign("Anna Berg", lambda: PHRASE, words).model_dump(mode="json")
    entry = {"name": "Bo Holm", "key": key, "place": "file", "added": at, "vouched": signed}
    path = book.folder / BOOK
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    with pytest.raises(InputError, match="is damaged"):
        book.all()
