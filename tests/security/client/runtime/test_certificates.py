"""A certificate that ends ends no site: it is told of a month before, called expired by name, and waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime import link as connection
from fedgraft.client.runtime.link import Link
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.server.operations.control import RunControl
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from helpers.certificates import certify
from helpers.federation import until
from helpers.members import joined
from helpers.ports import free_port
from helpers.scripted import PULL, Scripted

EXPIRED_DAYS = -0.005


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found(tmp_path_factory.mktemp("consortium") / "kits", free_port())


def found(kits: Path, port: int) -> Path:
    content = {"name": "trial", "server": {"host": "localhost", "port": port}, "sites": ["north", "south"]}
    Authority(kits).provision(Consortium.model_validate(content))
    return kits


@pytest.fixture(scope="module")
def home(kits: Path) -> SiteHome:
    return joined(kits)


@pytest.fixture
def link(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A connection whose pauses are short."""
    monkeypatch.setattr(connection, "_SLOWEST_S", 0.05)
    made = Link(home, threading.Event())
    yield made
    made._closed.set()
    made._stop.set()


def serving(kits: Path, days: float) -> Scripted:
    certify(kits, days)
    return Scripted(Authority(kits).home, Authority(kits).home.facts().server.port)


def test_a_certificate_that_has_expired_is_called_so_and_waited_for(kits, link, caplog):
    server = serving(kits, EXPIRED_DAYS)
    opened: list[int] = []
    with caplog.at_level(logging.INFO):
        site = threading.Thread(target=lambda: opened.append(link.open()), daemon=True)
        site.start()
        until(lambda: "has expired" in caplog.text, 30, "the site to say so")
        assert "fedgraft server renew" in caplog.text
        assert server.asked == [], "it told such a server nothing"
        server.close()
        server = serving(kits, 300)
        site.join(120)
    server.close()
    assert opened == [5]
    assert "is good for" not in caplog.text


@pytest.mark.parametrize(("days", "told"), [(29.5, "29 days"), (1.5, "1 day;"), (0.5, "less than a day"), (31, None)])
def test_a_certificate_that_soon_ends_is_told_of(kits, link, caplog, days, told):
    server = serving(kits, days)
    with caplog.at_level(logging.INFO):
        link.open()
        link.receive()
    server.close()
    assert caplog.text.count("is good for") == (told is not None), "once a day"
    assert told is None or told in caplog.text


def test_what_stands_in_the_servers_place_for_a_while_ends_no_site_that_knows_it(kits, home, link, caplog, tmp_path):
    """As a proxy does that opens TLS, until somebody makes an exception for this server."""
    server = serving(kits, 300)
    link.open()
    server.close()
    port = home.joined().port
    impostor = Scripted(Authority(found(tmp_path / "kits", port)).home, port)
    answers: list[object] = []
    with caplog.at_level(logging.INFO):
        site = threading.Thread(target=lambda: answers.append(link.receive()), daemon=True)
        site.start()
        until(lambda: "is not this consortium's server" in caplog.text, 30, "the site to say so")
        assert impostor.asked == []
        impostor.close()
        server = serving(kits, 300)
        site.join(120)
    server.close()
    assert answers == [None]
    assert PULL in server.asked


def test_the_server_says_when_its_certificates_end(kits, command):
    home = Authority(kits).home
    certify(kits, 12.5)
    code, out, _ = command("server", "status", "--home", home.path)
    assert code == 1, "it does not run"
    assert "Warning: gate.crt is good for 12 days" in out
    certify(kits, EXPIRED_DAYS)
    code, out, err = command("server", "status", "--home", home.path)
    assert "Warning: gate.crt expired on 20" in out
    code, _, err = command("server", "start", "--home", home.path)
    assert code == 2
    assert "gate.crt expired on 20" in err
    assert "fedgraft server renew" in err
    with pytest.raises(InputError, match="expired"):
        home.check_certificates()
    certify(kits, 300)
    assert "Warning" not in command("server", "status", "--home", home.path)[1]


def test_a_running_server_with_an_expired_certificate_is_not_called_away(kits):
    home = Authority(kits).home
    certify(kits, EXPIRED_DAYS)
    with pytest.raises(RunError, match=r"expired on .*server renew"), RunControl(home) as control:
        control.nodes()
    certify(kits, 300)
