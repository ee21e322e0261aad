"""What stands before Flower's own layers in the SuperLink: whole bodies, and nothing else changed."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.routers.control.middlewares import ControlAuthenticationMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedgraft.server.operations import superlink
from fedgraft.server.operations.superlink import APIS, OnlyUnder, WholeBody, each_under_its_api
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


def test_no_layer_of_one_api_is_left_out_there_and_none_stands_before_another():
    layers = superlink._flowers_layers()
    ours = each_under_its_api(layers)
    assert [layer.kwargs["layer"].cls if layer.cls is OnlyUnder else layer.cls for layer in ours] == [
        layer.cls for layer in layers
    ]
    # Flower's own answer to whoever it does not know is that of these two.
    assert APIS[NodeAuthMiddleware] == "/v1/fleet/"
    assert APIS[ControlAuthenticationMiddleware] == "/v1/control/"
    routes = {route.path for route in superlink._flowers().routes if hasattr(route, "path")}
    assert {path.split("/")[2] for path in routes if path.startswith("/v1/")} <= {"control", "fleet", "runtime"}


@pytest.mark.parametrize(
    ("path", "passed"),
    [
        ("/v1/fleet/push-pieces", ["fleet"]),
        ("/v1/control/start-run", ["control"]),
        ("/v1/runtime/get-nodes", []),
        ("/v1/fleet", []),
        ("/x/v1/fleet/push-pieces", []),
    ],
)
def test_a_request_passes_the_layers_of_its_own_api(path: str, passed: list[str]):
    seen: list[str] = []

    class Layer:
        def __init__(self, app: ASGIApp, name: str) -> None:
            self._app, self._name = app, name

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(self._name)
            await self._app(scope, receive, send)

    async def end(*_: object) -> None:
        seen.append("end")

    app: ASGIApp = end
    for name in ("control", "fleet"):
        app = OnlyUnder(app, Middleware(Layer, name=name), f"/v1/{name}/")
    asyncio.run(app({"type": "http", "path": path}, None, None))  # type: ignore[arg-type]  # nobody sends or receives
    assert seen == [*passed, "end"]
    seen.clear()
    asyncio.run(app({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["fleet", "control", "end"]


@pytest.mark.parametrize("name", ["pull-messages", "push-object", "activate-node"])
def test_whoever_has_signed_nothing_is_turned_away_by_flower_too(monkeypatch: pytest.MonkeyPatch, name: str):
    """As it is served, to a caller on the server's own machine, who need not come through the gate."""
    monkeypatch.setattr(superlink.superlink, "_get_middleware", lambda: each_under_its_api(superlink._flowers_layers()))
    transport = httpx.ASGITransport(superlink._flowers())

    async def ask() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client:
            said = {"content-type": PROTOBUF_MEDIA_TYPE}
            return (await client.post(f"/v1/fleet/{name}", content=b"", headers=said)).status_code

    assert asyncio.run(ask()) == 401


def test_the_database_has_pages_fit_for_models_and_one_that_is_there_is_left_alone(tmp_path: Path):
    home = ServerHome(tmp_path)
    home.found_database()
    with closing(sqlite3.connect(home.database)) as database:
        assert database.execute("PRAGMA page_size").fetchone() == (65536,)
        database.execute("CREATE TABLE kept (value)")
    before = home.database.read_bytes()
    home.found_database()
    assert home.database.read_bytes() == before
