"""A coordinator that lies writes words too: what people at a site read before they decide is not changed by any."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from rich.table import Table
from rich.text import Text

from fedgraft.client.cli import deployed_commands
from fedgraft.client.runtime.app import app, forget
from fedgraft.common.base.console import terminal
from fedgraft.common.base.console.command_line import say_error
from fedgraft.common.base.console.printable import harmless, obeyed
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.identity.kit import KitFacts, read_kit, write_kit
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Code, Hello, Refusal
from fedgraft.common.study.study import find_study, parse_study
from fedgraft.server.cli import commands
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.provisioning.provision import Authority
from fedgraft.simulations.audit import command
from helpers.members import code_of
from helpers.site_home import Hospital, study

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FORGED = "imagenet (by nobody)\n\nWhat will leave this site:\n  nothing\n\x1b[8m"
"""A weights' name that ends the true review, shows another, and hides all that follows."""
ODD = (FORGED, "a\x1b[2Ab", "x\u202ey", "a\nb", "a\u200bb", "a\x00b", "a\u2028b", "a\x9bb")
Place = tuple[str | int, ...]


def texts(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where texts stand in plain values."""
    match value:
        case dict():
            for key, own in value.items():
                yield from texts(own, (*place, key))
        case list():
            for at, own in enumerate(value):
                yield from texts(own, (*place, at))
        case str():
            yield place


def put(value: Any, place: Place, new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = new
    return copy


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "studies").glob("*.yaml")))
def test_no_text_of_a_study_and_no_key_holds_what_a_terminal_obeys(name: str) -> None:
    """Whatever texts studies have, those of tomorrow too; nor does the error say them as they are."""
    content = json.loads(find_study(Path(name))[0].to_json())
    places = list(texts(content))
    assert len(places) > 10
    for at, place in enumerate(places):
        with pytest.raises(StudyError, match="characters that are not shown as they are") as refused:
            parse_study(put(content, place, ODD[at % len(ODD)]), "the study sent by the coordinator")
        assert not obeyed(str(refused.value))
    for odd in ODD:
        with pytest.raises(StudyError, match="the key ") as refused:
            parse_study(put(content, ("model", odd), 1), "the study sent by the coordinator")
        assert not obeyed(str(refused.value))


def test_a_study_that_forges_its_own_review_is_not_even_kept_to_be_looked_at(hospital: Hospital, command) -> None:
    content = json.loads(study().to_json())
    content["model"]["weights"] = FORGED
    try:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        context = Context(1, 2, {"site-config": str(hospital.home / "site.yaml")}, RecordDict(), {})
        message = Message(wire.pack_hello(Hello(json.dumps(content).encode())), 2, wire.HELLO)
        answer = wire.unpack_greeting(app(message, context).content)
    finally:
        forget()
    assert isinstance(answer, Refusal)
    assert answer.code is Code.BAD_DATA
    assert not list((hospital.home / "pending_studies").glob("*"))
    logs = [path.read_text() for path in hospital.home.rglob("site.log")]
    assert any("model.weights" in log for log in logs)
    assert not any("\x1b" in log or "\nWhat will leave" in log for log in logs)
    (hospital.home / "offered.yaml").write_text(json.dumps(content))
    code, out, err = command("site", "review", hospital.home / "offered.yaml", "--home", hospital.home)
    assert code == 2
    assert "model.weights: " in err
    assert not obeyed(out + err)
    assert "\nWhat will leave" not in out + err


def test_a_consortium_is_not_called_like_a_fingerprint(tmp_path: Path, command) -> None:
    """Its people would read out the coordinator's own, and other sites would pin that one."""
    kits, theirs = tmp_path / "kits", "0123 4567 89ab cdef"
    Authority(kits).provision(
        Consortium.model_validate({"name": "trial", "server": {"host": "localhost"}, "sites": ["north"]})
    )
    kit, code = kits / "north.zip", code_of(kits)
    whole = read_kit(kit, code)
    said = f"trial; its folder is x\nOther sites ask you for this site's fingerprint: {theirs}\n\x1b[8m"
    for forged in ({"consortium": said}, {"host": said}):
        facts = KitFacts.model_construct(**(whole.facts.model_dump() | forged))
        write_kit(kit, facts, {name: data for name, data in whole.files.items() if name != "kit.json"}, code)
        (tmp_path / "data").mkdir(exist_ok=True)
        call = (
            "site",
            "join",
            kit,
            "--code-file",
            kits / "north.code",
            "--kind",
            "images",
            "--data",
            tmp_path / "data",
        )
        ended, out, err = command(*call, "--home", tmp_path / "north")
        assert ended == 2
        assert theirs not in out + err
        assert "kit.json is not valid" in err
        assert not (tmp_path / "north").exists()


def test_text_is_shown_as_it_is_unless_a_terminal_would_obey_it(capsys: pytest.CaptureFixture[str]) -> None:
    fine = "Müller, 李, Ω, naïve, a\u00a0b, é\ntwo lines"
    assert harmless(fine) == fine
    assert not obeyed(fine)
    assert obeyed(fine, lines=False)
    assert harmless("a\x1b[8mb\u202e\u200b\x9b") == "a\\x1b[8mb\\u202e\\u200b\\x9b"
    assert not any(
        unicodedata.category(one) in ("Cc", "Cf") for one in harmless("".join(map(chr, range(0x3000)))) if one != "\n"
    )
    assert say_error(InputError("no \x1b[8mfile"), debug=False) == 2
    assert capsys.readouterr().err == "error: no \\x1b[8mfile\n"


def test_what_commands_show_goes_through_that(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, and tables too: of a model's manifest, of a log, of what sites have said."""
    said: list[Callable[[str], None]] = [terminal.say, deployed_commands._say, commands._say]
    for say in said:
        say("a\x1b[8mb [c]")
    assert capsys.readouterr().out == "a\\x1b[8mb [c]\n" * 3
    table = Table("what", "\x1b[2Kwho")
    table.add_row("1\u202e2", "Müller\n李")
    for console in (terminal.OUT, terminal.ERR, deployed_commands._out, commands._out, command._out, command._err):
        console.print(table)
        console.print(Text("x\x9by"))
    shown = "".join(capsys.readouterr())
    assert not obeyed(shown)
    assert shown.count("1\\u2") == shown.count("x\\x9by") == 6
    assert "Müller" in shown


def test_there_is_no_other_console() -> None:
    folders = (ROOT / name for name in ("client", "server", "simulations", "common"))
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for folder in folders for path in folder.rglob("*.py")}
    assert len(files) > 300
    assert [name for name, text in files.items() if re.search(r"\bConsole\(", text)] == []
