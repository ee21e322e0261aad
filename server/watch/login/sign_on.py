"""Logging in at the hospital's own sign-on (OpenID Connect): the authorization-code flow, with PKCE (RFC 7636)."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import demand_own
from fedgraft.server.watch.login.id_token import SignOnError, WantedToken, checked_claims
from fedgraft.server.watch.login.page_settings import SignOnSettings, is_sealed, read_page_settings

CALLBACK = "/login/callback"
SECONDS = 600.0
"""How long a person may take at the sign-on."""
_MOST, _LARGEST, _PATIENCE_S = 1000, 1 << 18, 10.0


@dataclass(frozen=True)
class _Begun:
    """A login that has begun: the browser that began it, by a word in its cookie, and what is asked of the answer."""

    browser: bytes
    nonce: str
    verifier: str
    back: str
    ends: float


class SignOn:
    """One service. What it says counts only as an answer to a login that this process began in that browser, once."""

    def __init__(self, folder: Path, settings: SignOnSettings) -> None:
        self._folder, self._settings = folder, settings
        self._secret = None if settings.client_secret_file is None else _secret(folder / settings.client_secret_file)
        self._begun: dict[bytes, _Begun] = {}
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """What people call the service."""
        return urlsplit(self._settings.issuer).netloc

    def begin(self, own: str) -> tuple[str, str]:
        """Where to send a browser, and the word for its cookie; `own` is the page's address. SignOnError as below."""
        there = self._endpoint(self._found(), "authorization_endpoint")
        state, nonce, verifier, word = (secrets.token_urlsafe(32) for _ in range(4))
        begun = _Begun(_digest(word), nonce, verifier, own + CALLBACK, time.monotonic() + SECONDS)
        with self._lock:
            now = time.monotonic()
            self._begun = {key: one for key, one in self._begun.items() if one.ends > now}
            if len(self._begun) >= _MOST:
                del self._begun[min(self._begun, key=lambda key: self._begun[key].ends)]
            self._begun[_digest(state)] = begun
        asked = {
            "response_type": "code",
            "scope": "openid email profile",
            "client_id": self._settings.client_id,
            "redirect_uri": begun.back,
            "state": state,
            "nonce": nonce,
            "code_challenge": urlsafe_b64encode(_digest(verifier)).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        return f"{there}{'&' if '?' in there else '?'}{urlencode(asked)}", word

    def end(self, query: str, word: str) -> str:
        """Who has come back with this query and this word in the cookie. SignOnError if it is nobody who may."""
        try:
            said = parse_qs(query, max_num_fields=20)
        except ValueError:
            raise SignOnError("the address is none of a login") from None
        state, code = (said.get(key, [""]) for key in ("state", "code"))
        with self._lock:
            begun = self._begun.pop(_digest(state[0]), None)
        if begun is None or time.monotonic() >= begun.ends:
            raise SignOnError("no such login has begun, or it is over")
        if not hmac.compare_digest(begun.browser, _digest(word)):
            raise SignOnError("another browser has begun this login")
        if not code[0]:
            raise SignOnError("the service has let nobody in")
        return self._person(self._token(code[0], begun))

    def holds(self, name: str) -> bool:
        """Whether a person may read the page now, by the file as it is: nobody waits for a new start to be shut out."""
        try:
            now = read_page_settings(self._folder).sign_on
        except InputError:  # it is being written, or says nothing that can be understood
            return False
        return now is not None and name in now.persons and name in self._settings.persons

    def _person(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._settings.claim)
        if not isinstance(name, str) or not self.holds(name):
            raise SignOnError("the person is none of `persons`")
        # An address that nobody has looked at is what somebody typed.
        if self._settings.claim == "email" and claims.get("email_verified") is not True:
            raise SignOnError("the service has not verified the person's address")
        return name

    def _token(self, code: str, begun: _Begun) -> dict[str, Any]:
        found, client = self._found(), self._settings.client_id
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": begun.back}
        form["code_verifier"] = begun.verifier
        headers = {}
        if self._secret is None:
            form["client_id"] = client
        else:
            both = f"{quote(client, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {b64encode(both.encode()).decode()}"
        said = _fetched(self._endpoint(found, "token_endpoint"), urlencode(form).encode(), headers)
        token = said.get("id_token")
        if not isinstance(token, str):
            raise SignOnError("the service gave no token")
        wanted = WantedToken(self._settings.issuer, client, begun.nonce)
        return checked_claims(token, _fetched(self._endpoint(found, "jwks_uri")), wanted)

    def _found(self) -> dict[str, Any]:
        found = _fetched(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != self._settings.issuer:
            raise SignOnError("the service calls itself otherwise than `issuer`")
        return found

    def _endpoint(self, found: Mapping[str, Any], name: str) -> str:
        url = found.get(name)
        if not isinstance(url, str) or not is_sealed(url):
            raise SignOnError(f"the service has no {name} over https")
        return url


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Codes and secrets go where they were sent, and nowhere else."""


def _fetched(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    request = Request(url, body, {"Accept": "application/json", **(headers or {})})
    # What is not encrypted stays on this machine: a proxy is another one.
    ways = [ProxyHandler({})] if request.type == "http" else []
    try:
        with build_opener(_NoRedirect, *ways).open(request, timeout=_PATIENCE_S) as answer:
            said = json.loads(answer.read(_LARGEST))
    except (OSError, ValueError, RecursionError, HTTPException) as error:
        raise SignOnError(f"the service does not answer as it should ({type(error).__name__})") from None
    if not isinstance(said, dict):
        raise SignOnError("the service does not answer as it should")
    return said


def _secret(path: Path) -> str:
    try:
        demand_own(path)
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        raise InputError(f"{path}: cannot be read.", fix="It holds the client's secret.") from None


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode(errors="replace")).digest()
