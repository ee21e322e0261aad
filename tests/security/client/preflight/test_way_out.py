"""`site check` goes to the server by the way that `site start` takes: proxies, exceptions from them, bundles, IPv6."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest
from cryptography import x509
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import ServerAddress, SiteConfig
from fedgraft.client.enrolment.home import Joined, SiteHome
from fedgraft.client.enrolment.server_address import server_of
from fedgraft.client.preflight.check import Check, SiteUnderCheck
from fedgraft.client.preflight.connection import check_connection, proxy_of
from fedgraft.client.preflight.report import Level
from fedgraft.common.identity.keys import load_bundle, load_node_key
from fedgraft.server.provisioning.pki import new_authority, server_certificate
from helpers.connect_proxy import ConnectProxy
from helpers.ports import free_port

NAME = "server.example.org"
VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy")


class Doors(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401 if self.path.startswith("/v1/fleet/") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A gate's doors on loopback, with a certificate of a new authority."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", *names: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), Doors)
        issued = new_authority("trial")
        authority, key = x509.load_pem_x509_certificate(issued.certificate), load_node_key(issued.key, "ca")
        own = server_certificate(authority, key, list(names or (NAME, "127.0.0.1")), 365)
        for name, content in (("ca.crt", issued.certificate), ("crt", own.certificate), ("key", own.key)):
            (folder / name).write_bytes(content)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "crt", folder / "key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.ca, self.port = folder / "ca.crt", cast("int", self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    """The environment names it, with a password; it alone knows the server's name."""
    made = ConnectProxy({f"{NAME}:443": server.port, f"127.0.0.1:{server.port}": server.port})
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:secret@127.0.0.1:{made.port}")
    yield made
    made.close()


def start_s_way(server: Server, address: str) -> None:
    """A call as a running site makes it, by the same client with the same certificates."""
    client = FleetHttpClient.from_server_address(address, False, load_bundle(server.ca), [])
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        client.PullMessages(PullMessagesRequest())


def test_the_proxy_of_the_environment_is_taken_and_named(server: Server, proxy: ConnectProxy) -> None:
    """It was passed by, and a site that starts was told that the server's name is not known."""
    found = check_connection(ServerAddress(address=f"{NAME}:443", ca=server.ca))
    assert {line.level for line in found.lines} == {Level.FINE}, found
    assert [line.name for line in found.lines][:3] == ["proxy", "reach", "tls"]
    assert f"through the proxy http://127.0.0.1:{proxy.port} " in found.private[0]
    assert not any("secret" in text for text in found.private)
    assert not any("127.0.0.1" in line.description + line.fix for line in found.lines), "a report may be shared"
    assert set(proxy.asked) == {f"{NAME}:443"}
    proxy.asked.clear()
    start_s_way(server, f"{NAME}:443")
    assert proxy.asked == [f"{NAME}:443"], "and so does a site that starts"


@pytest.mark.parametrize("exception", ["127.0.0.1", "*", "example.com,127.0.0.1"])
def test_what_is_excepted_from_the_proxy_is_asked_directly(
    server: Server, proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, exception: str
) -> None:
    monkeypatch.setenv("NO_PROXY", exception)
    address = f"127.0.0.1:{server.port}"
    found = check_connection(ServerAddress(address=address, ca=server.ca))
    assert {line.level for line in found.lines} == {Level.FINE}, found
    assert [line.name for line in found.lines][:2] == ["name", "reach"]
    start_s_way(server, address)
    assert proxy.asked == []


def test_a_proxy_that_lets_nothing_through_is_what_is_named(server: Server, proxy: ConnectProxy) -> None:
    found = check_connection(ServerAddress(address="other.example.org:443", ca=server.ca))
    failed = [line for line in found.lines if line.level is Level.FAILS]
    assert [line.name for line in failed] == ["reach"]
    assert "the proxy does not let this machine through" in failed[0].description
    assert "CONNECT" in failed[0].fix
    assert any(f"http://127.0.0.1:{proxy.port}" in text for text in found.private)


@pytest.mark.usefixtures("proxy")
def test_a_proxy_that_is_not_there_is_what_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    found = check_connection(ServerAddress(address=f"{NAME}:443", ca=server.ca))
    failed = [line for line in found.lines if line.level is Level.FAILS]
    assert [(line.name, line.description) for line in failed] == [("reach", "nothing answers by way of the proxy")]


def test_a_proxy_of_no_kind_that_there_is_is_a_line(server: Server, proxy: ConnectProxy, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:70")
    found = check_connection(ServerAddress(address=f"{NAME}:443", ca=server.ca))
    assert [(line.name, line.level) for line in found.lines] == [("proxy", Level.FAILS)]


@pytest.mark.usefixtures("proxy")
def test_a_bundle_of_certificates_is_one_authority_more(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "bundle.pem").write_bytes(new_authority("other").certificate + server.ca.read_bytes())
    server.ca = tmp_path / "bundle.pem"
    address = f"127.0.0.1:{server.port}"
    found = check_connection(ServerAddress(address=address, ca=server.ca))
    assert {line.level for line in found.lines} == {Level.FINE}, found
    start_s_way(server, address)


def test_a_server_by_its_ipv6_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    try:
        server = Server(tmp_path, "::1", "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    address = f"[::1]:{server.port}"
    found = check_connection(ServerAddress(address=address, ca=server.ca))
    assert {line.level for line in found.lines} == {Level.FINE}, found
    start_s_way(server, address)
    server.shutdown()
    server.server_close()


def test_the_proxy_is_that_of_the_client_itself(proxy: ConnectProxy) -> None:
    with httpx.Client() as client:
        assert proxy_of(client, f"https://{NAME}") == f"http://127.0.0.1:{proxy.port}"


@pytest.mark.usefixtures("proxy")
@pytest.mark.parametrize("names", ["site.yaml", "the kit"])
def test_the_server_is_looked_for_where_a_site_that_starts_looks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    """Without a server in site.yaml nothing was looked at, and the site went to the one of its kit."""
    monkeypatch.setenv("NO_PROXY", "*")
    home, other = SiteHome(tmp_path), ServerAddress(address=f"127.0.0.1:{server.port}", ca=server.ca)
    config = SiteConfig(name="north", cohort=CohortSpec(kind="images", root=tmp_path))
    if names == "site.yaml":
        config = config.model_copy(update={"server": other})
        home.write_joined(Joined(consortium="trial", site="north", host="127.0.0.1", port=free_port()))
    else:
        home.write_joined(Joined(consortium="trial", site="north", host="127.0.0.1", port=server.port))
    config.write(home.config)
    (part,) = Check(SiteUnderCheck(tmp_path, config), None, lambda _: None).run(("connection",)).parts
    assert {line.level for line in part.findings.lines} == {Level.FINE}, part
    assert server_of(home).address == other.address


@pytest.mark.parametrize(("joined", "level"), [(None, Level.SKIPPED), ("{}", Level.FAILS), ("[", Level.FAILS)])
def test_a_site_that_knows_no_server_is_told_why(tmp_path: Path, joined: str | None, level: Level) -> None:
    config = SiteConfig(name="north", cohort=CohortSpec(kind="images", root=tmp_path))
    config.write(tmp_path / "site.yaml")
    if joined is not None:
        (tmp_path / "joined.json").write_text(joined)
    (part,) = Check(SiteUnderCheck(tmp_path, config), None, lambda _: None).run(("connection",)).parts
    assert [(line.name, line.level) for line in part.findings.lines] == [("server", level)]
    assert joined is None or "joined.json" in part.findings.private[0]
