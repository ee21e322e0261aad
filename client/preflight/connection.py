"""Preflight: is the server reached, is it the right one, and does it show sites no more than they need?"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

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


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]


def check_connection(server: ServerAddress | None) -> Findings:
    """Look up, shake hands, knock at the doors. Without a server in site.yaml there is nothing to look at."""
    found = Findings()
    if server is None:
        found.skipped("server", "no server in site.yaml; it comes with the kit from the coordinator")
        return found
    try:
        context = ssl.create_default_context(cafile=str(server.ca))
    except (OSError, ssl.SSLError) as error:
        found.private.append(f"{server.ca}: {error}")
        fix = "Take the file from the coordinator's kit again."
        found.fails("ca", "the server's CA certificate cannot be read", fix)
        return found
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if _named(found, server) and _handshake(found, server, context):
        _fleet(found, server, context)
        _admin(found, server, context)
    return found


def _named(found: Findings, server: ServerAddress) -> bool:
    try:
        socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        found.private.append(f"{server.address}: {error}")
        fix = "Check `server.address` in site.yaml; ask your network team to let this machine resolve it."
        found.fails("name", "the server's name is not known here", fix)
        return False
    found.fine("name", "the server's name is known here")
    return True


def _handshake(found: Findings, server: ServerAddress, context: ssl.SSLContext) -> bool:
    try:
        with (
            socket.create_connection((server.host, server.port), _TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=server.host) as secure,
        ):
            version, ends = secure.version(), dict(secure.getpeercert() or {}).get("notAfter")
    except ssl.SSLCertVerificationError as error:
        found.private.append(f"{server.address}: {error.verify_message}")
        if error.verify_code in _TIMES:
            fix = (
                "Tell the coordinator, who makes a new one with `fedgraft server renew`. Is this machine's clock right?"
            )
            found.fails("tls", f"the server's certificate {_TIMES[error.verify_code]}", fix)
            return False
        fix = "Do not go on: ask the coordinator whether the kit is current. A proxy that opens TLS must let this pass."
        found.fails("tls", "the server's certificate is not vouched for by the CA of your kit, or names another", fix)
        return False
    except ssl.SSLError as error:
        found.private.append(f"{server.address}: {error}")
        fix = "Check `server.address`: something else than the study's server, or TLS below 1.2, answers there."
        found.fails("tls", "no TLS handshake", fix)
        return False
    except OSError as error:
        found.private.append(f"{server.address}: {error}")
        fix = "Ask your network team to allow outgoing TCP to the server's port, and the coordinator whether it runs."
        found.fails("reach", "nothing answers at the server's address", fix)
        return False
    found.fine("reach", "the server answers")
    days = (ssl.cert_time_to_seconds(str(ends)) - time.time()) / 86400
    description, figures = (
        f"{version}; the certificate is good for {left(days)}",
        {"days_left": int(days)},
    )
    if days < WARN_DAYS:
        found.note("tls", description, "Tell the coordinator to renew it.", **figures)
    else:
        found.fine("tls", description, **figures)
    return True


def _fleet(found: Findings, server: ServerAddress, context: ssl.SSLContext) -> None:
    answer = _knock(found, server, context, _FLEET)
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


def _admin(found: Findings, server: ServerAddress, context: ssl.SSLContext) -> None:
    for name, path in _ADMIN.items():
        answer = _knock(found, server, context, path)
        if answer is None or answer.status == _CLOSED:
            found.fine(f"admin_{name}", "closed to sites, as it must be")
        else:
            fix = "Tell the coordinator at once: whoever reaches the server could start runs. Do not start the site."
            found.fails(f"admin_{name}", "open to everybody who reaches the server", fix, status=answer.status)


def _knock(found: Findings, server: ServerAddress, context: ssl.SSLContext, path: str) -> _Answer | None:
    """The server's answer to an empty request; None if it gives none."""
    link = http.client.HTTPSConnection(server.host, server.port, timeout=_TIMEOUT_S, context=context)
    headers: dict[str, Any] = {"Content-Type": "application/protobuf"}
    try:
        link.request("POST", path, body=b"", headers=headers)
        reply = link.getresponse()
        reply.read(65536)
        return _Answer(reply.status, {key.lower(): value for key, value in reply.getheaders()})
    except (OSError, http.client.HTTPException) as error:
        found.private.append(f"{server.address}{path}: {error}")
        return None
    finally:
        link.close()
