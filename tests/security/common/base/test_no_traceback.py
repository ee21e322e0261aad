"""Whatever is broken on a disk, a terminal shows a line that says what and where: no trace, no variables, no secret."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

from fedgraft import cli
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.common.base.files import home
from fedgraft.server.cli import commands as server_commands
from fedgraft.server.provisioning.home import ServerHome

JOIN = ("--kind", "images", "--data")


@dataclass(frozen=True)
class Folders:
    """A provisioned consortium, a site that joined, and what must never be shown."""

    root: Path

    @property
    def kits(self) -> Path:
        return self.root / "kits"

    @property
    def site(self) -> Path:
        return self.root / "site"

    @property
    def secrets(self) -> list[str]:
        """The code, and every line of the private keys."""
        keys = [self.site / "node.key", self.site / "masking.key", self.kits / "authority" / "ca.key"]
        lines = [line for key in keys if key.is_file() for line in key.read_bytes().decode("utf-8", "replace").split()]
        return [(ORIGINAL[0] if ORIGINAL else ""), *(line for line in lines if len(line) > 30)]


ORIGINAL: list[str] = []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Made by the commands themselves, in a process of its own."""
    folders = Folders(tmp_path_factory.mktemp("made"))
    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north", "south"]}
    (folders.root / "consortium.yaml").write_text(yaml.safe_dump(content))
    (folders.root / "data").mkdir()
    run = (sys.executable, "-m", "fedgraft")
    kit, words = folders.kits / "north.zip", folders.kits / "north.code"
    others = folders.kits / "south.zip", folders.kits / "south.code"
    for call in (
        ("server", "provision", "consortium.yaml"),
        ("site", "join", others[0], "--code-file", others[1], *JOIN, "data", "--home", "other"),
        ("server", "enrol", "other/south.enrolment.json"),
        ("site", "join", kit, "--code-file", words, *JOIN, "data", "--home", "site"),
    ):
        subprocess.run([*run, *map(str, call)], cwd=folders.root, check=True, capture_output=True)
    ORIGINAL[:] = [words.read_text().strip()]
    return folders


@pytest.fixture
def own(made: Folders, tmp_path: Path) -> Folders:
    """A copy to break, whose site's file names its own files."""
    copy = Folders(shutil.copytree(made.root, tmp_path / "own"))
    config = copy.site / "site.yaml"
    config.write_text(config.read_text().replace(str(made.root), str(copy.root)))
    return copy


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def a_list(path: Path) -> None:
    path.write_bytes(b"[1, 2]")


def nothing(path: Path) -> None:
    path.write_bytes(b"null")


def half_a_letter(path: Path) -> None:
    path.write_bytes(b'{"consortium": "\\ud800", "serial": 1, "members": {}, "signature": ""}')


def nested(path: Path) -> None:
    path.write_bytes(b'{"north": {"node": ["x"], "revoked": {"a": 1}}, "members": {"north": 3}, "server": 5}')


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


BREAKS = [empty, noise, half, folder, gone, deep, a_list, nothing, half_a_letter, nested, a_loop]

SITE_CALLS = {
    "start": (("site", "start"), ("joined.json", "node.key", "ca.crt")),
    "roster": (("site", "roster", "../kits/roster.json"), ("joined.json", "ca.crt", "roster.json", "site.yaml")),
    "rejoin": (
        ("site", "rejoin", "../kits/north.zip", "--code-file", "../kits/north.code"),
        ("joined.json", "ca.crt", "roster.json", "site.yaml", "../kits/north.zip", "../kits/north.code"),
    ),
    "check": (
        ("site", "check", "--part", "policy", "--part", "connection"),
        ("site.yaml", "joined.json", "ca.crt", "node.key", "roster.json", "masks.json", "masking.key"),
    ),
    "egress": (("site", "egress", "."), ("site.yaml",)),
    "budget": (("site", "budget", "."), ("site.yaml",)),
    "approve": (("site", "approve", "no-such-study"), ("site.yaml",)),
}

SERVER_CALLS = {
    "start": (
        ("server", "start"),
        ("server.json", "sites.json", "ca.crt", "gate.crt", "gate.key", "inner.crt", "inner.key"),
    ),
    "status": (("server", "status"), ("server.json", "ca.crt", "gate.crt")),
    "sites": (("server", "sites"), ("server.json", "ca.crt", "sites.json")),
    "stop": (("server", "stop", "--server"), ("server.json", "ca.crt")),
    "renew": (("server", "renew"), ("authority/ca.key", "authority/ca.crt", "authority/consortium.json")),
    "renew a site": (
        ("server", "renew", "north"),
        ("authority/ca.crt", "authority/consortium.json", "roster.json", "server/server.json"),
    ),
    "revoke": (
        ("server", "revoke", "north"),
        ("authority/ca.key", "authority/consortium.json", "roster.json", "server/sites.json"),
    ),
    "provision": (
        ("server", "provision", "../consortium.yaml"),
        ("../consortium.yaml", "authority/ca.key", "roster.json", "server/server.json", "server/sites.json"),
    ),
    "enrol": (
        ("server", "enrol", "../site/north.enrolment.json"),
        ("../site/north.enrolment.json", "authority/ca.key", "roster.json", "server/sites.json", "north.code"),
    ),
}

Command = Callable[..., tuple[int, str, str]]


def holds_nothing_back(own: Folders, outcome: tuple[int, str, str], *, broken: str) -> None:
    """The outcome of a command over something broken: one message, and nothing that is nobody's business."""
    code, out, err = outcome
    assert code in (0, 1, 2), (code, err)
    for text in (out, err):
        assert "Traceback" not in text
        assert 'File "' not in text
        assert not any(mark in text for mark in "╭│╰"), "a frame around a traceback"
        assert "locals" not in text
        assert not any(secret and secret in text for secret in own.secrets)
    if code:
        assert err.startswith("error: ") or "FAILS" in out, err
        assert "should not have happened" not in err, (broken, err)


def cases(calls: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> list[tuple[str, str]]:
    return [(name, path) for name, (_, paths) in calls.items() for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), cases(SITE_CALLS))
def test_a_site_s_broken_files_are_told_in_a_line(
    own: Folders, made: Folders, command: Command, monkeypatch, name, file
):
    call, _ = SITE_CALLS[name]
    monkeypatch.setenv("FEDGRAFT_SITE", str(own.site))
    for breaks in BREAKS:
        path = own.site / file
        before = path.read_bytes() if path.is_file() else None
        if before is None:
            return
        breaks(path)
        monkeypatch.chdir(own.site)
        holds_nothing_back(own, command_in(command, own.site, call), broken=f"{name} {file} {breaks.__name__}")
        mend(path, before)


@pytest.mark.parametrize(("name", "file"), cases(SERVER_CALLS))
def test_a_server_s_broken_files_are_told_in_a_line(own: Folders, command: Command, monkeypatch, name, file):
    call, _ = SERVER_CALLS[name]
    below = own.kits / "server" if (own.kits / "server" / file).exists() else own.kits
    monkeypatch.setenv("FEDGRAFT_SERVER", str(own.kits / "server"))
    out = () if name in ("start", "status", "sites", "stop") else ("--out", str(own.kits))
    for breaks in BREAKS:
        path = below / file
        if (name, file, breaks) == ("start", "sites.json", gone):
            continue  # a consortium without sites yet: the server starts
        before = path.read_bytes()
        breaks(path)
        outcome = command_in(command, own.kits, (*call, *out))
        holds_nothing_back(own, outcome, broken=f"{name} {file} {breaks.__name__}")
        if breaks is not gone:
            assert outcome[0] != 0 or breaks is nothing or file == "ca.crt", (name, file, breaks.__name__, outcome)
        mend(path, before)


def command_in(command: Command, folder: Path, call: tuple[str, ...]) -> tuple[int, str, str]:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return command(*call)
    finally:
        os.chdir(here)


def mend(path: Path, content: bytes) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        path.rmdir()
    path.write_bytes(content)


@pytest.mark.slow
def test_a_kit_that_was_damaged_on_its_way_tells_nothing_of_the_code(own: Folders, command: Command, tmp_path):
    """Bytes flipped, cut and doubled anywhere, by one seed; the code is the right one."""
    kit, words, draw = own.kits / "north.zip", own.kits / "north.code", random.Random(4)
    whole = kit.read_bytes()
    for number in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3, 30))):
            at = draw.randrange(len(content))
            match draw.choice(("flip", "cut", "double")):
                case "flip":
                    content[at] ^= 1 << draw.randrange(8)
                case "cut":
                    del content[at : at + draw.randrange(1, 60)]
                case _:
                    content[at:at] = content[at : at + 40]
        kit.write_bytes(bytes(content))
        target = tmp_path / f"joined{number}"
        outcome = command("site", "join", kit, "--code-file", words, *JOIN, own.root, "--home", target)
        holds_nothing_back(own, outcome, broken=f"kit {number}")


def test_an_unpacked_kit_with_a_strange_checksum_file_is_no_kit(own: Folders, command: Command, tmp_path):
    """Not even letters that cannot be compared: this printed the code, three times."""
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(own.kits / "north.zip", unpacked)
    (unpacked / "SHA256SUMS.mac").write_bytes(b"00 \xc3\xa4\xff")
    words = own.kits / "north.code"
    outcome = command("site", "join", unpacked, "--code-file", words, *JOIN, own.root, "--home", tmp_path / "x")
    holds_nothing_back(own, outcome, broken="mac")
    assert outcome[0] == 2
    assert "the code is not that of this kit" in outcome[2]


@pytest.mark.parametrize("breaks", [empty, noise, folder, gone, a_loop])
def test_a_code_file_that_is_none_is_named(own: Folders, command: Command, tmp_path, breaks):
    words = own.kits / "north.code"
    breaks(words)
    kit = own.kits / "north.zip"
    outcome = command("site", "join", kit, "--code-file", words, *JOIN, own.root, "--home", tmp_path / "x")
    holds_nothing_back(own, outcome, broken=breaks.__name__)
    assert outcome[0] == 2
    assert "north." in outcome[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "/nope"), "--data /nope: is no folder"),
        (("--data", "{data}", "--labels", "/nope.csv"), "--labels /nope.csv: is no file"),
        (("--data", "{data}", "--kind", "table"), "--data {data}: is no file"),
    ],
)
def test_data_that_are_not_there_are_no_site(own: Folders, command: Command, tmp_path, words, said):
    """It joined, and was told days later."""
    kit, code_file = own.kits / "north.zip", own.kits / "north.code"
    data = own.root / "data"
    typed = [word.format(data=data) for word in words]
    code, _, err = command("site", "join", kit, "--code-file", code_file, *typed, "--home", tmp_path / "x")
    assert code == 2
    assert said.format(data=data) in err
    assert not (tmp_path / "x").exists()


def fails(_: object, *, as_json: bool) -> None:
    passphrase = "correct-horse-battery"
    del as_json
    raise ZeroDivisionError(f"a fault of ours{'!' * len(passphrase)}")


def test_a_fault_of_our_own_is_a_line_too_and_its_trace_a_private_file(command: Command, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(server_commands, "show_sites", fails)
    code, out, err = command("server", "sites")
    assert code == 1
    assert "Traceback" not in out + err
    assert "correct-horse" not in out + err
    assert "a fault of ours" not in err, "its text may be about anything"
    assert "ZeroDivisionError in fails" in err
    assert "--debug" in err
    assert not (home() / "debug").exists()
    code, out, err = command("--debug", "server", "sites")
    assert code == 1
    assert "Traceback" not in out + err
    (trace,) = (home() / "debug").iterdir()
    assert str(trace) in err
    assert stat.S_IMODE(trace.stat().st_mode) == 0o600
    assert stat.S_IMODE(trace.parent.stat().st_mode) == 0o700
    text = trace.read_text()
    assert "ZeroDivisionError: a fault of ours" in text
    assert "in fails" in text
    assert "correct-horse-battery!" not in text.replace('passphrase = "correct-horse-battery"', "")


class Panic(BaseException):
    """What extensions in Rust raise, and is no Exception."""


def panics(_: object, *, as_json: bool) -> None:
    del as_json
    raise Panic("correct-horse-battery")


def fails_in_a_thread(_: object, *, as_json: bool) -> None:
    (thread := threading.Thread(target=panics, args=(_,), kwargs={"as_json": as_json})).start()
    thread.join()


@pytest.mark.parametrize(("breaks", "code"), [(panics, 1), (fails_in_a_thread, 0)])
def test_a_panic_and_a_thread_that_fails_are_a_line_too(command: Command, monkeypatch, breaks, code):
    """Neither is an Exception that comes to the front door; the interpreter would print both."""
    monkeypatch.setattr(server_commands, "show_sites", breaks)
    ended, out, err = command("server", "sites")
    assert ended == code
    assert out == ""
    assert "Panic in panics" in err
    assert "Traceback" not in err
    assert "correct-horse" not in err


def test_a_thread_that_fails_says_a_line_too(command: Command, monkeypatch):
    """Of a damaged list of events, which a thread of the command follows, the terminal showed a trace."""

    def in_a_thread(*_: object, as_json: bool) -> None:
        thread = threading.Thread(target=lambda: fails(None, as_json=as_json))
        thread.start()
        thread.join()

    monkeypatch.setattr(server_commands, "show_sites", in_a_thread)
    code, out, err = command("server", "sites")
    assert (code, out) == (0, "")
    assert "ZeroDivisionError in fails" in err
    assert "Traceback" not in err
    assert "a fault of ours" not in err


def test_a_known_error_has_a_trace_as_well_if_it_is_asked_for(own: Folders, command: Command, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    kit, words = own.kits / "north.zip", own.kits / "north.code"
    half(kit)
    call = ("site", "join", kit, "--code-file", words, *JOIN, own.root, "--home", tmp_path / "x")
    outcome = command("--debug", *call)
    holds_nothing_back(own, outcome, broken="kit")
    (trace,) = (home() / "debug").iterdir()
    assert "read_kit" in trace.read_text()
    assert ORIGINAL[0] not in trace.read_text()


def test_no_group_of_commands_prints_tracebacks_of_its_own():
    def groups(app: typer.Typer) -> list[typer.Typer]:
        return [app, *(deeper for info in app.registered_groups for deeper in groups(info.typer_instance))]

    found = groups(cli.app)
    assert len(found) >= 7
    assert not any(app.pretty_exceptions_enable or app.pretty_exceptions_show_locals for app in found)


def test_it_holds_for_the_program_itself(own: Folders, tmp_path):
    """In a process of its own, where nothing but the program decides what a terminal shows."""
    shutil.unpack_archive(own.kits / "north.zip", tmp_path / "unpacked")
    (tmp_path / "unpacked" / "SHA256SUMS.mac").write_bytes(b"00 \xc3\xa4\xff")
    call = ("site", "join", tmp_path / "unpacked", "--code-file", own.kits / "north.code", *JOIN, own.root)
    command = [sys.executable, "-m", "fedgraft", *map(str, call), "--home", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    holds_nothing_back(own, (done.returncode, done.stdout, done.stderr), broken="kit")


def test_the_originals_work(made: Folders):
    """What the tests break was whole."""
    assert SiteHome(made.site).roster().members.keys() == set()
    assert ServerHome(made.kits / "server").sites().keys() == {"south"}
    assert json.loads((made.site / "joined.json").read_text())["site"] == "north"
