"""How the live page is reached from other machines: `page.yaml` in the server's folder. Strict; faults come at once."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field, IPvAnyAddress, ValidationError, field_validator, model_validator

from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import is_there
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


class PageSettings(Value):
    """All of a `page.yaml`."""

    names: tuple[PageName, ...] = ()
    """What browsers call the page, such as `watch.example.org`; with its port if that is neither 443 nor the page's."""
    tls: PageTls | None = None
    """The page speaks TLS itself."""
    behind_tls_proxy: tuple[IPvAnyAddress, ...] = ()
    """Addresses of a reverse proxy that speaks TLS: nobody else is answered, nor what it says came without TLS."""
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
    """What the file in this folder says, or nothing if there is none. StudyError lists every fault."""
    if not is_there(path := folder / SETTINGS):
        return PageSettings()
    try:
        return PageSettings.model_validate(read_mapping(path))
    except ValidationError as error:
        raise StudyError(str(path), describe(error, PageSettings)) from None


def tls_context(folder: Path, tls: PageTls) -> ssl.SSLContext:
    """TLS 1.2 or newer with these files. InputError if they do not fit, or others may read the key."""
    certificate, key = folder / tls.certificate, folder / tls.key
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if key.stat().st_mode & 0o077:
            raise InputError(f"{key}: others may read this key.", fix=f"chmod 600 {key}")
        # No question on the terminal for a passphrase.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError:
        fix = "Both are PEM, the key has no passphrase, and is that of the first certificate."
        raise InputError(f"{certificate} and {key}: are no certificate with its key.", fix=fix) from None
    except OSError as error:
        raise InputError(f"{error.filename or certificate}: cannot be read: {error.strerror}.") from None
    return context
