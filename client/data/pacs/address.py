"""Where an archive's DICOMweb service is, and how this site shows who it is. No secret is typed on a command line."""

from __future__ import annotations

import ipaddress
import logging
import netrc
import os
import ssl
from collections.abc import Generator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx

from fedgraft.common.base.errors import InputError

USER, PASSWORD = "FEDGRAFT_PACS_USER", "FEDGRAFT_PACS_PASSWORD"
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class PacsAddress:
    """The service's address, and the files that prove who asks; `plain` allows http to another machine."""

    url: str
    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    plain: bool = False

    def open(self) -> httpx.Client:
        """A client for this address. InputError says what of it cannot be used, and never shows a secret.

        The password comes from the environment or from ~/.netrc. Redirects are not followed: who is sent elsewhere
        would show its credentials there.
        """
        url = self._checked()
        for name in ("httpx", "httpcore"):  # they log addresses, and those of a search hold patients' numbers
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return httpx.Client(
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept: they could have no end
                base_url=url,
                auth=self._auth(url),
                verify=self._trust(),
                timeout=_TIMEOUT_S,
                follow_redirects=False,
                trust_env=not _is_loopback(url.host),  # a proxy is another machine
                headers={"Accept-Encoding": "identity"},
            )
        except ValueError:  # of a proxy that the environment names
            raise InputError(
                "The environment names a proxy that cannot be used.",
                fix="Check HTTPS_PROXY and ALL_PROXY, or except the PACS by NO_PROXY.",
            ) from None

    def _checked(self) -> httpx.URL:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise InputError("--from: is no address.", fix=_EXAMPLE) from None
        if url.userinfo:
            fix = f"Set {USER} and {PASSWORD}, or write them into ~/.netrc."
            raise InputError("--from: an address with a password is seen by others on this machine.", fix=fix)
        if url.scheme not in ("https", "http") or not url.host or url.query or url.fragment:
            raise InputError("--from: is no address of a DICOMweb service.", fix=_EXAMPLE)
        if url.scheme == "http" and not (self.plain or _is_loopback(url.host)):
            fix = "Use its https address, or allow it by --plain-http where the network between is trusted."
            raise InputError(f"--from: images of patients would come from {url.host} without encryption.", fix=fix)
        return url

    def _auth(self, url: httpx.URL) -> httpx.Auth | None:
        if self.token_file is not None:
            return _Token(self.token_file)
        if user := os.environ.get(USER):
            return httpx.BasicAuth(user, os.environ.get(PASSWORD, ""))
        place = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        try:
            found = netrc.netrc(place).authenticators(url.host) if place.is_file() else None
        except (netrc.NetrcParseError, OSError, UnicodeError):
            raise InputError(f"{place}: cannot be read as a netrc file.", fix=f"Mend it, or set {USER}.") from None
        return httpx.BasicAuth(found[0], found[2] or "") if found else None

    def _trust(self) -> ssl.SSLContext:
        """The authorities of this machine, or the one that was given; a hospital's own is in neither httpx's list."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError):
            raise InputError(f"{self.ca}: is no file of CA certificates (PEM).") from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ssl.SSLError, ValueError):
                raise InputError(
                    f"{self.certificate}: is no certificate (PEM) with its private key.",
                    fix="Give the key by --key, as PEM without a passphrase, in a file that you alone can read.",
                ) from None
        return context


_EXAMPLE = "Write it as in https://pacs.example.org/dicom-web."


class _Token(httpx.Auth):
    """A bearer token from a file, read anew for each request: tokens end sooner than a long pull."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the token to a request."""
        try:
            token = self._file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeError):
            raise InputError(f"{self._file}: cannot be read as a token.", fix="It holds the token alone.") from None
        if not token or not token.isprintable():
            raise InputError(f"{self._file}: holds no token.", fix="It holds the token alone, on one line.")
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
