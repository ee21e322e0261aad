"""`fedgraft person`: adding and removing people, as they type it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.approval import approve
from fedgraft.common.identity.author import Author
from fedgraft.common.identity.person_book import PersonBook

Command = Callable[..., tuple[int, str, str]]


def test_people_are_added_and_who_added_them_is_told(command: Command, tmp_path: Path) -> None:
    home, own, short = tmp_path / "site", tmp_path / "anna", tmp_path / "short"
    own.touch(0o600)
    own.write_text("correct horse battery\n")
    short.touch(0o600)
    short.write_text("abc\n")
    add = ("person", "add", "--home", home)
    assert "fewer than 10 letters" in command(*add, "Anna Berg", "--new-passphrase-file", short)[2]
    own.chmod(0o640)
    assert "others may read this file" in command(*add, "Anna Berg", "--new-passphrase-file", own)[2]
    own.chmod(0o600)
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


@pytest.mark.slow
def test_people_are_removed_and_what_stays_of_them_is_told(command: Command, tmp_path: Path) -> None:
    home, own = tmp_path / "site", tmp_path / "phrase"
    own.touch(0o600)
    own.write_text("correct horse battery\n")
    SiteConfig.model_validate({"name": "north", "cohort": {"kind": "table", "root": "t.csv"}}).write(home / "site.json")
    person = ("person", "--home", home)
    by_anna = ("--by", "Anna Berg", "--passphrase-file", own)
    add = (*person[:1], "add", *person[1:], "--new-passphrase-file", own)
    remove = (*person[:1], "remove", *person[1:])
    assert command(*add, "Anna Berg")[0] == 0
    assert command(*add, "Bo Holm", *by_anna)[0] == 0
    assert command(*add, "Eve Dahl", "--by", "Bo Holm", "--passphrase-file", own)[0] == 0
    bo = Author("Bo Holm", PersonBook(home), lambda: "correct horse battery", signs=True)
    approve(home, 64 * "a", "xrays", bo)
    assert "One of Anna Berg, Eve Dahl signs it" in command(*remove, "Bo Holm")[2]
    assert "cannot sign their own" in command(*remove, "Bo Holm", "--by", "Bo Holm", "--passphrase-file", own)[2]
    assert "no person called Nobody" in command(*remove, "Nobody", *by_anna)[2]
    code, out, _ = command(*remove, "Bo Holm", *by_anna)
    assert code == 0
    assert "by Anna Berg. The key SHA256:" in out
    assert f"Still approved by Bo Holm: xrays {12 * 'a'}" in out
    assert "Added by Bo Holm, and still there: Eve Dahl." in out
    assert "no person called Bo Holm" in command(*remove, "Bo Holm", *by_anna)[2]
    assert "1 approval by them still in force" in command("person", "list", "--home", home)[1]
    assert command(*add, "Bo Holm", *by_anna)[0] == 0
    for name in ("Bo Holm", "Eve Dahl"):
        assert command(*remove, name, *by_anna)[0] == 0
    assert "Add another person first; or --force" in command(*remove, "Anna Berg")[2]
    code, out, _ = command(*remove, "Anna Berg", "--force")
    assert (code, "in nobody's name" in out, "Nobody is left who could sign" in out) == (0, True, True)
    assert "person_removed" in command("site", "egress", home)[1]
