"""The server's certificate as a site sees it: one that has expired is called so, and one that soon will is told of."""

from __future__ import annotations

import logging
import ssl
import time
from typing import Literal

import httpx

from fedgraft.common.identity.expiry import WARN_DAYS, left

_DAY_S = 86400.0
_log = logging.getLogger("fedgraft.site")

Fault = Literal["expired", "early", "other"]


def fault_of(error: httpx.TransportError) -> Fault | None:
    """What is wrong with the certificate, if that is why there was no connection; "other": it is not this server's."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" not in text:
        return None
    if "has expired" in text:
        return "expired"
    return "early" if "not yet valid" in text else "other"


class CertificateWatch:
    """Looks at the certificate of the connection that an answer came over, once a day; a hook of httpx."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._looked: float | None = None

    def __call__(self, response: httpx.Response) -> None:
        """Warn if the certificate is good for less than thirty days."""
        now = time.monotonic()
        if self._looked is not None and now - self._looked < _DAY_S:
            return
        self._looked = now
        stream = response.extensions.get("network_stream")
        tls = stream.get_extra_info("ssl_object") if stream is not None else None
        ends = (tls.getpeercert() or {}).get("notAfter") if tls is not None else None
        if ends is None:
            return
        days = (ssl.cert_time_to_seconds(ends) - time.time()) / _DAY_S
        if days < WARN_DAYS:
            _log.warning(
                "the certificate of the server at %s is good for %s; tell the coordinator to renew it",
                self._where,
                left(days),
            )
