"""How the live page is reached from other machines: `page.yaml` in the server's folder. Strict; faults come at once."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyAddress, ValidationError, field_validator, model_validator

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import demand_own, is_there
from fedgraft.common.base.value import Value
from fedgraft.common.config.config_files import describe, read_mapping

SETTINGS = "page.yaml"

PageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?$")]


class PageTls(Value):
    """Files in PEM; a path that is not absolute is from the folder of `page.yaml`."""

    certificate: Path
    """The page's certificate, and after it those between it and an authority that browsers know."""
    key: Path
    """Its private key, without a passphrase, readable by the server's account alone."""


class SignOnSettings(Value):
    """The hospital's own sign-on: a service of OpenID Connect, and who of those that it knows may read the page."""

    issuer: str
    """Its address, to the letter as it writes it in its tokens."""
    client_id: Annotated[str, Field(min_length=1, max_length=256)]
    """What it calls the page."""
    client_secret_file: Path | None = None
    """What the page shows it: a file of mode 600, from the folder of `page.yaml`. A public client has none."""
    claim: Annotated[str, Field(pattern=r"^[A-Za-z0-9_:/.-]{1,128}$")] = "email"
    """What of its tokens says who somebody is."""
    persons: Annotated[tuple[str, ...], Field(min_length=1)]
    """Whoever may read the page: values of `claim`."""

    @field_validator("issuer")
    @classmethod
    def _sealed(cls, issuer: str) -> str:
        if not is_sealed(issuer) or "?" in issuer or "#" in issuer:
            raise ValueError("must be an address that begins with https://, such as https://login.example.org")
        return issuer


class PageSettings(Value):
    """All of a `page.yaml`."""

    names: tuple[PageName, ...] = ()
    """What browsers call the page, such as `watch.example.org`; with its port if that is neither 443 nor the page's."""
    tls: PageTls | None = None
    """The page speaks TLS itself."""
    behind_tls_proxy: tuple[IPvAnyAddress, ...] = ()
    """Addresses of a reverse proxy that speaks TLS: nobody else is answered, nor what it says came without TLS."""
    sign_on: SignOnSettings | None = None
    """Persons may log in at a service of OpenID Connect, with a password here or without."""
    session_hours: Annotated[float, Field(gt=0, le=24 * 7)] = 8.0
    """How long a login holds."""

    @field_validator("names")
    @classmethod
    def _in_lower_case(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.lower() for name in names)

    @model_validator(mode="after")
    def _one_way(self) -> PageSettings:
        if self.tls is not None and self.behind_tls_proxy:
            raise ValueError("the page speaks TLS itself (tls), or a proxy does (behind_tls_proxy), and not both")
        if self.behind_tls_proxy and not self.names:
            raise ValueError("behind a proxy the page has names: say under which browsers come")
        return self


def read_page_settings(folder: Path) -> PageSettings:
    """What the file in this folder says, or nothing if there is none. StudyError lists every fault.

    InputError if others may change it: it says who comes in.
    """
    if not is_there(path := folder / SETTINGS):
        return PageSettings()
    with contextlib.suppress(OSError):  # which is told of below
        demand_own(path, readable=True)
    try:
        return PageSettings.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error, PageSettings)) from None


def is_sealed(url: str) -> bool:
    """Whether what is sent to this address is encrypted on its way, or does not leave this machine."""
    if not url.isascii() or not url.isprintable():
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme == "http":
        return is_loopback(parts.hostname or "")
    return parts.scheme == "https" and bool(parts.hostname)


def is_loopback(address: str) -> bool:
    """Whether this is the number of a machine itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def tls_context(folder: Path, tls: PageTls) -> ssl.SSLContext:
    """TLS 1.2 or newer with these files. InputError if they do not fit, or others may read the key."""
    certificate, key = folder / tls.certificate, folder / tls.key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        demand_own(key)
        # No question on the terminal for a passphrase.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError:
        fix = "Both are PEM, the key has no passphrase, and is that of the first certificate."
        raise InputError(f"{certificate} and {key}: are no certificate with its key.", fix=fix) from None
    except OSError as error:
        raise InputError(f"{error.filename or certificate}: cannot be read: {error.strerror}.") from None
    return context
