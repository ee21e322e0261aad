"""Who did what with a server: where it has persons one of them signs first, and no line says what nobody signed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import CONFIGS, sha256_file
from fedgraft.common.identity.enrolment import Enrolment
from fedgraft.common.identity.person_book import BOOK, PersonBook
from fedgraft.common.identity.persons import PersonKey, new_person_key, open_person_key, signed_by
from fedgraft.server.provisioning.actions import ACTIONS, Action, ActionLog
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.provisioning.provision import Authority
from fedgraft.server.watch.login.login_book import LoginBook
from helpers.members import joined

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
    (tmp_path / "phrase").touch(0o600)
    (tmp_path / "phrase").write_text(PHRASE)
    return tmp_path / "phrase"


def signed_for(name: str, phrase: Path) -> tuple[str, ...]:
    return ("--by", name, "--passphrase-file", str(phrase))


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.slow
def test_nothing_is_done_before_a_person_has_signed(command, kits, phrase, tmp_path):
    (tmp_path / "wrong").touch(0o600)
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
    assert [line.rpartition(" by ")[2] for line in out.splitlines()] == [
        "nobody named, not signed",
        "somebody, not signed",
    ]


@pytest.fixture(scope="module")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four actions of two persons."""
    kits = Path(shutil.copytree(made, tmp_path_factory.mktemp("written") / "kits"))
    phrase = kits / "phrase"
    phrase.touch(0o600)
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


@pytest.mark.slow
def test_a_person_who_was_removed_signs_nothing_more_and_what_they_did_stands(command, written, tmp_path):
    kits = Path(shutil.copytree(written, tmp_path / "kits"))
    folder, phrase = kits / "authority", kits / "phrase"
    before = content(folder)
    for by in ((), signed_for("lead", phrase), signed_for("stranger", phrase)):
        assert command("server", "remove-person", "lead", "--home", folder, *by)[0] == 2
    assert command("server", "remove-person", "none", "--home", folder, *signed_for("lead", phrase))[0] == 2
    assert content(folder) == before
    LoginBook(folder).set_password("lead", "twelve letters, and more")
    code, out, _ = command("server", "remove-person", "lead", "--home", folder, *signed_for("deputy", phrase))
    assert (code, "may still read the live page" in out) == (0, True)
    assert ActionLog(folder).entries()[-1].action == "remove person"
    assert ActionLog(folder).faults() == []
    assert command("server", "renew", "north", "--out", kits, *signed_for("lead", phrase))[0] == 2
    assert "Another person" in command("server", "remove-person", "deputy", "--home", folder, "--by", "deputy")[2]
    # With the removed key, which is still in its file, at the end of the log.
    lines = [json.loads(line) for line in (folder / ACTIONS).read_text().splitlines()]
    lines = sealed_again([*lines, lines[0] | {"about": {"site": "east"}}])
    key = open_person_key(folder / "persons" / "lead.key", PHRASE)
    lines[-1]["signed"] = signed_by("lead", key, Action.model_validate(lines[-1]).words()).model_dump(mode="json")
    (folder / ACTIONS).write_text("".join(json.dumps(line) + "\n" for line in sealed_again(lines)))
    assert ActionLog(folder).faults() == ["line 6: lead, as this folder knows them, has not signed it"]


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


@pytest.fixture
def authority(written: Path, tmp_path: Path) -> Path:
    """The authority's folder of `written`, to be changed."""
    return Path(shutil.copytree(written / "authority", tmp_path / "authority"))


def rewrite(folder: Path, change: Callable[[Lines], Lines]) -> None:
    """By hand, with all digests right."""
    lines = change([json.loads(line) for line in (folder / ACTIONS).read_text().splitlines()])
    (folder / ACTIONS).write_text("".join(json.dumps(line) + "\n" for line in sealed_again(lines)))


def test_what_was_signed_for_the_authority_is_none_of_the_server_s(written, tmp_path):
    """Both have one certificate, and may have the same persons."""
    kits = Path(shutil.copytree(written, tmp_path / "kits"))
    for name in (BOOK, ACTIONS):
        shutil.copy(kits / "authority" / name, kits / "server" / name)
    assert ActionLog(kits / "server").faults()[0] == "line 1: is of another server"


def test_what_nobody_has_signed_is_in_nobody_s_mouth(command, authority, written):
    """All lines are replaced by one without a signature, so that none before it has one."""
    rewrite(authority, lambda lines: [lines[0] | {"signed": None, "about": {"site": "south"}}])
    code, out, err = command("server", "actions", "--home", authority)
    assert (code, "nobody has signed it, though there were persons" in err) == (1, True)
    assert out.endswith('{"site":"south"} by lead, not signed\n')


@pytest.mark.parametrize(
    "name", ["lead, signed with SHA256:AAAA", "lead\n2. run {} by lead", "l\u200dead", "le\u0430d"]
)
def test_a_name_that_stands_for_itself_says_no_more_than_who(kits, name):
    with pytest.raises(InputError, match="is no name"):
        ActionLog(kits / "server").record((name, None), "stop", {"runs": [], "server": True})
    assert ActionLog(kits / "server").entries() == ()


def test_an_older_book_lets_no_removed_person_in_again(written, authority):
    log, phrase, book = ActionLog(authority), written / "phrase", authority / BOOK
    older = book.read_bytes()
    log.remove_person("lead", ("deputy", phrase))
    book.write_bytes(older)
    told = "line 5: lead was removed, and persons.json does not have it"
    for by in ("lead", "deputy"):
        with pytest.raises(InputError, match=told):
            log.record((by, phrase), "renew", {"site": "north"})
    with pytest.raises(InputError, match="lead was removed"):
        log.remove_person("deputy", ("lead", phrase))
    key = open_person_key(authority / "persons" / "lead.key", PHRASE)

    def by_lead(lines: Lines) -> Lines:
        """As lead writes it by hand, while the older book is there."""
        line = lines[0] | {"about": {"site": "east"}}
        *_, made = sealed_again([*lines, line])
        line["signed"] = signed_by("lead", key, Action.model_validate(made).words()).model_dump(mode="json")
        return [*lines, line]

    rewrite(authority, by_lead)
    assert log.faults() == [told]
    log.remove_person("lead", ("deputy", phrase))
    assert log.faults() == ["line 6: lead, as this folder knows them, has not signed it"], "what came later stands not"


def test_a_removal_that_no_line_tells_of_is_named(written, authority):
    """Who has the folder writes it into the book, so that a person seems to have signed nothing."""
    PersonBook(authority).remove("lead", (), None, lambda _: None)
    assert "persons.json removes lead, and no line does" in ActionLog(authority).faults()
    with pytest.raises(InputError, match="no line does"):
        ActionLog(authority).record(("deputy", written / "phrase"), "renew", {"site": "north"})


def test_without_its_book_a_folder_that_had_persons_does_nothing(authority):
    (authority / BOOK).unlink()
    before = (authority / ACTIONS).read_bytes()
    with pytest.raises(InputError, match="A person must sign"):
        ActionLog(authority).record((None, None), "renew", {"site": "north"})
    assert (authority / ACTIONS).read_bytes() == before


def test_who_signs_while_they_are_removed_is_not_disowned(written, authority, monkeypatch):
    """The deputy takes their time to type the passphrase."""
    log, asked, typed = ActionLog(authority), threading.Event(), threading.Event()

    def slow(_: str) -> str:
        asked.set()
        assert typed.wait(60)
        return PHRASE

    monkeypatch.setattr("getpass.getpass", slow)
    with ThreadPoolExecutor(2) as pool:
        removing = pool.submit(log.remove_person, "lead", ("deputy", None))
        assert asked.wait(60)
        acting = pool.submit(log.record, ("lead", written / "phrase"), "renew", {"site": "north"})
        wait([acting], timeout=2)
        typed.set()
        removing.result(60)
        with contextlib.suppress(InputError):  # lead comes too late
            acting.result(60)
    assert log.faults() == []


def test_a_lost_end_of_a_line_loses_no_line(written, authority):
    path = authority / ACTIONS
    path.write_bytes(path.read_bytes()[:-1])
    ActionLog(authority).record(("lead", written / "phrase"), "renew", {"site": "north"})
    assert len(ActionLog(authority).entries()) == 5
    assert ActionLog(authority).faults() == []


def test_a_line_that_was_dated_back_is_named(authority):
    """By a person, with their own key."""
    key = open_person_key(authority / "persons" / "lead.key", PHRASE)

    def back(lines: Lines) -> Lines:
        lines[3]["at"] = "2020-01-01T00:00:00+00:00"
        words = Action.model_validate(lines[3]).words()
        lines[3]["signed"] = signed_by("lead", key, words).model_dump(mode="json")
        return lines

    rewrite(authority, back)
    assert ActionLog(authority).faults() == ["line 4: says that it is older than the one before it"]


@pytest.mark.parametrize("what", ["NaN", "1e999", r'"\ud800"'])
def test_what_json_cannot_hold_is_a_damaged_line(command, authority, what):
    path = authority / ACTIONS
    path.write_text(path.read_text().replace('"north"', what, 1))
    code, _, err = command("server", "actions", "--home", authority)
    assert (code, f"{ACTIONS}: line 1: is no JSON" in err) == (2, True)


def test_what_is_enrolled_is_what_was_signed_for(command, kits, phrase, tmp_path):
    """Another file takes the place of one while a passphrase is typed."""
    ours, theirs = (joined(kits, "north", tmp_path / name).path / "north.enrolment.json" for name in ("ours", "theirs"))
    slow = tmp_path / "fifo"
    os.mkfifo(slow, 0o600)
    with ThreadPoolExecutor(1) as pool:
        enrolling = pool.submit(command, "server", "enrol", ours, "--out", kits, *signed_for("lead", slow))
        with slow.open("w") as typed:
            shutil.copy(theirs, ours)
            typed.write(PHRASE)
        code, _, err = enrolling.result(60)
    assert (code, "is another file than it was" in err) == (2, True)
    assert json.loads((kits / "roster.json").read_text())["members"] == {}


def test_each_file_that_is_enrolled_is_in_the_line(command, kits, phrase, tmp_path):
    """They may have one name."""
    files = [tmp_path / site / "site.json" for site in ("north", "south")]
    for file, site in zip(files, ("north", "south"), strict=True):
        shutil.copy(joined(kits, site, tmp_path / site).path / f"{site}.enrolment.json", file)
    done = command("server", "enrol", *files, "--out", kits, "--grace", "5", *signed_for("lead", phrase))
    assert done[0] == 0, done
    (line,) = ActionLog(kits / "authority").entries()
    assert line.about == {"files": {str(file): sha256_file(file) for file in files}, "grace_hours": 5.0}


def test_who_makes_more_kits_signs_for_it(command, kits, phrase, tmp_path):
    file = tmp_path / "consortium.yaml"
    file.write_text(json.dumps({"name": "test", "server": {"host": "localhost"}, "sites": [*SITES, "west"]}))
    assert command("server", "provision", file, "--out", kits)[0] == 2
    assert not (kits / "west.code").exists()
    assert command("server", "provision", file, "--out", kits, *signed_for("lead", phrase))[0] == 0
    (line,) = ActionLog(kits / "authority").entries()
    assert (line.action, line.by, line.about["consortium"]["sites"]) == ("provision", "lead", [*SITES, "west"])


def test_a_name_that_is_no_text_is_said_to_be_none(command, kits, phrase):
    """As of files that were named in another alphabet."""
    for words in (("revoke", "nor\udcffth"), ("enrol", "nor\udcffth.json")):
        code, _, err = command("server", *words, "--out", kits, *signed_for("lead", phrase))
        assert (code, "is no text" in err) == (2, True)
    assert ActionLog(kits / "authority").entries() == ()


def test_who_is_shut_out_while_another_is_enrolled_stays_out(kits, tmp_path, monkeypatch):
    """Two people of the coordinator are at work at once."""
    homes = {site: joined(kits, site, tmp_path / site) for site in ("north", "south")}
    files = {site: home.path / f"{site}.enrolment.json" for site, home in homes.items()}
    Authority(kits).enrol(files["north"])
    looked, revoked, proves = threading.Event(), threading.Event(), Enrolment.proves

    def slow(enrolment: Enrolment, code: str) -> bool:
        looked.set()
        revoked.wait(2)
        return proves(enrolment, code)

    monkeypatch.setattr(Enrolment, "proves", slow)
    with ThreadPoolExecutor(2) as pool:
        enrolling = pool.submit(Authority(kits).enrol, files["south"])
        assert looked.wait(60)
        pool.submit(Authority(kits).revoke, "north").add_done_callback(lambda _: revoked.set())
        enrolling.result(60)
    sites = ServerHome(kits / "server").sites()
    assert (sites["north"].valid_keys(), len(sites["south"].valid_keys())) == ((), 1)
    assert [*json.loads((kits / "roster.json").read_text())["members"]] == ["south"]


def test_who_may_read_the_page_is_signed_for_too(command, kits, phrase, tmp_path):
    home, password = kits / "server", tmp_path / "password"
    PersonBook(home).add_with_passphrase("lead", PHRASE, None)
    password.touch(0o600)
    password.write_text("twelve letters, and more")
    asked = (
        ("add", "observer", "--password-file", password),
        ("token", "prometheus", "--out", tmp_path / "token"),
        ("remove", "observer"),
    )
    for words in asked:
        before = content(kits)
        code, _, err = command("server", "login", *words, "--home", home)
        assert (code, "person must sign" in err, content(kits)) == (2, True, before)
        assert command("server", "login", *words, "--home", home, *signed_for("lead", phrase))[0] == 0
    told = [(line.by, line.about["name"], line.about["does"]) for line in ActionLog(home).entries()]
    assert told == [
        ("lead", "observer", "password"),
        ("lead", "prometheus", "token"),
        ("lead", "observer", "remove"),
    ]
    assert "twelve" not in (home / ACTIONS).read_text()
