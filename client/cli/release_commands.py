"""What a hospital's people type about answers that are held: `fedgraft site release`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Literal, cast

from fedgraft.client.enrolment.config import read_site, site_home
from fedgraft.client.evidence.release import HeldRelease, sheet_in_words
from fedgraft.client.governance.release.held_answers import HeldAnswer, HeldAnswers, studies_held
from fedgraft.common.base.console.terminal import say
from fedgraft.common.base.errors import InputError
from fedgraft.common.evidence.passport import ledger_in_words
from fedgraft.common.identity.author import Author, author

What = Literal["show", "audit", "sign", "refuse"]


def chosen(**wanted: bool) -> What:
    """The one thing that was asked for; to show, if nothing was. InputError for two."""
    asked = [name for name, said in wanted.items() if said]
    if len(asked) > 1:
        raise InputError(f"Give one of {', '.join('--' + name for name in asked)}.")
    return cast("What", asked[0]) if asked else "show"


def release(
    home: Path | None, ref: str | None, what: What, by: tuple[str | None, Path | None], *, as_json: bool
) -> None:
    """List what is held; or show, attack, sign or refuse the answer to one study.

    `by` is a name, and the file of its passphrase if there is one.
    """
    if ref is None:
        if what != "show":
            raise InputError(f"--{what} needs a study.", fix=f"fedgraft site release STUDY --{what}")
        _list(home, as_json=as_json)
        return
    one = HeldRelease.of(home, ref)
    if what == "audit":
        for line in sheet_in_words(one.audit()):
            say(line)
        _say_limits(one)
    elif what == "show":
        _show(one, as_json=as_json)
    else:
        who = author(one.home, *by, required=one.config.policy.persons == "required")
        if who is None:
            raise InputError("Nobody is named.", fix="Say who decides: --by NAME.")
        _decide(one, what, who)


def _decide(one: HeldRelease, what: Literal["sign", "refuse"], by: Author) -> None:
    done = one.decide("signed" if what == "sign" else "refused", by)
    held = one.held
    if what == "sign":
        say(f"Signed by {done.by}, {done.at}: the answer {held.digest[:12]} to exchange {held.exchange} may leave.")
        say("It goes when the coordinator asks for it again, while the site is started.")
    else:
        say(f"Refused by {done.by}, {done.at}: nothing more of study {one.study.name} leaves this site.")
        say("The coordinator is told release_refused, and nothing else. What was charged to the ledger stays charged.")


def _list(home: Path | None, *, as_json: bool) -> None:
    config = read_site(site_home(home))
    every = [one for digest in studies_held(config.state) for one in HeldAnswers(config.state, digest).all()]
    if as_json:
        rows = [{**one.facts, "digest": one.digest, "decision": _decision(one)} for one in every]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    if not every:
        say("This site holds nothing.")
    for one in every:
        state = "WAITS" if one.decision is None else f"{one.decision.decision} by {one.decision.by}, {one.decision.at}"
        say(f"{one.study[:12]} {one.facts['study_name']}, exchange {one.exchange}, held {one.facts['held']}: {state}")


def _show(one: HeldRelease, *, as_json: bool) -> None:
    content = _content(one)
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    facts, sizes = one.held.facts, content["leaves"]
    say(f"Study {one.study.name} ({one.study.digest})")
    say(f"What would leave in exchange {one.held.exchange} (stage {facts['stage']}, round {facts['round']}):")
    say(f"  {sizes['entries']} entries or sums, {sizes['numbers']:,} numbers, {sizes['bytes']:,} bytes")
    for kind, bytes_ in sizes["kinds"].items():
        say(f"    {kind}: {bytes_:,} bytes")
    say(f"  figures of {', '.join(facts['metrics']) or 'no task'}, {sizes['bytes_of_figures']:,} bytes")
    say(f"  numbers beside them: {json.dumps(facts['words'], ensure_ascii=False)}")
    say(f"  on the grounds: {facts['grounds']}")
    if facts["secure_aggregation"]:
        say("  masked when it leaves, so that only the sum over several sites can be read")
    say(f"Privacy: {ledger_in_words(content['ledger'])}")
    sheet = content["audit"]
    for line in sheet_in_words(sheet) if sheet else [f"No attack on it was made: {_command(one)} --audit"]:
        say(line)
    decided = one.held.decision
    if decided is not None:
        say(f"Decided: {decided.decision} by {decided.by}, {decided.at}.")
        return
    _say_limits(one)
    say(f"Held since {facts['held']}; the study waits {one.study.rounds.release_wait_h:g} hours. To decide:")
    say(f"  {_command(one)} --sign --by NAME")
    say(f"  {_command(one)} --refuse --by NAME")


def _content(one: HeldRelease) -> dict[str, Any]:
    facts = one.held.facts
    kinds: dict[str, int] = {}
    for key, own in facts["tensors"].items():
        kind = key.rpartition("/")[0] or key.partition(".")[0]
        kinds[kind] = kinds.get(kind, 0) + own["bytes"]
    figures = [own for task in facts["metrics"].values() for own in task.values()]
    return {
        **facts,
        "digest": one.held.digest,
        "leaves": {
            "entries": len(facts["tensors"]),
            "numbers": sum(math.prod(own["shape"]) for own in facts["tensors"].values()),
            "bytes": sum(own["bytes"] for own in facts["tensors"].values()),
            "kinds": dict(sorted(kinds.items())),
            "bytes_of_figures": sum(own["bytes"] for own in figures),
        },
        "ledger": one.price(),
        "audit": one.sheet(),
        "unmet": list(one.unmet()),
        "decision": _decision(one.held),
    }


def _say_limits(one: HeldRelease) -> None:
    unmet = one.unmet()
    for line in unmet:
        say(f"NOT MET: {line}.")
    if not unmet:
        say("All that the policy demands before a signature is met.")


def _decision(held: HeldAnswer) -> dict[str, Any] | None:
    return None if held.decision is None else held.decision.model_dump(mode="json")


def _command(one: HeldRelease) -> str:
    return f"fedgraft site release {one.study.digest[:12]}"
