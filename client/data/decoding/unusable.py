"""Why a file of a cohort was left out."""

from __future__ import annotations


class UnusableError(Exception):
    """A file that gives no image; `reason` is a constant word that is counted and may be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
