"""Settling what was lost of a site's records: in the open, by a person, and never in favour of whoever lost them.

What is assumed to have been spent is, study by study and kind of step by kind of step, the most that any of the records
tells of: the ledger, its witness, the egress log. An answer of which nobody knows the price is assumed to have cost all
that the policy lets one study cost. Every study that had begun ends at this site, since its masks and its progress may
have been forgotten too. All of it becomes a line of the egress log, and the assumed charges become rows of the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.approval import read_approvals
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.egress_files import EgressFiles
from fedgraft.client.governance.persons.settling import removals_in, remove_again
from fedgraft.client.governance.records import Records, TakenUp, kept_answers
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import Ledger, read_account, salvage
from fedgraft.client.privacy.ledger.small_records import ANSWERED, PUBLIC, SHOWN, SURVIVAL, UNKNOWN, remember
from fedgraft.client.privacy.ledger.spending import Account, Spending, largest, missing
from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.base.files import sha256_file
from fedgraft.common.identity.person_book import Removal
from fedgraft.common.privacy.accountant import Event, Unit, epsilon, noise_for

_MOST_NOISE = 1e5
_DELTA = 1e-6
"""Of a new ledger, if nobody knows that of the old one and the policy names none."""


@dataclass(frozen=True)
class Settlement:
    """What does not agree, what is assumed, and what ends. `spent` and `assumed` are by study."""

    found: tuple[str, ...]
    delta: float
    unit: Unit
    spent: Spending
    """As the ledger has it, if that can still be read."""
    assumed: Spending
    """What is added, so that no record tells of more."""
    closed: tuple[str, ...]
    public: tuple[str, ...]
    """The site's public numbers, as the log tells of them."""
    shown: tuple[str, ...]
    """The studies that count as shown coarse counts: under a policy that shows them, all that had begun."""
    answered: tuple[str, ...]
    """What was answered to those who asked what the site could supply, as the log tells of it."""
    removed: tuple[Removal, ...]
    """Whom the log tells of as removed from the book of persons."""
    home: Path
    """Where that book lies."""
    sound: bool
    """Whether the ledger that is there can go on; if not, a new one begins with all that is assumed."""

    @property
    def before(self) -> float:
        """Epsilon of all that the ledger has."""
        return epsilon([event for own in self.spent.values() for event in own], self.delta)

    @property
    def after(self) -> float:
        """Epsilon of all that is spent once the settlement is on record."""
        both = (*self.spent.values(), *self.assumed.values())
        return epsilon([event for own in both for event in own], self.delta)

    def of(self, study: str) -> tuple[float, float]:
        """Epsilon of one study before and after."""
        had = self.spent.get(study, ())
        return epsilon(had, self.delta), epsilon((*had, *self.assumed.get(study, ())), self.delta)


def propose_settlement(config: SiteConfig, home: Path, taken_up: TakenUp) -> Settlement | None:
    """What would be assumed; None if all records agree. `home` is the folder of the site's file."""
    found = Records(config, home, taken_up).contradictions()
    if not found:
        return None
    if config.witness is not None and not config.witness.is_dir():
        raise InputError(found[0], fix="Mount it, or name another folder as `witness` in site.yaml.")
    held, lines = Held.of(config.state, config.witness), list(_lines(EgressFiles(config.state)))
    kept, sound = _salvaged(held.ledger)
    set_aside = [_salvaged(path)[0] for path in held.ledger.parent.glob(f"{held.ledger.name}.before-*")]
    accounts = [kept, read_account(held.witness), *_accounts(lines), *set_aside]
    known = [account for account in accounts if account is not None]
    told = {str(line.get("study")) for line in lines if line.get("study")}
    told |= {str(digest) for line in lines for digest in _words(line).get("closed", ())}
    begun = told | {job for account in known for job in account.spent} | _on_disk(config, home)
    delta = known[0].delta if known else config.policy.delta or _DELTA
    unit = known[0].unit if known else config.policy.unit
    wanted = [account.spent for account in known] + [_unpriced(config, known, delta)]
    spent = kept.spent if kept is not None and sound else {}
    assumed = missing(largest(wanted), spent)
    shown = {*_small(lines, SHOWN), *(begun if config.policy.metrics == "suppressed" else ())}
    if begun and config.policy.metrics == "suppressed" and not any(word.startswith(SURVIVAL) for word in shown):
        shown.add(SURVIVAL + UNKNOWN)
    closed, public = tuple(sorted(begun)), tuple(_small(lines, PUBLIC))
    answered = tuple(sorted(set(_small(lines, ANSWERED))))
    return Settlement(
        found=found,
        delta=delta,
        unit=unit,
        spent=spent,
        assumed=assumed,
        closed=closed,
        public=public,
        shown=tuple(sorted(shown)),
        answered=answered,
        removed=tuple(one for line in lines for one in removals_in(line.get("kind"), _words(line))),
        home=home,
        sound=sound,
    )


def settle(config: SiteConfig, settlement: Settlement, by: str) -> None:
    """Put a settlement on record. What is spent comes first, and the line in the egress log last: then it is done."""
    held, log = Held.of(config.state, config.witness), EgressFiles(config.state)
    broken = [] if _unbroken(config) else [*log.sizes()]
    set_aside = [path for one in broken if (path := _set_aside(one)) is not None]
    words: dict[str, Any] = {
        "by": by,
        "found": list(settlement.found),
        "assumed": Account(settlement.delta, settlement.unit, settlement.assumed).content(),
        "epsilon": {"before": f"{settlement.before:.4g}", "after": f"{settlement.after:.4g}"},
        "closed": list(settlement.closed),
        "removed": remove_again(settlement.home, settlement.removed),
        "log_before": {"file": set_aside[-1].name, "sha256": sha256_file(set_aside[-1])} if set_aside else None,
        "sealed_before": [{"file": path.name, "sha256": sha256_file(path)} for path in set_aside[:-1]],
    }
    if held.exists() or settlement.assumed:
        if not settlement.sound:
            _set_aside(held.ledger)
            held.witness.unlink(missing_ok=True)
            Ledger.create(held.ledger, held.witness, float("inf"), settlement.delta, settlement.unit)
        Ledger.settle(held.ledger, held.witness, settlement.assumed, json.dumps(words, sort_keys=True))
    remember(config.state, settlement.shown, settlement.public, settlement.answered)
    EgressLog(config.state, config.witness).settle(words)


def _unpriced(config: SiteConfig, known: list[Account], delta: float) -> Spending:
    """The whole of one study's budget, for each study with an answer that no record knows the price of."""
    priced = {job for account in known for job, events in account.spent.items() if events}
    unknown = {study for study, _ in kept_answers(config.state)} - priced
    if not unknown:
        return {}
    whole = Event(min(noise_for(config.policy.epsilon_per_study, delta, 1.0, 1), _MOST_NOISE), 1.0, 1)
    return dict.fromkeys(unknown, (whole,))


def _salvaged(ledger: Path) -> tuple[Account | None, bool]:
    if not ledger.exists():
        return None, False
    try:
        return salvage(ledger)
    except LedgerError:
        return None, False


def _accounts(lines: list[dict[str, Any]]) -> Iterator[Account]:
    for line in lines:
        try:
            yield Account.of(line.get("ledger"))
        except ValueError:
            continue


def _lines(log: EgressFiles) -> Iterator[dict[str, Any]]:
    """All that can be read of an egress log, whether or not its chain holds."""
    for line in log.lines(0):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def _small(lines: list[dict[str, Any]], name: str) -> Iterator[str]:
    for line in lines:
        if isinstance(known := line.get("known"), dict) and isinstance(words := known.get(name), list):
            yield from map(str, words)


def _words(line: dict[str, Any]) -> dict[str, Any]:
    words = line.get("words")
    return words if isinstance(words, dict) else {}


def _on_disk(config: SiteConfig, home: Path) -> set[str]:
    """Studies that the site took in, or has approved and may have begun."""
    taken = {path.stem for path in (config.state / "studies").glob("*.json")}
    return taken | {one.digest for one in read_approvals(home) if one.withdrawn is None}


def _unbroken(config: SiteConfig) -> bool:
    try:
        for _ in EgressLog(config.state, config.witness).entries():
            pass
    except LedgerError:
        return False
    return True


def _set_aside(path: Path) -> Path | None:
    """Give a file that can no longer be used the first free name after its own."""
    if not path.exists():
        return None
    names = (path.with_name(f"{path.name}.before-{number}") for number in range(1, 10**6))
    return path.rename(next(name for name in names if not name.exists()))
