"""The few forms of the SSH protocols that keys, signatures and agents are written in (RFC 4251, section 5)."""

from __future__ import annotations


def string(data: bytes) -> bytes:
    """Bytes with their number before them, four bytes."""
    return len(data).to_bytes(4, "big") + data


class SshReader:
    """Takes one form after the other from bytes; ValueError if there are too few or too many."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next so many bytes."""
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise ValueError("fewer bytes than said")
        self._at += count
        return found

    def number(self) -> int:
        """A number of four bytes."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """Bytes with their number before them."""
        return self.take(self.number())

    def demand_end(self) -> None:
        """ValueError unless all was taken."""
        if self._at != len(self._data):
            raise ValueError("more bytes than said")
