"""The live page in a real browser: it moves while the run does, shows what sites say as text, and asks nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.web import Page
from helpers.browser import CHROMIUM, Browser
from helpers.live import LiveRun

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
PLAN = {"name": "fedavg", "rounds": 3, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}
HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
ROWS = "document.querySelectorAll('#rounds tr').length"


@pytest.fixture
def live(tmp_path: Path, make_study) -> LiveRun:
    return LiveRun(tmp_path / "run", tmp_path / "source", make_study(method=PLAN))


@pytest.fixture
def page(live: LiveRun, tmp_path: Path) -> Iterator[Page]:
    with Page(Board(ServerHome(tmp_path / "none"), live.folder), "127.0.0.1", 0) as page:
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        yield page
        page.shutdown()
        thread.join()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    # No name of the outer world is ever looked up.
    with Browser(tmp_path, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1") as browser:
        yield browser


def test_the_page_moves_while_the_run_does(live, page, browser, tmp_path):
    browser.open(page.url)
    browser.until("document.getElementById('state').innerText === 'not started'")
    live.begin()
    browser.until("document.getElementById('state').innerText === 'running'")
    assert browser.text("h1") == "test"
    live.start(1)
    live.event("reply", exchange=1, site="north")
    browser.until("document.getElementById('sites').innerText.includes('answered')")
    for exchange in (1, 2, 3):
        live.done(exchange, spent={"east": {"epsilon": 0.5 * exchange, "delta": 1e-4, "unit": "patient"}})
        live.start(exchange + 1)
        browser.until(f"{ROWS} === {exchange}")
        assert browser.text("#done") == f"{exchange} of 4"
    assert browser.text("#privacy") == "ε ≤ 1.50 per patient"
    assert "deadline ×1" in browser.text("#sites")
    assert browser.evaluate("document.querySelectorAll('#charts circle').length") == 3
    assert browser.evaluate("document.querySelector('progress').value") == 3
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    live.done(4)
    live.finish()
    browser.until("document.getElementById('state').innerText === 'incomplete'")
    assert "south, deadline" in browser.text("#headline")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith(page.url) for url in asked)
    assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


def test_what_sites_say_is_text(live, page, browser):
    live.begin()
    live.event("greeted", sites=[HOSTILE], absent={HOSTILE: HOSTILE})
    live.done(1, stage=HOSTILE, missing={HOSTILE: HOSTILE}, sites_asked=[HOSTILE])
    browser.open(page.url)
    browser.until(f"{ROWS} === 1")
    assert HOSTILE in browser.text("#sites")
    assert HOSTILE in browser.text("#rounds")
    assert browser.evaluate("document.querySelectorAll('img, tbody script').length") == 0
    assert "taken over" not in browser.evaluate("document.title")


def test_the_page_says_when_nobody_answers_any_more(live, page, browser):
    live.begin()
    browser.open(page.url)
    browser.until("document.getElementById('state').innerText === 'running'")
    assert browser.evaluate("document.getElementById('alarm').hidden")
    page.shutdown()
    page.server_close()
    browser.until("!document.getElementById('alarm').hidden")
    assert "does not answer" in browser.text("#alarm")
