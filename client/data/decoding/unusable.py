"""Why a file of a cohort was left out, or must not be used."""

from __future__ import annotations


class UnusableError(Exception):
    """A file that gives no image; `reason` is a constant word that is counted and may be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FaultyError(Exception):
    """A file of many cases that must not be used; `fault` names array, key and row for the people at the site.

    It says no value that the file holds.
    """

    def __init__(self, fault: str, fix: str = "Write the file anew, or leave the site out.") -> None:
        super().__init__(fault)
        self.fault, self.fix = fault, fix
