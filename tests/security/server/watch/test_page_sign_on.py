"""The live page lets in whom the hospital's sign-on knows: a real flow with a real service, and all who pretend."""

from __future__ import annotations

import http.client
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography.hazmat.primitives import hashes, hmac

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.web import Page
from helpers.eavesdropper import eavesdropper
from helpers.logged_in import Visitor, serving
from helpers.sign_on_service import CLIENT, PERSON, SECRET, SignOnService, as_jwk, b64, path_of, rsa_key, signed
from helpers.sign_on_service import sign_on_service as serving_sign_on


@pytest.fixture
def service() -> Iterator[SignOnService]:
    with serving_sign_on() as service:
        yield service


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def home(tmp_path: Path, service: SignOnService) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "secret").touch(0o600)
    (folder / "secret").write_text(f"{SECRET}\n")
    write(folder, service)
    return folder


def write(folder: Path, service: SignOnService, **changes: Any) -> None:
    about = {"issuer": service.issuer, "client_id": CLIENT, "client_secret_file": "secret", "persons": [PERSON]}
    (folder / "page.yaml").write_text(yaml.safe_dump({"sign_on": about | changes}))


@pytest.fixture
def visitor(home: Path, run: Path) -> Iterator[Visitor]:
    with serving(home, run) as page:
        yield Visitor(page)


def begin(visitor: Visitor) -> tuple[str, str]:
    """A browser is sent to the service, and from there back: the path that it asks for then, and its cookie."""
    answer, _ = visitor.ask("GET", "/login/sign-on")
    assert answer.status == 303
    cookie = answer.getheader("Set-Cookie")
    assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}
    there = urlsplit(answer.getheader("Location"))
    connection = http.client.HTTPConnection(there.netloc, timeout=120)
    connection.request("GET", f"{there.path}?{there.query}")
    back = connection.getresponse().getheader("Location")
    connection.close()
    assert back.startswith(f"http://127.0.0.1:{visitor.port}/login/callback?")
    return path_of(back), cookie.partition(";")[0]


def session(answer: http.client.HTTPResponse) -> str:
    told = [value.partition(";")[0] for name, value in answer.getheaders() if name == "Set-Cookie"]
    return next((one for one in told if one.startswith("fedgraft=")), "")


def test_a_person_whom_the_service_knows_comes_in(visitor):
    assert visitor.ask("GET", "/state")[0].status == 401
    assert b'href="/login/sign-on"' in visitor.ask("GET", "/login")[1]
    path, cookie = begin(visitor)
    answer, _ = visitor.ask("GET", path, Cookie=cookie)
    assert answer.status == 200
    assert "SameSite=Strict" in answer.getheader("Set-Cookie")
    seen, _ = visitor.ask("GET", "/state", Cookie=session(answer))
    assert (seen.status, seen.getheader("Fedgraft-Person")) == (200, "lead%40example.org")


def refused(visitor: Visitor, path: str, cookie: str) -> None:
    answer, body = visitor.ask("GET", path, Cookie=cookie)
    assert (answer.status, session(answer)) == (401, "")
    assert b"did not work" in body


def test_an_answer_counts_once_and_in_the_browser_that_asked(visitor, home, run):
    path, cookie = begin(visitor)
    with serving(home, run) as other:  # a process that has not asked
        refused(Visitor(other), path, cookie)
    other_path, other_cookie = begin(visitor)
    refused(visitor, other_path, "")
    path_again, _ = begin(visitor)
    refused(visitor, path_again, cookie)
    assert visitor.ask("GET", path, Cookie=cookie)[0].status == 200
    refused(visitor, path, cookie)
    refused(visitor, other_path, other_cookie)  # it was tried before, by somebody else


@pytest.mark.parametrize(
    "query", ["", "?", "?code=x", "?state=x&code=x", "?error=access_denied&state={state}", "?" + "a=1&" * 30]
)
def test_an_answer_to_nothing_lets_nobody_in(visitor, query):
    path, cookie = begin(visitor)
    state = path.partition("state=")[2].partition("&")[0]
    refused(visitor, "/login/callback" + query.format(state=state), cookie)


def hmac_by_public_key(token: str) -> str:
    """As if the public key, which everybody knows, were the secret of an HMAC."""
    head = b64(json.dumps({"alg": "HS256", "kid": "one"}).encode())
    body = f"{head}.{token.split('.')[1]}"
    made = hmac.HMAC(json.dumps(as_jwk(rsa_key("one"), "one")).encode(), hashes.SHA256())
    made.update(body.encode())
    return f"{body}.{b64(made.finalize())}"


def unsigned(token: str) -> str:
    return f"{b64(json.dumps({'alg': 'none'}).encode())}.{token.split('.')[1]}."


def by(name: str, **header: Any) -> Callable[[str], str]:
    """Signed with another key, or under another head."""

    def again(token: str) -> str:
        body = token.split(".")[1]
        return signed(json.loads(urlsafe_b64decode(body + "==")), rsa_key(name), **header)

    return again


def changed(token: str) -> str:
    head, _, signature = token.split(".")
    claims = json.loads(urlsafe_b64decode(token.split(".")[1] + "==")) | {"sub": "2"}
    return f"{head}.{b64(json.dumps(claims).encode())}.{signature}"


def say(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda claims: {name: value for name, value in (claims | changes).items() if value is not None}


NOW = time.time()
LIES: list[tuple[str, Any, str]] = [
    ("token", unsigned, "not signed with RS256"),
    ("token", lambda token: token.rpartition(".")[0] + ".", "signature is not the service's"),
    ("token", hmac_by_public_key, "not signed with RS256"),
    ("token", by("two"), "signature is not the service's"),
    ("token", by("two", kid="two"), "no such key"),
    ("token", by("two", kid="two", jwk=as_jwk(rsa_key("two"), "two")), "no such key"),
    ("token", by("one", crit=["b64"]), "not signed with RS256"),
    ("token", changed, "signature is not the service's"),
    ("token", lambda _: "a.b", "no token"),
    ("token", lambda _: "W10.W10.W10", "no token"),
    ("token", lambda _: None, "gave no token"),
    ("keys", lambda _: {"keys": [as_jwk(rsa_key("short", 1024), "one")]}, "key is short"),
    ("keys", lambda _: {"keys": [{"kty": "oct", "k": "AAAA", "kid": "one"}]}, "no such key"),
    ("keys", lambda _: {"keys": [{"kty": "RSA", "kid": "one", "e": "AQAB", "n": "*"}]}, "key is none"),
    ("keys", lambda _: [], "does not answer as it should"),
    ("claims", say(iss="http://127.0.0.1:1"), "another service"),
    ("claims", say(aud="another"), "another program"),
    ("claims", say(aud=None), "another program"),
    ("claims", say(aud=[CLIENT, "another"]), "another program"),
    ("claims", say(aud=[CLIENT, "another"], azp="another"), "another program"),
    ("claims", say(azp="another"), "another program"),
    ("claims", say(exp=NOW - 3600), "time is over"),
    ("claims", say(exp=None), "time is over"),
    ("claims", say(exp="9999999999"), "time is over"),
    ("claims", say(exp=float("nan")), "time is over"),
    ("claims", say(iat=NOW - 86400), "not made just now"),
    ("claims", say(iat=NOW + 3600), "not made just now"),
    ("claims", say(iat=10**400), "not made just now"),
    ("claims", say(nonce="another"), "another login"),
    ("claims", say(nonce="\ud800"), "another login"),
    ("claims", say(nonce=None), "another login"),
    ("claims", say(email="another@example.org"), "none of `persons`"),
    ("claims", say(email=[PERSON]), "none of `persons`"),
    ("claims", say(email_verified=False), "has not verified"),
    ("claims", say(email_verified=None), "has not verified"),
    ("claims", say(email_verified="true"), "has not verified"),
]


@pytest.mark.parametrize(("part", "lie", "why"), LIES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_token_that_is_not_for_this_login_lets_nobody_in(visitor, service, caplog, part, lie, why):
    service.spoil[part] = lie
    path, cookie = begin(visitor)
    refused(visitor, path, cookie)
    assert why in caplog.text
    assert PERSON not in caplog.text


@pytest.mark.parametrize(
    "lie",
    [
        lambda found: found | {"issuer": "http://127.0.0.1:1"},
        lambda found: found | {"authorization_endpoint": "http://login.example.org/authorize"},
        lambda found: found | {"authorization_endpoint": "javascript:alert(1)"},
        lambda found: found | {"authorization_endpoint": None},
        lambda found: found | {"authorization_endpoint": found["issuer"] + "/\r\nSet-Cookie: fedgraft=x"},
        lambda _: [],
    ],
)
def test_a_service_that_calls_itself_otherwise_or_is_in_the_open_gets_nobody(visitor, service, lie):
    service.spoil["found"] = lie
    answer, _ = visitor.ask("GET", "/login/sign-on")
    assert (answer.status, answer.getheader("Location")) == (401, None)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "http://login.example.org/token", "https:///token"])
@pytest.mark.parametrize("name", ["token_endpoint", "jwks_uri"])
def test_secrets_and_keys_go_over_no_other_way(visitor, service, caplog, name, url):
    service.spoil["found"] = lambda found: found | {name: url}
    path, cookie = begin(visitor)
    refused(visitor, path, cookie)
    assert f"no {name} over https" in caplog.text


def test_an_intercepted_code_is_worth_nothing_without_the_verifier(visitor, service):
    stolen, _ = begin(visitor)
    own, cookie = begin(visitor)
    mixed = own.partition("code=")[0] + "code=" + stolen.partition("code=")[2].partition("&")[0]
    refused(visitor, f"{mixed}&state={own.partition('state=')[2]}", cookie)
    assert service.refused == ["another verifier"]


def test_a_service_that_is_away_lets_nobody_in_and_costs_nobody_else(home, run, service):
    service.shutdown()
    service.server_close()
    with serving(home, run) as page:
        assert Visitor(page).ask("GET", "/login/sign-on")[0].status == 401
        assert Visitor(page).ask("GET", "/login")[0].status == 200


def test_too_many_who_begin_are_held_up(visitor):
    told = (visitor.ask("GET", "/login/callback")[0].status for _ in range(500))
    assert next(count for count, status in enumerate(told) if status == 429) >= 20


def test_a_proxy_of_the_environment_gets_no_code_and_gives_no_key(visitor, monkeypatch):
    """What is sent without encryption to this machine itself would cross the network, and keys come back from there."""
    with eavesdropper(monkeypatch) as proxy:
        path, cookie = begin(visitor)
        assert visitor.ask("GET", path, Cookie=cookie)[0].status == 200
        assert not proxy.heard()


def test_who_is_taken_out_of_the_file_is_out_and_does_not_come_in_again(visitor, home, service):
    path, cookie = begin(visitor)
    inside = session(visitor.ask("GET", path, Cookie=cookie)[0])
    late, late_cookie = begin(visitor)
    for text in ("sign_on: {persons: [", yaml.safe_dump({"sign_on": None})):
        (home / "page.yaml").write_text(text)
        refused(visitor, *begin(visitor))
    write(home, service, persons=["another@example.org"])
    assert visitor.ask("GET", "/state", Cookie=inside)[0].status == 401
    refused(visitor, late, late_cookie)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_page_signs_nobody_on(visitor, site):
    """Whoever is logged in at the service would be let in without having done anything."""
    answer, _ = visitor.ask("GET", "/login/sign-on", Sec_Fetch_Site=site)
    assert (answer.getheader("Location"), answer.getheader("Set-Cookie")) == ("/login", None)
    for own in ("same-origin", "none"):
        assert visitor.ask("GET", "/login/sign-on", Sec_Fetch_Site=own)[0].getheader("Set-Cookie")


def test_faults_of_its_keys_are_named(home, run, service):
    board = Board(ServerHome(home), run)
    for changes, fault in (
        ({"issuer": "http://login.example.org"}, "sign_on.issuer"),
        ({"issuer": "login.example.org"}, "sign_on.issuer"),
        ({"persons": []}, "sign_on.persons"),
        ({"secret": "x"}, "sign_on.secret"),
    ):
        write(home, service, **changes)
        with pytest.raises(StudyError, match=fault):
            Page(board, "127.0.0.1", 0)
    write(home, service, client_secret_file="none")
    with pytest.raises(InputError, match="cannot be read"):
        Page(board, "127.0.0.1", 0)
    write(home, service)
    (home / "secret").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        Page(board, "127.0.0.1", 0)
