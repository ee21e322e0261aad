"""`site check` against real TLS servers on loopback: the right one, wrong ones, and one that shows too much."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedgraft.client.enrolment.config import ServerAddress
from fedgraft.client.preflight.connection import check_connection
from fedgraft.client.preflight.report import FindingLine, Level

DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(key: Key, by: tuple[x509.Name, Key], days: float, names: tuple[str, ...] = ()) -> x509.Certificate:
    """A certificate for a server of these names, or for an authority if there are none."""
    now = datetime.datetime.now(datetime.UTC)
    subject = name_of(names[0]) if names else by[0]
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(by[0]).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - 10 * DAY).not_valid_after(now + days * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    if names:
        found: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(found), critical=False)
    else:
        usage = dict.fromkeys(
            ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
        )
        usage |= {"key_cert_sign": True, "crl_sign": True, "encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    return builder.sign(by[1], hashes.SHA256())


class Authority:
    """A CA in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key, self._name = folder, ec.generate_private_key(ec.SECP256R1()), name_of(name)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(certificate(self._key, (self._name, self._key), 365).public_bytes(Encoding.PEM))

    def server(self, *names: str, days: float = 365) -> tuple[Path, Path]:
        """Certificate and key of a server of these names."""
        key, stem = ec.generate_private_key(ec.SECP256R1()), f"{self.ca.stem}-{len(list(self._folder.iterdir()))}"
        cert = certificate(key, (self._name, self._key), days, names)
        paths = self._folder / f"{stem}.crt", self._folder / f"{stem}.key"
        paths[0].write_bytes(cert.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths


class Doors(http.server.BaseHTTPRequestHandler):
    """Answers as a server does that has these doors: 401 where one is open to whoever signs, 404 elsewhere."""

    protocol_version = "HTTP/1.1"
    open_ = ("/v1/fleet/",)
    open_status = 401
    clock_s = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response_only(self.open_status if self.path.startswith(self.open_) else 404)
        there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.clock_s)
        self.send_header("Date", format_datetime(there, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


Serve = Callable[..., ServerAddress]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "consortium")


@pytest.fixture
def serve(authority: Authority) -> Iterator[Serve]:
    """Start a TLS server; where it is, as site.yaml says it."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(
        names: tuple[str, ...] = ("127.0.0.1", "localhost"),
        by: Authority | None = None,
        days: float = 365,
        tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        **doors: object,
    ) -> ServerAddress:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("These", (Doors,), doors))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(by or authority).server(*names, days=days))
        context.maximum_version = tls
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        running.append(server)
        return ServerAddress(address=f"127.0.0.1:{server.server_address[1]}", ca=authority.ca)

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def lines(server: ServerAddress | None) -> dict[str, FindingLine]:
    return {line.name: line for line in check_connection(server).lines}


def levels(found: dict[str, FindingLine]) -> dict[str, Level]:
    return {name: line.level for name, line in found.items()}


def test_the_right_server_is_fine_in_every_line(serve: Serve) -> None:
    found = lines(serve())
    assert set(levels(found).values()) == {Level.FINE}
    assert set(found) == {"name", "reach", "tls", "fleet", "clock", "admin_control", "admin_runtime"}
    assert found["tls"].figures["days_left"] in (364, 365)


def test_no_server_is_no_failure() -> None:
    assert levels(lines(None)) == {"server": Level.SKIPPED}


def test_a_name_that_nobody_knows(authority: Authority) -> None:
    found = check_connection(ServerAddress(address="server.invalid:443", ca=authority.ca))
    assert [(line.name, line.level) for line in found.lines] == [("name", Level.FAILS)]
    assert "server.invalid" not in found.lines[0].description + found.lines[0].fix
    assert "server.invalid" in found.private[0]


def test_a_port_where_nothing_listens(authority: Authority) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = lines(ServerAddress(address=f"127.0.0.1:{port}", ca=authority.ca))
    assert levels(found) == {"name": Level.FINE, "reach": Level.FAILS}


def test_a_certificate_of_another_authority_is_refused_before_anything_is_asked(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    found = lines(serve(by=Authority(tmp_path / "other", "somebody")))
    assert levels(found) == {"name": Level.FINE, "tls": Level.FAILS}


@pytest.mark.parametrize("wrong", [{"names": ("elsewhere.example.org",)}, {"days": -1}])
def test_a_certificate_of_another_name_or_of_yesterday_is_refused(serve: Serve, wrong: dict[str, object]) -> None:
    assert levels(lines(serve(**wrong))) == {"name": Level.FINE, "tls": Level.FAILS}


def test_a_certificate_that_ends_soon_is_noted(serve: Serve) -> None:
    found = lines(serve(days=10))
    assert (found["tls"].level, found["tls"].figures["days_left"]) == (Level.NOTE, 9)


def test_a_certificate_that_has_expired_is_called_so(serve: Serve) -> None:
    found = lines(serve(days=-1))
    assert found["tls"].level is Level.FAILS
    assert "has expired" in found["tls"].description
    assert "fedgraft server renew" in found["tls"].fix


def test_plain_http_is_no_handshake(authority: Authority) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Doors)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        found = lines(ServerAddress(address=f"127.0.0.1:{server.server_address[1]}", ca=authority.ca))
    finally:
        server.shutdown()
        server.server_close()
    assert levels(found) == {"name": Level.FINE, "tls": Level.FAILS}


def test_a_ca_file_that_is_none(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    server = serve().model_copy(update={"ca": tmp_path / "ca.pem"})
    assert levels(lines(server)) == {"ca": Level.FAILS}
    assert levels(lines(server.model_copy(update={"ca": tmp_path / "absent.pem"}))) == {"ca": Level.FAILS}


def test_a_closed_door_for_sites_fails(serve: Serve) -> None:
    assert lines(serve(open_=("/v1/other/",)))["fleet"].level is Level.FAILS


def test_a_door_for_sites_that_asks_for_no_signature_fails(serve: Serve) -> None:
    assert lines(serve(open_status=200))["fleet"].level is Level.FAILS


@pytest.mark.parametrize("door", ["control", "runtime"])
def test_an_open_door_of_the_administration_fails(serve: Serve, door: str) -> None:
    found = lines(serve(open_=("/v1/fleet/", f"/v1/{door}/")))
    assert [name for name, line in found.items() if line.level is Level.FAILS] == [f"admin_{door}"]
    assert "Do not start the site" in found[f"admin_{door}"].fix


@pytest.mark.parametrize(
    ("clock_s", "level"),
    [(0, Level.FINE), (120, Level.FINE), (600, Level.FAILS), (-60, Level.FAILS), (-600, Level.FAILS)],
)
def test_the_clock_may_lag_a_little_and_never_be_ahead(serve: Serve, clock_s: float, level: Level) -> None:
    found = lines(serve(clock_s=clock_s))
    assert found["clock"].level is level
    assert abs(found["clock"].figures["seconds_ahead"] + clock_s) <= 2


@pytest.fixture
def superlink(authority: Authority, tmp_path: Path) -> Iterator[ServerAddress]:
    """Flower's own server over TLS, without a gate in front of it."""
    cert, key = authority.server("127.0.0.1", "localhost")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("flower-superlink")), "--host", "127.0.0.1", "--port", str(port),
        "--ssl-ca-certfile", str(authority.ca), "--ssl-certfile", str(cert), "--ssl-keyfile", str(key),
        "--enable-supernode-auth", "--disable-runtime-dependency-installation", "--isolation", "process",
    ]  # fmt: skip
    quiet = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(tmp_path)}
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (tmp_path / "superlink.log").read_text()
            time.sleep(0.1)
        yield ServerAddress(address=f"127.0.0.1:{port}", ca=authority.ca)
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_flowers_own_server_without_a_gate_shows_sites_too_much(superlink: ServerAddress) -> None:
    """Its doors are where this check knocks: those for sites ask for a signature, the others are there for anybody."""
    found = lines(superlink)
    assert {name for name, line in found.items() if line.level is Level.FAILS} == {"admin_control", "admin_runtime"}
    assert found["fleet"].figures["status"] == 401
    assert found["clock"].level is Level.FINE
