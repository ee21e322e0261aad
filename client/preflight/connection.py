"""Preflight: is the server reached, is it the right one, and does it show sites no more than they need?"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.request import getproxies

import httpx

from fedgraft.client.enrolment.config import ServerAddress
from fedgraft.client.preflight.report import Findings
from fedgraft.common.identity.expiry import WARN_DAYS, left

_TIMEOUT_S = 8.0
_AHEAD_S, _BEHIND_S = 4.0, 240.0
"""Flower takes signatures from 5 s in the future to 305 s in the past; the Date header is right to a second."""
_TIMES = {9: "is not valid yet", 10: "has expired"}
"""By OpenSSL's number what is wrong with the time of a certificate."""

_FLEET = "/v1/fleet/pull-messages"
_ADMIN = {"control": "/v1/control/list-runs", "runtime": "/v1/runtime/get-nodes"}
"""Paths of Flower's HTTP interfaces: sites need the first alone; the others start runs and hand out work.

Those that are knocked at only read, so that nothing happens where a door is open.
"""
_CLOSED = 404
_HEADERS = {"Content-Type": "application/protobuf"}
_PROXY_FIX = (
    "Check HTTPS_PROXY, or except the server from it by NO_PROXY; ask your network team to let the proxy pass "
    "connections (CONNECT) to the server's port."
)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]


def check_connection(server: ServerAddress | None) -> Findings:
    """Look up, shake hands, knock at the doors, by the way that `site start` takes: through the same proxy, if any.

    Without a server, in a site that has joined no consortium, there is nothing to look at.
    """
    found = Findings()
    if server is None:
        found.skipped(
            "server", "neither site.yaml nor a kit names a server; it comes with the kit from the coordinator"
        )
        return found
    try:
        context = ssl.create_default_context(cafile=str(server.ca))
    except (OSError, ssl.SSLError) as error:
        found.private.append(f"{server.ca}: {error}")
        fix = "Take the file from the coordinator's kit again."
        found.fails("ca", "the server's CA certificate cannot be read", fix)
        return found
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        client = httpx.Client(verify=context, timeout=_TIMEOUT_S)
    except (ValueError, ImportError) as error:
        found.private.append(f"HTTPS_PROXY or ALL_PROXY: {error}")
        found.fails("proxy", "the environment names a proxy that cannot be used", _PROXY_FIX)
        return found
    with client:
        door = _Door(f"https://{server.address}", client, proxy_of(client, f"https://{server.address}"), found)
        if _way_out(door, server) and _handshake(door):
            _fleet(door)
            _admin(door)
    return found


def proxy_of(client: httpx.Client, url: str) -> str | None:
    """The proxy that this client takes to `url`, without a password; None if it goes there directly."""
    if client._transport_for_url(httpx.URL(url)) is client._transport:
        return None
    named = getproxies()
    proxy = httpx.URL(named.get("https") or named.get("all") or "http://unknown")
    return f"{proxy.scheme}://{proxy.host}:{proxy.port}" if proxy.port else f"{proxy.scheme}://{proxy.host}"


@dataclass(frozen=True)
class _Door:
    """The server by its address, the client that goes there, the proxy on the way, and what was found so far."""

    url: str
    client: httpx.Client
    proxy: str | None
    found: Findings


def _way_out(door: _Door, server: ServerAddress) -> bool:
    """Whether the server's name is known here; behind a proxy it is the proxy that looks it up."""
    if door.proxy is not None:
        door.found.private.append(f"The way to {server.address} is through the proxy {door.proxy} (HTTPS_PROXY).")
        door.found.fine("proxy", "the way out is through the proxy that the environment names")
        return True
    try:
        socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        door.found.private.append(f"{server.address}: {error}")
        fix = (
            "Check `server.address` in site.yaml; ask your network team to let this machine resolve it, or which proxy "
            "is to be named in HTTPS_PROXY."
        )
        door.found.fails("name", "the server's name is not known here", fix)
        return False
    door.found.fine("name", "the server's name is known here")
    return True


def _handshake(door: _Door) -> bool:
    try:
        with door.client.stream("POST", door.url + _FLEET, content=b"", headers=_HEADERS) as reply:
            secure = reply.extensions["network_stream"].get_extra_info("ssl_object")
            version, ends = secure.version(), dict(secure.getpeercert() or {}).get("notAfter")
    except httpx.ProxyError as error:
        door.found.private.append(f"{door.proxy}: {error}")
        door.found.fails("reach", "the proxy does not let this machine through to the server", _PROXY_FIX)
        return False
    except (httpx.HTTPError, OSError) as error:
        _say_failure(door, error)
        return False
    door.found.fine("reach", "the server answers")
    days = (ssl.cert_time_to_seconds(str(ends)) - time.time()) / 86400
    description, figures = (
        f"{version}; the certificate is good for {left(days)}",
        {"days_left": int(days)},
    )
    if days < WARN_DAYS:
        door.found.note("tls", description, "Tell the coordinator to renew it.", **figures)
    else:
        door.found.fine("tls", description, **figures)
    return True


def _say_failure(door: _Door, error: Exception) -> None:
    """Why there was no answer: the certificate, TLS itself, or nobody there."""
    causes = list(_causes(error))
    unverified = next((one for one in causes if isinstance(one, ssl.SSLCertVerificationError)), None)
    door.found.private.append(f"{door.url}: {unverified.verify_message if unverified else error}")
    if unverified is not None:
        if unverified.verify_code in _TIMES:
            fix = (
                "Tell the coordinator, who makes a new one with `fedgraft server renew`. Is this machine's clock right?"
            )
            wrong = f"the server's certificate {_TIMES[unverified.verify_code]}"
        else:
            fix = (
                "Do not go on: ask the coordinator whether the kit is current. A proxy that opens TLS must let this "
                "pass."
            )
            wrong = "the server's certificate is not vouched for by the CA of your kit, or names another"
        door.found.fails("tls", wrong, fix)
    elif any(isinstance(one, ssl.SSLError) for one in causes):
        fix = "Check `server.address`: something else than the study's server, or TLS below 1.2, answers there."
        door.found.fails("tls", "no TLS handshake", fix)
    elif door.proxy is not None:
        door.found.fails("reach", "nothing answers by way of the proxy", _PROXY_FIX)
    else:
        fix = "Ask your network team to allow outgoing TCP to the server's port, and the coordinator whether it runs."
        door.found.fails("reach", "nothing answers at the server's address", fix)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _fleet(door: _Door) -> None:
    answer, found = _knock(door, _FLEET), door.found
    if answer is None or answer.status == _CLOSED or answer.status >= 500:
        fix = "Tell the coordinator: the server runs, but sites cannot fetch their instructions from it."
        found.fails("fleet", "the door for sites is closed", fix, status=answer.status if answer else None)
        return
    if answer.status < 300:
        fix = "Tell the coordinator: whoever reaches the server could play a site. Do not start the site."
        found.fails("fleet", "the door for sites asks for no signature", fix, status=answer.status)
    else:
        found.fine("fleet", "the door for sites is open, to those who sign", status=answer.status)
    _clock(found, answer)


def _clock(found: Findings, answer: _Answer) -> None:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (TypeError, ValueError):
        found.skipped("clock", "the server does not say what time it is")
        return
    ahead = time.time() - theirs
    figures = {"seconds_ahead": round(ahead)}
    if -_BEHIND_S < ahead < _AHEAD_S + 1:
        found.fine("clock", f"within {max(1, abs(round(ahead)))} s of the server's", **figures)
    else:
        way = "ahead of" if ahead > 0 else "behind"
        fix = "Set the clock, best by NTP: the server refuses signatures that are minutes old, or of the future."
        found.fails("clock", f"{abs(ahead):.0f} s {way} the server's", fix, **figures)


def _admin(door: _Door) -> None:
    for name, path in _ADMIN.items():
        answer = _knock(door, path)
        if answer is None or answer.status == _CLOSED:
            door.found.fine(f"admin_{name}", "closed to sites, as it must be")
        else:
            fix = "Tell the coordinator at once: whoever reaches the server could start runs. Do not start the site."
            door.found.fails(f"admin_{name}", "open to everybody who reaches the server", fix, status=answer.status)


def _knock(door: _Door, path: str) -> _Answer | None:
    """The server's answer to an empty request; None if it gives none."""
    try:
        with door.client.stream("POST", door.url + path, content=b"", headers=_HEADERS) as reply:
            return _Answer(reply.status_code, {key.lower(): value for key, value in reply.headers.items()})
    except (httpx.HTTPError, OSError) as error:
        door.found.private.append(f"{door.url}{path}: {error}")
        return None
