"""What `fedgraft server actions` shows, and who may no longer be in it."""

from __future__ import annotations

from pathlib import Path

from fedgraft.common.base.console.terminal import ERR, say
from fedgraft.common.base.files import canonical_json
from fedgraft.common.identity.persons import fingerprint_of
from fedgraft.server.provisioning.actions import ActionLog, ByWhom
from fedgraft.server.watch.login.login_book import LoginBook


def show_actions(home: Path) -> int:
    """A line for each, and what does not hold; 1 if there is such."""
    log = ActionLog(home)
    for line in log.entries():
        signed = ", not signed" if line.signed is None else f", signed with {fingerprint_of(line.signed.key)}"
        what = canonical_json(line.about).decode()
        say(f"{line.seq + 1}. {line.at} {line.action} {what} by {line.by or 'nobody named'}{signed}")
    for fault in (faults := log.faults()):
        ERR.print(f"{log.path}: {fault}.", markup=False, soft_wrap=True)
    if not log.entries():
        say("Nobody has done anything yet.")
    return 1 if faults else 0


def remove_person(home: Path, name: str, by: ByWhom) -> None:
    """Remove a person of a server or an authority."""
    ActionLog(home).remove_person(name, by)
    say(f"{name} signs nothing here any more. What they had signed stands.")
    if LoginBook(home).named(name) is not None:
        say(f"{name} may still read the live page: fedgraft server login remove {name!r} --home {home}")
