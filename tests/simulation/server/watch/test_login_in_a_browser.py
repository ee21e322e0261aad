"""A person at the live page with a login, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedgraft.server.watch.login.login_book import LoginBook
from helpers.browser import CHROMIUM, Browser
from helpers.live import LiveRun
from helpers.logged_in import NAME, PASSWORD, serving
from helpers.sign_on_service import CLIENT, PERSON, SECRET, sign_on_service

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
PLAN = {"name": "fedavg", "rounds": 3, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1") as browser:
        yield browser


def test_a_person_logs_in_watches_and_logs_out(browser, tmp_path, make_study):
    live = LiveRun(tmp_path / "run", tmp_path / "source", make_study(method=PLAN))
    live.begin()
    home = tmp_path / "home"
    home.mkdir()
    LoginBook(home).set_password(NAME, PASSWORD)

    def type_in(password: str) -> None:
        for place, text in (("name", NAME), ("password", password)):
            browser.evaluate(f"document.getElementById('{place}').focus()")
            browser.call("Input.insertText", text=text)
        browser.evaluate("document.querySelector('button').click()")

    with serving(home, live.folder) as page:
        browser.call("Page.navigate", url=page.url)
        browser.until("location.pathname === '/login' && document.readyState === 'complete'")
        browser.screenshot(tmp_path / "login.png")
        type_in("not this one, I fear")
        browser.until("document.getElementById('alarm').innerText.includes('wrong')")
        type_in(PASSWORD)
        browser.until("(document.getElementById('person') || {}).innerText === 'lead'")
        browser.until("document.getElementById('state').innerText === 'running'")
        assert browser.evaluate("document.cookie") == ""
        browser.evaluate("document.querySelector('#logout button').click()")
        browser.until("location.pathname === '/login' && document.readyState === 'complete'")
        browser.call("Page.navigate", url=page.url)
        browser.until("location.pathname === '/login' && document.readyState === 'complete'")
        # Who watches while the login is taken away sees no more of it.
        type_in(PASSWORD)
        browser.until("(document.getElementById('person') || {}).innerText === 'lead'")
        LoginBook(home).remove(NAME)
        browser.until("location.pathname === '/login'")


def test_a_person_signs_on_at_another_place_and_comes_back(browser, tmp_path, make_study):
    live = LiveRun(tmp_path / "run", tmp_path / "source", make_study(method=PLAN))
    live.begin()
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").touch(0o600)
    (home / "secret").write_text(SECRET)
    with sign_on_service() as service:
        service.asks = True
        about = {"issuer": service.issuer, "client_id": CLIENT, "client_secret_file": "secret", "persons": [PERSON]}
        (home / "page.yaml").write_text(yaml.safe_dump({"sign_on": about}))
        with serving(home, live.folder) as page:
            # For a browser localhost and 127.0.0.1 are two sites: its rules for cookies are those of a real sign-on.
            browser.call("Page.navigate", url=page.url.replace("127.0.0.1", "localhost"))
            browser.until("location.pathname === '/login' && document.readyState === 'complete'")
            browser.evaluate("document.querySelector('a').click()")
            browser.until("document.title === 'service' && document.readyState === 'complete'")
            browser.evaluate("document.querySelector('a').click()")
            browser.until("location.pathname === '/' && location.hostname === 'localhost'")
            browser.until(f"(document.getElementById('person') || {{}}).innerText === '{PERSON}'")
            browser.until("document.getElementById('state').innerText === 'running'")


def test_another_page_begins_no_sign_on(browser, tmp_path):
    """Who is logged in at the service would be let in by it without a click."""
    (tmp_path / "run").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").touch(0o600)
    (home / "secret").write_text(SECRET)
    with sign_on_service() as service:
        about = {"issuer": service.issuer, "client_id": CLIENT, "client_secret_file": "secret", "persons": [PERSON]}
        (home / "page.yaml").write_text(yaml.safe_dump({"sign_on": about}))
        with serving(home, tmp_path / "run") as page:
            own = page.url.replace("127.0.0.1", "localhost")
            browser.call("Page.navigate", url=f"{service.issuer}/elsewhere")
            browser.until("location.pathname === '/elsewhere' && document.readyState === 'complete'")
            browser.evaluate(f"location.href = '{own}login/sign-on'")
            browser.until("location.hostname === 'localhost' && document.readyState === 'complete'")
            browser.call("Page.navigate", url=own)
            browser.until("location.pathname === '/login' && document.readyState === 'complete'")
            assert service.codes == {}
            browser.evaluate("document.querySelector('a').click()")
            browser.until(f"(document.getElementById('person') || {{}}).innerText === '{PERSON}'")
