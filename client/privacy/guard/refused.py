"""What a site says when it does not do what it was asked."""

from __future__ import annotations

from fedgraft.common.protocol.instructions import Code


class Refused(Exception):
    """The site does not do what it was asked. `code` is all that leaves; `why` is for the site's own log."""

    def __init__(self, code: Code, why: str = "") -> None:
        super().__init__(code.value)
        self.code = code
        self.why = why
