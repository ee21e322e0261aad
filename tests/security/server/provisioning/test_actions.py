"""Who did what with a server: where it has persons one of them signs first, and no line says what nobody signed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.base.files import CONFIGS
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import PersonKey, new_person_key, signed_by
from fedgraft.server.provisioning.actions import ACTIONS, Action, ActionLog
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority

PHRASE = "a long passphrase"
SITES = ("north", "south", "east")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium whose authority has two persons, and whose server none; not to be changed."""
    kits = tmp_path_factory.mktemp("consortium") / "kits"
    Authority(kits).provision(
        Consortium.model_validate({"name": "test", "server": {"host": "localhost"}, "sites": list(SITES)})
    )
    book = PersonBook(kits / "authority")
    book.add_with_passphrase("lead", PHRASE, None)
    book.add_with_passphrase("deputy", PHRASE, ("lead", lambda: PHRASE))
    return kits


@pytest.fixture
def kits(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "kits"))


@pytest.fixture
def phrase(tmp_path: Path) -> Path:
    (tmp_path / "phrase").write_text(PHRASE)
    return tmp_path / "phrase"


def signed_for(name: str, phrase: Path) -> tuple[str, ...]:
    return ("--by", name, "--passphrase-file", str(phrase))


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.slow
def test_nothing_is_done_before_a_person_has_signed(command, kits, phrase, tmp_path):
    (tmp_path / "wrong").write_text("another passphrase")
    file = kits / "north.enrolment.json"
    file.write_text("{}")
    asked = (("revoke", "north"), ("renew", "north"), ("renew",), ("enrol", file))
    before = content(kits)
    for words in asked:
        for by in ((), ("--by", "stranger"), signed_for("lead", tmp_path / "wrong")):
            code, _, err = command("server", *words, "--out", kits, *by)
            assert code == 2, (words, by)
            assert "person must sign" in err or "cannot be opened" in err
    assert content(kits) == before
    assert command("server", "renew", "north", "--out", kits, *signed_for("lead", phrase))[0] == 0
    assert command("server", "renew", "--out", kits, *signed_for("deputy", phrase))[0] == 0
    code, out, err = command("server", "actions", "--home", kits / "authority")
    first, second = out.splitlines()
    assert (code, err) == (0, "")
    assert all(word in first for word in ("1. ", "renew", '"site":"north"', "by lead, signed with SHA256:"))
    assert "by deputy, signed with" in second


@pytest.mark.slow
def test_a_study_begins_and_goes_on_with_a_signature_alone(command, kits, phrase, tmp_path):
    home = kits / "server"
    PersonBook(home).add_with_passphrase("lead", PHRASE, None)
    begun = (
        "server",
        "run",
        CONFIGS / "studies" / "quickstart.yaml",
        "--home",
        home,
        "--out",
        tmp_path / "run",
        "--wait",
        "0",
    )
    code, _, err = command(*begun)
    assert (code, "person must sign" in err, (tmp_path / "run").exists()) == (2, True, False)
    assert command(*begun, *signed_for("lead", phrase))[0] == 1  # nobody is there
    asked = ("study", "ask", "quickstart", "--home", home, "--out", tmp_path / "asked", "--wait", "0")
    code, _, err = command(*asked)
    assert (code, "person must sign" in err, (tmp_path / "asked").exists()) == (2, True, False)
    assert command(*asked, *signed_for("lead", phrase))[0] == 1
    again = ("server", "run", "--resume", tmp_path / "run", "--home", home, "--wait", "0")
    assert command(*again)[0] == 2
    assert command(*again, *signed_for("lead", phrase))[0] == 1
    run, ask, resume = ActionLog(home).entries()
    assert [(one.action, one.by) for one in (run, ask, resume)] == [(kind, "lead") for kind in ("run", "ask", "resume")]
    assert run.about["study"] == ask.about["study"] == resume.about["study"]
    assert ActionLog(home).faults() == []


def test_without_persons_a_name_stands_for_itself(command, kits):
    shutil.rmtree(kits / "authority" / "persons")
    (kits / "authority" / "persons.json").unlink()
    assert command("server", "renew", "north", "--out", kits)[0] == 0
    assert command("server", "renew", "south", "--out", kits, "--by", "somebody")[0] == 0
    code, out, _ = command("server", "actions", "--home", kits / "authority")
    assert code == 0
    assert [line.rpartition(" by ")[2] for line in out.splitlines()] == ["nobody named", "somebody"]


@pytest.fixture(scope="module")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four actions of two persons."""
    kits = Path(shutil.copytree(made, tmp_path_factory.mktemp("written") / "kits"))
    phrase = kits / "phrase"
    phrase.write_text(PHRASE)
    for name, site in (("lead", "north"), ("deputy", "south"), ("lead", "east"), ("lead", "north")):
        ActionLog(kits / "authority").record((name, phrase), "revoke", {"site": site})
    return kits


Lines = list[dict[str, Any]]


def sealed_again(lines: Lines) -> Lines:
    """As somebody does who has the file and knows how it is made, but has nobody's key."""
    before = "0" * 64
    for number, line in enumerate(lines):
        line |= {"seq": number, "previous": before, "hash": ""}
        line["hash"] = before = Action.model_validate(line).seal()
    return lines


def changed(number: int, **changes: Any) -> Callable[[Lines], Lines]:
    return lambda lines: [line | changes if at == number else line for at, line in enumerate(lines)]


def in_another_s_name(lines: Lines) -> Lines:
    """Another key, under the name of a person who is in the book."""
    lines[3]["about"] = {"site": "south"}
    words = Action.model_validate(lines[3]).words()
    lines[3]["signed"] = signed_by("lead", STRANGER[0], words).model_dump(mode="json")
    return lines


STRANGER: list[PersonKey] = []
LIES: dict[str, Callable[[Lines], Lines]] = {
    "another site at the end": changed(3, about={"site": "south"}),
    "another action at the end": changed(3, action="renew"),
    "another time at the end": changed(3, at="2020-01-01T00:00:00+00:00"),
    "another person at the end": changed(3, by="deputy"),
    "another server at the end": changed(3, server="1" * 64),
    "one added by nobody": lambda lines: [*lines, lines[3] | {"seq": 4, "signed": None, "by": ""}],
    "another site": changed(1, about={"site": "north"}),
    "another action": changed(1, action="renew"),
    "another time": changed(1, at="2020-01-01T00:00:00+00:00"),
    "another person": changed(0, by="deputy"),
    "nobody's": changed(2, signed=None, by=""),
    "of another server": changed(0, server="1" * 64),
    "one taken out": lambda lines: lines[:1] + lines[2:],
    "the first taken out": lambda lines: lines[1:],
    "two in another order": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "one twice": lambda lines: [*lines, lines[3]],
    "the signature of another line": lambda lines: changed(3, signed=lines[0]["signed"])(lines),
    "in another's name": in_another_s_name,
}


@pytest.mark.parametrize("again", [False, True], ids=["as it is", "sealed again"])
@pytest.mark.parametrize("lie", LIES)
def test_whoever_changes_the_file_is_found_out(written, tmp_path, lie, again):
    folder = Path(shutil.copytree(written / "authority", tmp_path / "authority"))
    if not STRANGER:
        STRANGER.append(new_person_key(tmp_path / "stranger.key", PHRASE))
    assert ActionLog(folder).faults() == []
    lines = LIES[lie]([json.loads(line) for line in (folder / ACTIONS).read_text().splitlines()])
    lines = sealed_again(lines) if again else lines
    (folder / ACTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ActionLog(folder).faults() != []


def test_the_log_of_another_server_is_found_out(command, written, tmp_path):
    folder = Path(shutil.copytree(written / "authority", tmp_path / "authority"))
    (folder / "ca.crt").write_text((written / "server" / "gate.crt").read_text())
    code, _, err = command("server", "actions", "--home", folder)
    assert (code, err.count("is of another server")) == (1, 4)


def test_a_damaged_file_is_named_and_nothing_is_added_to_it(command, written, tmp_path):
    kits = Path(shutil.copytree(written, tmp_path / "kits"))
    path = kits / "authority" / ACTIONS
    text = path.read_text()
    for damaged in (text.replace('"site":"south"', '"site":"north"'), text[:-20], "{}\n" + text, "\x00\n"):
        path.write_text(damaged)
        code, _, err = command("server", "renew", "north", "--out", kits, *signed_for("lead", kits / "phrase"))
        assert (code, f"{ACTIONS}: line " in err) == (2, True)
        assert path.read_text() == damaged
