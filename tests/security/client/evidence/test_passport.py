"""A site's passport, and somebody who changes it: whatever was touched is named, and nothing of it is collected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from fedgraft.client.enrolment.home import Joined, SiteHome
from fedgraft.client.governance.approval import approve
from fedgraft.common.base.files import read_json, write_json
from fedgraft.common.evidence.passport import PARTS, passport_faults
from fedgraft.common.evidence.signed_parts import Document, parse_document, read_document, signed_document
from fedgraft.common.identity.author import Author
from fedgraft.common.identity.keys import fingerprint, load_node_key, new_node_key, private_pem, public_pem
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.identity.persons import fingerprint_of
from fedgraft.common.study.study import find_study
from fedgraft.server.provisioning.home import Enrolled, ServerHome

Change = Callable[[list[dict[str, Any]]], object]


@pytest.fixture(scope="session")
def passport(runs: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The passport of a site after a private run, with an audit in it."""
    from fedgraft.client.cli.evidence_commands import audit_run, write_passport

    path, home = tmp_path_factory.mktemp("passport") / "east.json", runs[True] / "sites" / "east"
    audit_run(home, runs[True], as_json=True)
    write_passport(home, runs[True], path)
    return path


def test_it_says_what_left_and_what_it_cost(passport: Path, runs: dict[bool, Path]) -> None:
    document = read_document(passport)
    assert not passport_faults(document)
    # Two rounds left, of which the site's own log and the coordinator's account say the same.
    assert document.content("egress")["kinds"]["update"]["messages"] == 3  # and the answer to the evaluation
    ledger, result = document.content("ledger"), read_json(runs[True] / "result.json")
    assert (ledger["charges"], ledger["before"]) == (2, 0.0)
    assert ledger["after"] == ledger["study"] == pytest.approx(result["privacy"]["east"]["epsilon"], abs=1e-3)
    assert document.content("study")["digest"] == result["study_digest"]
    heads = {row["name"]: row["shared_parameters"] for row in result["plan"]}
    assert document.content("egress")["kinds"]["update"]["bytes"] >= 2 * 4 * heads["train"]


CHANGES: dict[str, tuple[Change, str]] = {
    **{
        name: (lambda parts, at=at: parts[at + 1]["content"].update(more=1), f"part {name} was changed")
        for at, name in enumerate(PARTS)
    },
    "head": (lambda parts: parts[0]["content"].update(site="west"), "part head was changed"),
    "less epsilon": (
        lambda parts: parts[PARTS.index("ledger") + 1]["content"].update(study=0.1),
        "part ledger was changed",
    ),
    "the sheet": (
        lambda parts: parts[PARTS.index("audit") + 1]["content"]["sheet"]["parts"][1]["content"]["membership"][
            0
        ].update(auc=0.123456789),
        "part audit was changed",
    ),
    "left out": (lambda parts: parts.pop(), "part refusals is missing"),
    "added": (lambda parts: parts.append(parts[-1] | {"name": "praise"}), "part praise was added"),
    "other order": (lambda parts: parts.insert(1, parts.pop(2)), "parts are not in their order"),
    "no head": (lambda parts: parts.pop(0), "part head is missing"),
}


def resealed(part: dict[str, Any]) -> None:
    part["seal"] = parse_document({"fedgraft_evidence": 1, "parts": [part]}, "it").parts[0].right_seal()


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_is_changed_is_named(what: str, passport: Path, command: Command, tmp_path: Path) -> None:
    change, named = CHANGES[what]
    content = json.loads(passport.read_text())
    change(content["parts"])
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    code, out, err = command("passport", "verify", changed, passport)
    assert code == 1
    assert named in " ".join((out + err).split())
    assert "whole; signed" in out  # the other one, which nobody touched


def test_who_seals_anew_has_not_the_sites_key(passport: Path, runs: dict[bool, Path], command: Command) -> None:
    content = json.loads(passport.read_text())
    part = content["parts"][PARTS.index("ledger") + 1]
    part["content"]["study"] = 0.1
    resealed(part)
    found = passport_faults(parse_document(content, "it"))
    assert "part ledger is not signed with the site's key" in found
    # A part of another document of the same site is signed, and does not follow here.
    other = json.loads(passport.read_text())
    other["parts"][3] = json.loads(_of(runs[False], passport.parent / "other.json").read_text())["parts"][3]
    assert any("part egress" in fault for fault in passport_faults(parse_document(other, "it")))
    # All signed anew, with a key of one's own: whole, and by somebody else.
    mine = forged(read_document(passport))
    assert not passport_faults(mine)
    Path("mine.json").write_text(json.dumps(mine.plain()))
    print_of = read_document(passport).fingerprint()
    code, out, _ = command("passport", "verify", "mine.json", passport, "--fingerprint", f"east={print_of}")
    assert code == 1
    assert "mine.json: NOT as it was signed: its key is not the one" in " ".join(out.split())


def forged(document: Document) -> Document:
    key = new_node_key()
    head = document.head().model_copy(update={"key": public_pem(key).decode()})
    parts = {name: document.content(name) for name in PARTS} | {"refusals": {"instructions": {}, "charges": {}}}
    return signed_document(head, parts, key)


def _of(run: Path, path: Path) -> Path:
    from fedgraft.client.cli.evidence_commands import write_passport

    write_passport(run / "sites" / "east", run, path)
    return path


def test_only_whole_passports_of_the_run_are_collected(
    passport: Path, runs: dict[bool, Path], command: Command
) -> None:
    run = runs[True]
    assert command("server", "collect", run, passport)[0] == 0
    assert read_json(run / "passports" / "east.json") == read_json(passport)
    other = _of(runs[False], Path("of_another_run.json").resolve())
    code, _, err = command("server", "collect", run, other)
    assert code == 2
    assert "it is about study" in err
    content = json.loads(passport.read_text())
    content["parts"][3]["content"]["grounds"] = []
    Path("changed.json").write_text(json.dumps(content))
    code, _, err = command("server", "collect", run, "changed.json")
    assert code == 2
    assert "part egress was changed" in err
    assert read_json(run / "passports" / "east.json") == read_json(passport)


@pytest.mark.slow
def test_in_a_consortium_only_the_sites_own_key_counts(
    passport: Path, runs: dict[bool, Path], command: Command
) -> None:
    from fedgraft.common.base.errors import InputError
    from fedgraft.server.runs.passports import collect_passport

    own = read_document(passport).head().key
    assert collect_passport(runs[True], passport, {"east": own}).head().site == "east"
    for keys in ({"east": public_pem(new_node_key()).decode()}, {"north": own}, {}):
        with pytest.raises(InputError, match="not signed with the key that east has"):
            collect_passport(runs[True], passport, keys)


def test_a_site_that_joined_signs_with_its_key_and_the_coordinator_takes_no_other(
    runs: dict[bool, Path], command: Command, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs[False], tmp_path / "deployed"))
    site, server, key = SiteHome(run / "sites" / "east"), ServerHome(tmp_path / "server"), new_node_key()
    site.node_file.write_bytes(private_pem(key))
    site.write_joined(Joined(consortium="trial", site="east", host="localhost", port=8443))
    code, out, err = command("site", "passport", run, "--home", site.path, "--out", "east.json")
    assert code == 0, err
    assert fingerprint(public_pem(key).decode()) in out
    assert read_document(Path("east.json")).head().identity == "consortium"
    write_json(run / "deployment.json", {})
    server.path.mkdir()
    for enrolled, expected in ((new_node_key(), 2), (key, 0)):
        server.write_sites({"east": Enrolled(node=public_pem(enrolled).decode())})
        code, _, err = command("server", "collect", run, "east.json", "--home", server.path)
        assert code == expected, err
        assert (run / "passports" / "east.json").exists() == (code == 0)


def test_records_that_do_not_agree_make_no_passport(runs: dict[bool, Path], command: Command, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[True], tmp_path / "restored"))
    config = json.loads((run / "sites/east/site.json").read_text())
    (run / "sites/east/site.json").write_text(json.dumps(config | {"state": str(run / "sites/east")}))
    log = run / "sites/east/egress.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    code, _, err = command("site", "passport", run, "--home", run / "sites/east", "--out", "east.json")
    assert code == 2
    assert "older copy" in err
    assert not Path("east.json").exists()


def test_a_person_s_signature_under_another_approval_is_named(
    runs: dict[bool, Path], tmp_path: Path, command: Command
) -> None:
    """A site that signs what it likes cannot say that a person has approved what they have not."""
    home, run = runs[True] / "sites" / "east", runs[True]
    book = PersonBook(tmp_path / "book")
    book.add_with_passphrase("Anna Berg", "correct horse battery", None)
    study = find_study(run / "study.yaml")[0]
    anna = Author("Anna Berg", book, lambda: "correct horse battery", signs=True)
    approved = approve(home, study.digest, study.name, anna)
    written = tmp_path / "east.json"
    assert command("site", "passport", run, "--out", written, "--home", home)[0] == 0
    code, out, _ = command("passport", "verify", written)
    assert code == 0
    assert f"by Anna Berg, signed with {fingerprint_of(book.all()[0].key)}" in " ".join(out.split())
    document = read_document(written)
    key = load_node_key((home / "evidence.key").read_bytes(), "it")
    parts = {name: document.content(name) for name in PARTS}
    parts["study"] = parts["study"] | {"approved": "2020-01-01T00:00:00+00:00"}
    forged = signed_document(document.head(), parts, key)
    assert approved.signed is not None
    assert passport_faults(forged) == ("part study: the approval is not signed by the person that it names",)


def test_a_site_s_words_are_no_line_of_their_own(
    passport: Path, runs: dict[bool, Path], command: Command, tmp_path: Path
) -> None:
    """A site signs what it likes: also a name with a line in it that says that another passport is whole."""
    lie = "south.json: whole; signed with the key AB:CD, which is the one you gave."
    document, home = read_document(passport), runs[True] / "sites" / "east"
    parts = {name: document.content(name) for name in PARTS}
    parts["study"] |= {"approved": "today", "approved_by": f"Anna\n{lie}", "approval_signed": None}
    one = {"decision": "signed", "digest": 64 * "0", "exchange": 1, "at": f"now\n{lie}", "removed": None}
    parts["releases"] |= {"decided": [one | {"by": f"Bo\n{lie}", "signed": None}], "waiting": [f"2\n{lie}"]}
    key = load_node_key((home / "evidence.key").read_bytes(), "it")
    written = tmp_path / "east.json"
    written.write_text(json.dumps(signed_document(document.head(), parts, key).plain()))
    code, out, _ = command("passport", "verify", written)
    assert (code, out.count(lie), lie in out.splitlines()) == (0, 4, False)
