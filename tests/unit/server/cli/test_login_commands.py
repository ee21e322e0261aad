"""`fedgraft server login`: a person gets a password and nobody else sees it; what a page needs is said."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.server.watch.login.login_book import LoginBook

PASSWORD = "twelve letters, and more"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the person types next, where nothing of it is shown."""
    words: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda _question: words.pop(0))
    yield words
    assert words == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_person_has_a_password_another_one_and_none(command, typed, home):
    typed += [PASSWORD, PASSWORD]
    code, out, err = command("server", "login", "add", "lead", "--home", home)
    assert (code, "lead may log in" in out, err) == (0, True, "")
    book = LoginBook(home)
    assert book.login("lead", PASSWORD)
    assert PASSWORD not in book.path.read_text()
    assert book.path.stat().st_mode & 0o777 == 0o600
    code, out, _ = command("server", "login", "list", "--home", home)
    assert (code, out.startswith("lead: a password, 2")) == (0, True)
    typed += [f"{PASSWORD}, e\u0301", f"{PASSWORD}, e\u0301"]
    assert "another password" in command("server", "login", "add", "lead", "--home", home)[1]
    assert not book.login("lead", PASSWORD)
    assert book.login("lead", f"{PASSWORD}, \u00e9")  # another keyboard
    assert command("server", "login", "remove", "lead", "--home", home)[0] == 0
    assert not book.login("lead", PASSWORD)
    assert "Nobody" in command("server", "login", "list", "--home", home)[1]


@pytest.mark.parametrize(
    ("name", "words", "fault"),
    [
        ("lead", [PASSWORD, PASSWORD + "."], "not the same"),
        ("lead", ["short"] * 2, "12 to 256 letters"),
        ("lead", ["x" * 257] * 2, "12 to 256 letters"),
        ("lead", [PASSWORD + "\udcff"] * 2, "12 to 256 letters"),
        ("<b>", [PASSWORD] * 2, "is no name"),
        ("program", [PASSWORD] * 2, "is there already"),
    ],
)
def test_what_will_not_do_is_said(command, typed, home, name, words, fault):
    LoginBook(home).add_program("program")
    typed += words
    code, _, err = command("server", "login", "add", name, "--home", home)
    assert (code, fault in err) == (2, True)
    assert LoginBook(home).persons() == ()


def test_a_password_file_is_the_person_s_alone(command, home, tmp_path):
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\nmore\n")
    file.chmod(0o644)
    code, _, err = command("server", "login", "add", "lead", "--home", home, "--password-file", file)
    assert (code, "chmod 600" in err) == (2, True)
    file.chmod(0o600)
    assert command("server", "login", "add", "lead", "--home", home, "--password-file", file)[0] == 0
    assert LoginBook(home).login("lead", PASSWORD)


def test_a_program_s_token_is_in_its_file_alone(command, home, tmp_path):
    out = tmp_path / "token"
    words = ("server", "login", "token", "prometheus", "--home", home, "--out", out)
    code, said, _ = command(*words)
    token = out.read_text().strip()
    assert (code, token in said, out.stat().st_mode & 0o777) == (0, False, 0o600)
    assert LoginBook(home).program(token)
    assert "is there already" in command("server", "login", "token", "another", "--home", home, "--out", out)[2]
    assert LoginBook(home).program(out.read_text().strip())
    out.unlink()
    assert "is there already" in command(*words)[2]
    assert not out.exists()


def test_a_folder_or_a_name_that_is_not_there_is_said(command, home, tmp_path):
    assert "no such folder" in command("server", "login", "list", "--home", tmp_path / "none")[2]
    assert "no login lead" in command("server", "login", "remove", "lead", "--home", home)[2]
    LoginBook(home).path.write_text('{"persons": [{"name": "lead"}]}')
    code, _, err = command("server", "login", "list", "--home", home)
    assert (code, "persons.0.salt" in err) == (2, True)


def test_a_page_for_other_machines_without_a_login_says_what_to_type(command, home, tmp_path):
    (tmp_path / "run").mkdir()
    words = ("server", "watch", tmp_path / "run", "--home", home, "--web", "0", "--address", "0.0.0.0")
    code, _, err = command(*words)
    assert (code, "fedgraft server login add NAME" in err) == (2, True)
