"""A small service of OpenID Connect on loopback: it knows one client, asks for PKCE, and lets one person in.

What it says can be spoilt: each `spoil` is a function of what it would have said, by the name of what that is.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

CLIENT, SECRET, PERSON = "fedgraft", "a secret: of / the client", "lead@example.org"


@cache
def rsa_key(name: str, bits: int = 2048) -> RSAPrivateKey:
    """One key for each name: they take long to make."""
    return generate_private_key(65537, bits)


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def as_jwk(key: RSAPrivateKey, name: str) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    e, n = (b64(number.to_bytes((number.bit_length() + 7) // 8)) for number in (numbers.e, numbers.n))
    return {"kty": "RSA", "use": "sig", "kid": name, "e": e, "n": n}


def signed(claims: dict[str, Any], key: RSAPrivateKey, **header: Any) -> str:
    head = b64(json.dumps({"alg": "RS256", "kid": "one"} | header).encode())
    body = f"{head}.{b64(json.dumps(claims).encode())}"
    return f"{body}.{b64(key.sign(body.encode(), PKCS1v15(), SHA256()))}"


class SignOnService(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Service)
        self.issuer = f"http://127.0.0.1:{self.server_address[1]}"
        self.codes: dict[str, dict[str, str]] = {}
        self.spoil: dict[str, Callable[[Any], Any]] = {}
        self.refused: list[str] = []
        self.asks = False
        """Whether a person has to click before they are sent back, as where they type a password."""
        self.asks = False
        """Whether a person has to click before they are sent back, as where they type a password."""

    def say(self, name: str, what: Any) -> Any:
        return self.spoil.get(name, lambda same: same)(what)


class _Service(BaseHTTPRequestHandler):
    server: SignOnService

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        issuer = self.server.issuer
        if path == "/.well-known/openid-configuration":
            found = {"issuer": issuer, "jwks_uri": f"{issuer}/keys"}
            found |= {"authorization_endpoint": f"{issuer}/authorize?tenant=1", "token_endpoint": f"{issuer}/token"}
            self._give(self.server.say("found", found))
        elif path == "/keys":
            self._give(self.server.say("keys", {"keys": [as_jwk(rsa_key("one"), "one")]}))
        elif path == "/authorize":
            asked = {name: values[0] for name, values in parse_qs(query).items()}
            assert (asked["client_id"], asked["response_type"], asked["tenant"]) == (CLIENT, "code", "1")
            assert "openid" in asked["scope"].split()
            assert asked["code_challenge_method"] == "S256"
            code = secrets.token_urlsafe(8)
            self.server.codes[code] = asked
            back = f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
            self.send_response(200 if self.server.asks else 302)
            self.send_header("Content-Type", "text/html")
            if not self.server.asks:
                self.send_header("Location", back)
            self.end_headers()
            self.wfile.write(f'<title>service</title><a href="{escape(back)}">It is me</a>'.encode())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        asked = self.server.codes.pop(form["code"][0], None)
        fault = "no such code" if asked is None else self._fault(form, asked)
        if asked is None or fault:
            self.server.refused.append(fault)
            self.send_error(400)
            return
        now = int(time.time())
        claims = {"iss": self.server.issuer, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 300}
        claims |= {"nonce": asked["nonce"], "email": PERSON, "email_verified": True}
        token = self.server.say("token", signed(self.server.say("claims", claims), rsa_key("one")))
        self._give({"token_type": "Bearer", "access_token": "x", "id_token": token})

    def _fault(self, form: dict[str, list[str]], asked: dict[str, str]) -> str:
        name, _, secret = b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode().partition(":")
        if (unquote(name), unquote(secret)) != (CLIENT, SECRET):
            return "another client"
        if form["redirect_uri"] != [asked["redirect_uri"]]:
            return "another address"
        made = b64(hashlib.sha256(form["code_verifier"][0].encode()).digest())
        return "" if made == asked["code_challenge"] else "another verifier"

    def _give(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def sign_on_service() -> Iterator[SignOnService]:
    with SignOnService() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()


def path_of(url: str) -> str:
    """What a browser asks the page for that was sent to this address."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"
