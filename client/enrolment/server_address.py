"""Where a site finds its server: `site start` and `site check` ask here, so that one tries what the other does."""

from __future__ import annotations

from fedgraft.client.enrolment.config import ServerAddress, read_config
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.common.base.errors import StudyError


def server_of(home: SiteHome) -> ServerAddress:
    """As site.yaml says; as the kit said, if that says nothing or cannot be read. InputError if the site never joined.

    So a person can name another address, or another bundle of certificates, in the one file that people write.
    """
    joined = home.joined()
    try:
        named = read_config(home.config).server
    except StudyError:  # what is wrong with the file, the site's answers say
        named = None
    if named is not None:
        return named
    host = f"[{joined.host}]" if ":" in joined.host else joined.host
    return ServerAddress(address=f"{host}:{joined.port}", ca=home.authority)
