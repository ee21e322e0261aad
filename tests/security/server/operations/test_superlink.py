"""What stands before Flower's own layers in the SuperLink: whole bodies, and nothing else changed."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from fedgraft.server.operations.superlink import WholeBody
from fedgraft.server.provisioning.home import ServerHome

HTTP = {"type": "http"}
GONE: Message = {"type": "http.disconnect"}


def heard(scope: Scope, messages: list[Message], largest: int = 100) -> list[Message]:
    """What the layer behind `WholeBody` receives, until nothing more comes."""
    taken: list[Message] = []

    async def inner(_: Scope, receive: Receive, __: Send) -> None:
        while messages or not taken or taken[-1] not in (GONE, {"type": "nothing"}):
            taken.append(await receive())

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "nothing"}

    async def send(_: Message) -> None:
        raise AssertionError

    asyncio.run(WholeBody(inner, largest)(scope, receive, send))
    return [message for message in taken if message["type"] != "nothing"]


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("parts", [[b"abc"], [b"a", b"", b"bc"], [b"abc", b""]])
def test_a_body_comes_in_one_piece_and_what_follows_it_after_it(parts):
    messages = [part(body, place < len(parts) - 1) for place, body in enumerate(parts)]
    assert heard(HTTP, [*messages, GONE]) == [part(b"abc", False), GONE]


def test_a_message_without_its_keys_is_an_empty_body():
    assert heard(HTTP, [{"type": "http.request"}, GONE]) == [part(b"", False), GONE]


def test_a_body_that_is_too_large_is_not_gathered_any_further():
    pieces = [part(b"x" * 60, True), part(b"y" * 60, True), part(b"z" * 60, False)]
    assert heard(HTTP, pieces) == [part(b"x" * 60 + b"y" * 60, True), part(b"z" * 60, False)]


def test_a_caller_that_leaves_amid_its_body_leaves():
    assert heard(HTTP, [part(b"half", True), GONE]) == [GONE]


def test_what_is_no_request_passes_untouched():
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert heard({"type": "lifespan"}, list(messages)) == messages


def test_it_stands_before_all_layers_of_flowers_own_application():
    program = (
        "import fedgraft.server.operations.superlink as ours, sys; app = ours._create();"
        "print(app.user_middleware[0].cls.__name__, len(app.user_middleware) > 5)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["WholeBody", "True"], done.stderr


def test_the_database_has_pages_fit_for_models_and_one_that_is_there_is_left_alone(tmp_path: Path):
    home = ServerHome(tmp_path)
    home.found_database()
    with closing(sqlite3.connect(home.database)) as database:
        assert database.execute("PRAGMA page_size").fetchone() == (65536,)
        database.execute("CREATE TABLE kept (value)")
    before = home.database.read_bytes()
    home.found_database()
    assert home.database.read_bytes() == before
