"""What a hospital's people type for evidence of a run: `fedgraft site audit` and `fedgraft site passport`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedgraft.client.evidence.audit import audit
from fedgraft.client.evidence.passport import passport
from fedgraft.client.evidence.statement import Statement
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.files import write_json
from fedgraft.common.evidence.audit_sheet import audit_in_words
from fedgraft.common.evidence.passport import passport_in_words


def audit_run(home: Path | None, run: Path, *, as_json: bool) -> int:
    """Attack the run's model, and write the signed sheet; the exit code, 1 if members are found."""
    statement = Statement.of(home, run)
    demand_place(statement.folder)
    found = audit(statement)
    document = statement.write("audit", {"audit": found}, audit_in_words(found))
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for line in audit_in_words(found):
            say(line)
        say("")
        say(f"Signed with the key {document.fingerprint()}: {statement.folder / 'audit.json'}, and as text audit.txt")
        say("No patient is in it, but its figures tell something of all of them: your people decide who gets it.")
    return int(any(row.get("finds_members", False) for row in found["membership"]))


def write_passport(home: Path | None, run: Path, out: Path | None) -> None:
    """Write the site's signed passport of a run, and say what is in it."""
    statement = Statement.of(home, run)
    demand_place(out or statement.folder, file=out is not None)
    parts = passport(statement)
    document = statement.write("passport", parts)
    target = statement.folder / "passport.json"
    if out is not None:
        write_json(out, document.plain(), private=True)
        target = out
    for line in passport_in_words(document):
        say(line)
    say(f"Signed with the key {document.fingerprint()}: {target}")
    say("It is for others to read: see that your people agree before you hand it on.")
