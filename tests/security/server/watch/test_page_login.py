"""The live page asks for a login: whoever has none, a wrong one, or an old one, reads nothing, however they ask."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.identity.keys import load_certificate, load_node_key
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.pki import new_authority, server_certificate
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.login.login_book import LOGINS, LoginBook
from fedgraft.server.watch.login.page_settings import PageSettings, SignOnSettings
from fedgraft.server.watch.web import Page
from helpers.federation import Started
from helpers.live import LiveRun
from helpers.logged_in import NAME, PASSWORD, Visitor, serving
from helpers.offline import offline

PLAN = {"name": "fedavg", "rounds": 3, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}
ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def logins(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("logins")
    LoginBook(folder).set_password(NAME, PASSWORD)
    return (folder / LOGINS).read_bytes()


@pytest.fixture
def run(tmp_path: Path, make_study) -> Path:
    live = LiveRun(tmp_path / "run", tmp_path / "source", make_study(method=PLAN))
    live.begin()
    return live.folder


@pytest.fixture
def home(tmp_path: Path, logins: bytes) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / LOGINS).write_bytes(logins)
    return tmp_path / "home"


@pytest.fixture
def page(home: Path, run: Path) -> Iterator[Page]:
    with serving(home, run) as page:
        yield page


@pytest.fixture
def visitor(page: Page) -> Visitor:
    return Visitor(page)


@pytest.fixture
def certified(home: Path) -> ssl.SSLContext:
    """`page.yaml` with a certificate; what a browser trusts that knows its authority."""
    authority = new_authority("test")
    (home / "ca.crt").write_bytes(authority.certificate)
    signs = load_certificate(home / "ca.crt"), load_node_key(authority.key, "ca.key")
    made = server_certificate(*signs, ["localhost", "127.0.0.1"], 1)
    (home / "page.crt").write_bytes(made.certificate)
    (home / "page.key").touch(0o600)
    (home / "page.key").write_bytes(made.key)
    (home / "page.yaml").write_text("tls: {certificate: page.crt, key: page.key}\n")
    return ssl.create_default_context(cafile=home / "ca.crt")


ASKED = (
    *("GET / HTTP/1.1", "GET /state HTTP/1.1", "HEAD /state HTTP/1.1", "GET /state HTTP/1.0", "GET /state"),
    *("GET //state HTTP/1.1", "GET ///state HTTP/1.1", "GET /./state HTTP/1.1", "GET /%73tate HTTP/1.1"),
    *("GET /login/../state HTTP/1.1", "GET /page.css/../state HTTP/1.1", "GET /state?/login HTTP/1.1"),
    *("GET http://127.0.0.1:{port}/state HTTP/1.1", "GET /state#/login HTTP/1.1", "GET /STATE HTTP/1.1"),
    *("GET /metrics HTTP/1.1", "GET /page.js HTTP/1.1", "GET /page.html HTTP/1.1", "GET /none HTTP/1.1"),
    *("POST /state HTTP/1.1\r\nContent-Length: 0", "PUT /state HTTP/1.1", "get /state HTTP/1.1"),
)


@pytest.mark.parametrize("line", ASKED)
def test_who_has_not_logged_in_reads_nothing_however_they_ask(visitor, line):
    line = line.format(port=visitor.port)
    answer = visitor.say(f"{line}\r\nHost: 127.0.0.1:{visitor.port}\r\nCookie: fedgraft=; fedgraft=x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    # The oldest HTTP, whose request is one line, has answers without a head.
    assert answer == b"" or head.split()[1] in (b"303", b"401", b"501")
    assert body == b""


def test_what_is_there_is_refused_like_what_is_not(visitor):
    def answered(path: str) -> list[tuple[str, str]]:
        return [one for one in visitor.ask("GET", path)[0].getheaders() if one[0] != "Date"]

    assert answered("/state") == answered("/metrics") == answered("/none")


def test_a_person_logs_in_reads_and_logs_out(visitor):
    assert visitor.ask("GET", "/")[0].getheader("Location") == "/login"
    form, body = visitor.ask("GET", "/login")
    assert (form.status, b'type="password"' in body) == (200, True)
    answer, _ = visitor.log_in()
    assert (answer.status, answer.getheader("Location")) == (303, "/")
    cookie, *facts = [part.strip() for part in answer.getheader("Set-Cookie").split(";")]
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=28800"} <= set(facts)
    for path in ("/", "/state", "/page.js", "/metrics"):
        seen, body = visitor.ask("GET", path, Cookie=f"theme=dark; {cookie}")
        assert (seen.status, bool(body), seen.getheader("Fedgraft-Person")) == (200, True, NAME)
    assert visitor.ask("GET", "/none", Cookie=cookie)[0].status == 404
    origin = f"http://127.0.0.1:{visitor.port}"
    out, _ = visitor.ask("POST", "/logout", b"", Cookie=cookie, Origin=origin)
    assert (out.status, out.getheader("Location"), "Max-Age=0" in out.getheader("Set-Cookie")) == (303, "/login", True)
    assert visitor.ask("GET", "/state", Cookie=cookie)[0].status == 401


def held_up_after(ask: Callable[[], int]) -> int:
    """How often somebody may ask before they are held up. How many more than at once: by how slow this machine is."""
    return next(count for count in range(200) if ask() == 429)


def test_guessing_is_slow_and_holds_up_nobody_else(visitor, page):
    tried = held_up_after(lambda: visitor.log_in(password="not this one, I fear")[0].status)
    assert tried >= 5
    assert visitor.log_in()[0].status == 429
    assert Visitor(page, "127.0.0.2").log_in()[0].status == 303


@pytest.mark.slow
def test_guessing_from_many_addresses_is_slow_too(page):
    addresses = (f"127.0.{n // 250}.{n % 250 + 1}" for n in range(250, 10_000))
    assert held_up_after(lambda: Visitor(page, next(addresses)).log_in(name="x", password="")[0].status) >= 30


def test_nobody_learns_which_names_there_are(visitor, home):
    def answered(name: str) -> tuple[int, list[tuple[str, str]], bytes]:
        answer, body = visitor.log_in(name, "not this one, I fear")
        return answer.status, [one for one in answer.getheaders() if one[0] != "Date"], body

    assert answered(NAME) == answered("nobody") == answered("")
    spent = {}
    for name in (NAME, "somebody"):
        begun = time.thread_time()
        assert LoginBook(home).login(name, "not this one, I fear") is None
        spent[name] = time.thread_time() - begun
    assert 0.2 < spent["somebody"] / spent[NAME] < 5


def test_a_session_is_of_one_process_and_of_a_login_that_holds(visitor, home, run):
    LoginBook(home).set_password("other", PASSWORD)
    cookie, other = visitor.cookie(), visitor.log_in("other")[0].getheader("Set-Cookie").partition(";")[0]
    with serving(home, run) as second:
        assert Visitor(second).ask("GET", "/state", Cookie=cookie)[0].status == 401
    assert visitor.ask("GET", "/state", Cookie=cookie)[0].status == 200
    assert visitor.ask("GET", "/state", Cookie=cookie[:-1])[0].status == 401
    LoginBook(home).set_password(NAME, PASSWORD)
    assert visitor.ask("GET", "/state", Cookie=cookie)[0].status == 401
    assert visitor.ask("GET", "/state", Cookie=other)[0].status == 200
    LoginBook(home).remove("other")
    assert visitor.ask("GET", "/state", Cookie=other)[0].status == 401


def test_a_damaged_file_lets_nobody_in_and_is_told_of(visitor, home, caplog):
    cookie = visitor.cookie()
    (home / LOGINS).write_text("{")
    for ask in (lambda: visitor.ask("GET", "/state", Cookie=cookie), visitor.log_in):
        caplog.clear()
        with pytest.raises(OSError):
            ask()
        assert f"{LOGINS}: is not valid JSON" in caplog.text


def test_a_session_ends(home, run):
    (home / "page.yaml").write_text("session_hours: 0.0001\n")
    with serving(home, run) as page:
        cookie = Visitor(page).cookie()
        time.sleep(0.4)
        assert Visitor(page).ask("GET", "/state", Cookie=cookie)[0].status == 401


def test_a_session_that_is_over_costs_no_more_than_none(visitor, home, monkeypatch):
    """Somebody who was shut out sends what they had, as often as it fits into a request."""
    cookie = visitor.cookie()
    LoginBook(home).remove(NAME)
    read: list[str] = []
    named = LoginBook.named
    monkeypatch.setattr(LoginBook, "named", lambda book, name: read.append(name) or named(book, name))
    assert visitor.ask("GET", "/state", Cookie="; ".join([cookie] * 1000))[0].status == 401
    assert len(read) == 1


@pytest.mark.parametrize("origin", ["null", "http://evil.example.org", "http://127.0.0.1:1", "https://{own}", "{own}"])
def test_another_page_logs_nobody_in_or_out(visitor, origin):
    origin = origin.format(own=f"127.0.0.1:{visitor.port}")
    cookie = visitor.cookie()
    assert visitor.log_in(Origin=origin)[0].status == 403
    assert visitor.ask("POST", "/logout", b"", Cookie=cookie, Origin=origin)[0].status == 403
    assert visitor.ask("POST", "/logout", b"", Cookie=cookie)[0].status == 403
    assert visitor.ask("GET", "/logout", Cookie=cookie)[0].status == 404
    assert visitor.ask("GET", "/state", Cookie=cookie)[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Length: 4097", 413),
        ("Content-Length: 99999999999999999999999", 413),
        ("Content-Length: -1", 411),
        ("Content-Length: +5", 411),
        ("Content-Length: ²", 411),
        ("Content-Length: 0\r\nContent-Length: 0", 411),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked", 411),
        ("Transfer-Encoding: chunked", 411),
        ("", 411),
        ("Content-Length: 0", 415),
        (f"Content-Type: {FORM}\r\nContent-Length: 0", 401),
    ],
)
def test_a_form_of_any_other_size_or_kind_is_refused(visitor, headers, status):
    own = f"127.0.0.1:{visitor.port}"
    lines = ("POST /login HTTP/1.1", f"Host: {own}", f"Origin: http://{own}", *headers.split("\r\n"))
    answered = visitor.say("\r\n".join(line for line in lines if line) + "\r\n\r\n")
    assert answered.split()[1] == str(status).encode()


@pytest.mark.parametrize("body", [b"\xff\xfe", b"a=1&" * 9, b"name=%00&password=%ff", b"name&password", b"&&&"])
def test_a_form_of_nonsense_logs_nobody_in(visitor, body):
    origin = f"http://127.0.0.1:{visitor.port}"
    answer, _ = visitor.ask("POST", "/login", body, Origin=origin, Content_Type=FORM)
    assert answer.status in (400, 401)


def test_a_program_with_a_token_reads_figures_alone(visitor, home):
    token = LoginBook(home).add_program("prometheus")

    def status(path: str, authorization: str) -> int:
        return visitor.ask("GET", path, Authorization=authorization)[0].status

    assert token not in (home / LOGINS).read_text()
    assert status("/metrics", f"Bearer {token}") == 200
    for path in ("/state", "/", "//state"):
        assert status(path, f"Bearer {token}") != 200
    for word in ("Bearer", "Bearer ", f"Bearer {token[:-1]}", f"Basic {token}", token, "Bearer é"):
        assert status("/metrics", word) == 401
    LoginBook(home).remove("prometheus")
    assert status("/metrics", f"Bearer {token}") == 401


@pytest.mark.slow
def test_who_came_in_and_who_did_not_is_written_down_and_no_password(home, run):
    words = [sys.executable, "-m", "fedgraft", "server", "watch", str(run), "--home", str(home), "--web", "0"]
    with Started(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as watching:
        try:
            assert watching.stdout is not None
            port = int(re.findall(rb":(\d+)/", watching.stdout.readline())[0])
            visitor = Visitor(SimpleNamespace(server_address=("127.0.0.1", port)))
            assert visitor.log_in(PASSWORD, "typed in the wrong field")[0].status == 401
            assert visitor.log_in()[0].status == 303
        finally:
            watching.send_signal(signal.SIGINT)
    text = (home / "logs" / "page.log").read_text()
    assert "lead has logged in from 127.0.0.1" in text
    assert "a login from 127.0.0.1 was refused" in text
    assert PASSWORD not in text
    assert (home / "logs" / "page.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_page_without_a_login_says_so(tmp_path, home, run):
    """Somebody gave persons a login, and then starts the page from another folder."""
    words = [sys.executable, "-m", "fedgraft", "server", "watch", str(run), "--web", "0"]
    with Started(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as watching:
        try:
            assert watching.stdout is not None
            told = watching.stdout.readline() + watching.stdout.readline()
        finally:
            watching.send_signal(signal.SIGINT)
    assert b"Everybody with an account on this machine can read it: nobody has a login in kits/server" in told


@pytest.mark.parametrize("address", ["0.0.0.0", ""])
def test_without_a_login_no_page_is_open_to_other_machines(tmp_path, run, home, address):
    with pytest.raises(InputError, match=r"has no login.*fedgraft server login add"):
        Page(Board(ServerHome(tmp_path / "none"), run), address, 0)
    with pytest.raises(InputError, match=r"in the open.*page\.yaml"):
        Page(Board(ServerHome(home), run), address, 0)


@pytest.mark.slow
def test_with_a_login_and_tls_a_page_is_open_to_other_machines(home, certified):
    script = """if True:
        import sys
        from pathlib import Path
        from fedgraft.common.base.local_pages import LocalPages
        from fedgraft.server.watch.login.login_guard import login_guard
        guard = login_guard(Path(sys.argv[1])) if sys.argv[2] == "guarded" else None
        with LocalPages({}, "0.0.0.0", 0, "--web", guard) as pages:
            print(pages.url)
    """
    done = offline([sys.executable, "-c", script, str(home), "guarded"], PYTHONPATH=":".join(sys.path))
    assert done.stdout.startswith("https://0.0.0.0:"), done.stderr
    assert (
        "has no login" in offline([sys.executable, "-c", script, str(home), ""], PYTHONPATH=":".join(sys.path)).stderr
    )


def test_over_tls_the_cookie_never_goes_without(home, run, certified):
    with serving(home, run) as page:
        assert page.url.startswith("https://")
        visitor = Visitor(page, tls=certified)
        answer, _ = visitor.log_in()
        answered = answer.getheader("Set-Cookie")
        assert answered.startswith("__Host-fedgraft=")
        assert answered.endswith("; Secure")
        cookie = answered.partition(";")[0]
        assert visitor.ask("GET", "/state", Cookie=cookie)[0].status == 200
        assert visitor.ask("GET", "/state", Cookie=cookie.removeprefix("__Host-"))[0].status == 401
        assert visitor.log_in(Origin=f"http://127.0.0.1:{visitor.port}")[0].status == 403
        with pytest.raises(OSError, match="reset"):
            Visitor(page).say(f"GET /login HTTP/1.0\r\nHost: 127.0.0.1:{visitor.port}\r\n\r\n")


def test_who_says_nothing_holds_up_nobody_and_takes_no_more_than_there_is(home, run, certified):
    with serving(home, run) as page, ExitStack() as silent:
        visitor = Visitor(page, tls=certified)
        page.patience_s = 600  # none of them leaves while this machine is busy

        def connect() -> socket.socket:
            return silent.enter_context(socket.create_connection(("127.0.0.1", visitor.port), timeout=120))

        for _ in range(63):
            connect()
        assert visitor.ask("GET", "/login")[0].status == 200
        late = [connect(), connect(), connect()]
        ready, _, _ = select.select(late, [], [], 120)
        assert ready
        assert ready[0].recv(1) == b""
        silent.close()
        ends = time.monotonic() + 60
        while True:  # until the threads have seen that nobody is there any more
            try:
                assert visitor.ask("GET", "/login")[0].status == 200
                break
            except OSError:
                assert time.monotonic() < ends


def test_who_sends_without_end_takes_no_memory(page):
    """Also while nobody has logged in: a head of six million bytes is kept four times over."""
    page.patience_s = 600
    with socket.create_connection(("127.0.0.1", Visitor(page).port), timeout=20) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(f"GET /login HTTP/1.1\r\nHost: 127.0.0.1:{Visitor(page).port}\r\n".encode())
            for number in range(90):
                line.sendall(f"X{number}: {'y' * 65_000}\r\n".encode())
        with contextlib.suppress(ConnectionError):
            assert line.recv(1) == b"", "hung up on"
    assert Visitor(page).ask("GET", "/login", X="y" * 30_000)[0].status == 200


def test_only_the_proxy_is_answered_and_only_over_tls(home, run):
    (home / "page.yaml").write_text("names: [Watch.example.org]\nbehind_tls_proxy: [127.0.0.9]\n")
    sealed = {"X_Forwarded_Proto": "https"}
    with serving(home, run) as page:
        proxy = Visitor(page, "127.0.0.9", "watch.example.org")
        cookie = proxy.cookie(**sealed)
        assert proxy.ask("GET", "/state", Cookie=cookie, **sealed)[0].status == 200
        assert proxy.ask("GET", "/state", Cookie=cookie)[0].status == 421
        assert proxy.log_in(X_Forwarded_Proto="http")[0].status == 421
        assert Visitor(page, "127.0.0.1", "watch.example.org").ask("GET", "/login", **sealed)[0].status == 421
        assert Visitor(page, "127.0.0.9", "evil.example.org").ask("GET", "/login", **sealed)[0].status == 421


@pytest.mark.slow
def test_behind_a_proxy_guesses_are_counted_for_whom_the_proxy_saw(home, run):
    (home / "page.yaml").write_text("names: [watch.example.org]\nbehind_tls_proxy: [127.0.0.9]\n")
    with serving(home, run) as page:
        proxy = Visitor(page, "127.0.0.9", "watch.example.org")

        def answered(password: str, came_for: str) -> int:
            return proxy.log_in(password=password, X_Forwarded_Proto="https", X_Forwarded_For=came_for)[0].status

        # What a sender says of itself stands before what the proxy adds; of IPv6 each has addresses without end.
        numbers = count()
        assert held_up_after(lambda: answered("x", f"10.0.0.{(n := next(numbers))}, 2001:db8::{n}")) >= 5
        assert answered(PASSWORD, "2001:db8::99") == 429
        assert answered(PASSWORD, "2001:db8:1::1") == 303


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tls: {certificate: page.crt}", "tls.key"),
        ("tls: {certificate: a, key: b}\nbehind_tls_proxy: [10.0.0.1]\nnames: [x.org]", "not both"),
        ("behind_tls_proxy: [10.0.0.1]", "names"),
        ("behind_tls_proxy: true", "must be a list"),
        ("behind_tls_proxy: [proxy.example.org]\nnames: [x.org]", "behind_tls_proxy.0"),
        ("names: ['https://x.org/']", "names.0"),
        ("session_hours: 0", "session_hours"),
        ("passwords: {lead: x}", "passwords"),
    ],
)
def test_a_fault_of_the_page_s_file_is_named(home, run, text, fault):
    (home / "page.yaml").write_text(text)
    with pytest.raises(StudyError, match=fault):
        Page(Board(ServerHome(home), run), "127.0.0.1", 0)


@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_whoever_may_change_who_comes_in_is_told_of(home, run, mode):
    """Another account writes its own service, and itself, into the file."""
    (home / "page.yaml").write_text("session_hours: 1\n")
    (home / "page.yaml").chmod(mode)
    with pytest.raises(InputError, match="others may change this file"):
        Page(Board(ServerHome(home), run), "127.0.0.1", 0)


def test_a_certificate_that_will_not_do_is_named(home, run, certified):
    board = Board(ServerHome(home), run)
    (home / "page.key").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        Page(board, "127.0.0.1", 0)
    (home / "page.key").chmod(0o600)
    (home / "page.key").write_bytes(new_authority("other").key)
    with pytest.raises(InputError, match="no certificate with its key"):
        Page(board, "127.0.0.1", 0)
    (home / "page.crt").unlink()
    with pytest.raises(InputError, match=r"page\.crt"):
        Page(board, "127.0.0.1", 0)


def test_whoever_thinks_that_there_is_a_login_is_told_that_there_is_none(home, run):
    (home / "page.yaml").write_text("session_hours: 1\n")
    LoginBook(home).remove(NAME)
    with pytest.raises(InputError, match="no person has one"):
        Page(Board(ServerHome(home), run), "127.0.0.1", 0)
    (home / "page.yaml").unlink()
    LoginBook(home).add_program("prometheus")
    with pytest.raises(InputError, match="no person has one"):
        Page(Board(ServerHome(home), run), "127.0.0.1", 0)


def test_every_key_of_the_page_s_file_has_its_meaning_in_the_guide():
    guide = (ROOT / "docs" / "how_to" / "live_page.md").read_text(encoding="utf-8")
    for model in (PageSettings, SignOnSettings):
        assert [key for key in model.model_fields if f"| `{key}` |" not in guide] == []
