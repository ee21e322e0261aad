"""A run on a web page: read-only, and the same in figures for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from fedgraft.common.base.local_pages import LocalPages
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.exposition import exposed
from fedgraft.server.watch.login.login_guard import login_guard

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


class Page(LocalPages):
    """Serves a board on `address`: the page at `/`, all that it shows as JSON at `/state`, figures at `/metrics`.

    The last only where the package `prometheus_client` is installed. If persons have logins in the board's folder, who
    reads must log in; where other machines reach the address, there must be such persons.
    """

    def __init__(self, board: Board, address: str, port: int) -> None:
        def state() -> tuple[str, bytes]:
            return "application/json", json.dumps(board.view().plain(), allow_nan=False).encode()

        pages = {path: _file(*about) for path, about in _FILES.items()} | {"/state": state}
        if find_spec("prometheus_client") is not None:
            pages["/metrics"] = lambda: exposed(board.view())
        super().__init__(pages, address, port, "--web", login_guard(board.home_folder))


def _file(name: str, kind: str) -> Callable[[], tuple[str, bytes]]:
    return lambda: (kind, (Path(__file__).parent / name).read_bytes())
