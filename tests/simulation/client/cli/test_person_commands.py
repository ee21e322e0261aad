"""`fedgraft person`: adding people, as they type it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Command = Callable[..., tuple[int, str, str]]


def test_people_are_added_and_who_added_them_is_told(command: Command, tmp_path: Path) -> None:
    home, own, short = tmp_path / "site", tmp_path / "anna", tmp_path / "short"
    own.write_text("correct horse battery\n")
    short.write_text("abc\n")
    add = ("person", "add", "--home", home)
    assert "fewer than 10 letters" in command(*add, "Anna Berg", "--new-passphrase-file", short)[2]
    code, out, _ = command(*add, "Anna Berg", "--new-passphrase-file", own)
    assert (code, "Anna Berg is added, with the key SHA256:" in out) == (0, True)
    assert command(*add, "Bo Holm", "--new-passphrase-file", own)[0] == 2
    by = ("--by", "Anna Berg", "--passphrase-file")
    assert "Is the passphrase right?" in command(*add, "Bo Holm", "--new-passphrase-file", own, *by, short)[2]
    assert command(*add, "Bo Holm", "--new-passphrase-file", own, *by, own)[0] == 0
    out = command("person", "list", "--home", home)[1]
    assert "the first" in out
    assert "added by Anna Berg" in out
    assert "already" in command(*add, "Anna Berg", "--new-passphrase-file", own, *by, own)[2]
