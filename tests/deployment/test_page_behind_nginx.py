"""The live page behind nginx, as the guide configures it: strangers read nothing through it, and are counted."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from fedgraft.common.identity.keys import load_certificate, load_node_key
from fedgraft.server.provisioning.pki import new_authority, server_certificate
from fedgraft.server.watch.login.login_book import LoginBook
from helpers.federation import ROOT, Started, until
from helpers.logged_in import NAME, PASSWORD, serving
from helpers.ports import free_port

pytestmark = pytest.mark.deployment
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
HOST = "watch.example.org"
GUIDE = (ROOT / "docs" / "how_to" / "live_page.md").read_text(encoding="utf-8")


class Outside:
    """Somebody in the network: nginx is all that they reach."""

    def __init__(self, port: int, trusted: ssl.SSLContext) -> None:
        self._port, self._trusted = port, trusted

    def say(self, text: str) -> bytes:
        """These very bytes over TLS, and all that comes back before nginx hangs up, or has answered once."""
        line = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        with self._trusted.wrap_socket(line, server_hostname=HOST) as sealed:
            sealed.sendall(text.encode("latin-1"))
            return b"".join(iter(lambda: sealed.recv(1 << 16), b""))

    def ask(self, line: str, *headers: str, body: str = "") -> tuple[int, bytes]:
        head = "\r\n".join((line, f"Host: {HOST}", "Connection: close", *headers))
        answer = self.say(f"{head}\r\n\r\n{body}")
        return int(answer.split()[1]), answer

    def log_in(self, password: str, *headers: str) -> tuple[int, bytes]:
        body = urlencode({"name": NAME, "password": password})
        about = (f"Origin: https://{HOST}", "Content-Type: application/x-www-form-urlencoded")
        return self.ask("POST /login HTTP/1.1", *about, f"Content-Length: {len(body)}", *headers, body=body)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    home = tmp_path_factory.mktemp("home")
    LoginBook(home).set_password(NAME, PASSWORD)
    settings = re.findall(r"```yaml\n(names:[^`]*behind_tls_proxy:[^`]*?)```", GUIDE)[0]
    (home / "page.yaml").write_text(settings)
    authority = new_authority("test")
    (home / "ca.crt").write_bytes(authority.certificate)
    signs = load_certificate(home / "ca.crt"), load_node_key(authority.key, "ca.key")
    made = server_certificate(*signs, [HOST], 1)
    (home / "watch.crt").write_bytes(made.certificate)
    (home / "watch.key").write_bytes(made.key)
    port = free_port()
    with serving(home, tmp_path_factory.mktemp("run")) as page:
        server = re.findall(r"```nginx\n(.*?)```", GUIDE, re.DOTALL)[0]
        for old, new in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/watch.crt", str(home / "watch.crt")),
            ("/etc/ssl/private/watch.key", str(home / "watch.key")),
            ("127.0.0.1:8080", f"127.0.0.1:{page.server_address[1]}"),
        ):
            assert old in server
            server = server.replace(old, new)
        places = " ".join(
            f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = f"pid {home}/nginx.pid; events {{}} http {{ access_log off; {places}\n{server}}}\n"
        (home / "nginx.conf").write_text(whole)
        # Its workers leave root's account, and then could not write to root's folders.
        user = "user root;" if os.getuid() == 0 else ""
        words = [NGINX, "-e", str(home / "nginx.log"), "-c", str(home / "nginx.conf"), "-g", f"daemon off; {user}"]
        with Started(words) as nginx:
            try:
                until((home / "nginx.pid").exists, 20, "nginx")
                yield Outside(port, ssl.create_default_context(cafile=home / "ca.crt"))
            finally:
                nginx.terminate()


def test_a_person_logs_in_through_it(outside: Outside) -> None:
    status, answer = outside.log_in(PASSWORD)
    assert status == 303
    cookie = re.findall(rb"Set-Cookie: (__Host-fedgraft=[^;]*)", answer)[0].decode()
    assert outside.ask("GET /state HTTP/1.1", f"Cookie: {cookie}")[0] == 200
    assert (
        outside.ask("POST /logout HTTP/1.1", f"Origin: https://{HOST}", "Content-Length: 0", f"Cookie: {cookie}")[0]
        == 303
    )
    assert outside.ask("GET /state HTTP/1.1", f"Cookie: {cookie}")[0] == 401


LINES = (
    *("GET /state HTTP/1.1", "GET //state HTTP/1.1", "GET /login/..%2fstate HTTP/1.1", "GET /login/../state HTTP/1.1"),
    *("GET /%2e/state HTTP/1.1", f"GET https://{HOST}/state HTTP/1.1", "GET https://127.0.0.1/state HTTP/1.1"),
    *("HEAD /state HTTP/1.1", "OPTIONS /state HTTP/1.1", "TRACE /state HTTP/1.1", "GET /state HTTP/1.0"),
)
TRICKS = (
    "Connection: X-Forwarded-Proto, X-Forwarded-For, Host",
    "X-Forwarded-Proto: https",
    "X_Forwarded_Proto: https",
    "X-Forwarded-Host: 127.0.0.1",
    "Upgrade: h2c",
    "X: y\r\n Cookie: z",
    "X: y\rX-Forwarded-For: 1.2.3.4",
)


@pytest.mark.parametrize("line", LINES)
def test_nobody_reads_without_a_login(outside: Outside, line: str) -> None:
    for trick in TRICKS:
        status, answer = outside.ask(line, trick)
        assert status in (303, 400, 401, 405, 421, 501), (line, trick)
        assert b'"run"' not in answer


SMUGGLED = f"GET /state HTTP/1.1\r\nHost: {HOST}\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        f"Content-Length: 5\r\nContent-Length: {len(SMUGGLED) + 5}",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: +5",
        "Content-Length: 0x5",
    ],
)
def test_no_request_hides_in_another(outside: Outside, headers: str) -> None:
    own = f"Host: {HOST}\r\nOrigin: https://{HOST}\r\nContent-Type: application/x-www-form-urlencoded"
    answer = outside.say(f"POST /login HTTP/1.1\r\n{own}\r\n{headers}\r\nConnection: close\r\n\r\n0\r\n\r\n{SMUGGLED}")
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert b'"run"' not in answer


def test_guesses_are_counted_whatever_their_sender_says_of_itself(outside: Outside) -> None:
    said = (f"X-Forwarded-For: 10.0.0.{n}" for n in range(100))
    told = [outside.log_in("not this one, I fear", next(said), "Connection: X-Forwarded-For")[0] for _ in range(12)]
    assert 429 in told
