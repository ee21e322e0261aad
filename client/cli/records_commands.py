"""What a hospital's people type when records of their site were lost: `fedgraft site settle`."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from fedgraft.client.enrolment.config import SiteConfig, read_site, site_home
from fedgraft.client.governance.records import SETTLE, Records
from fedgraft.client.governance.settlement import Settlement, propose_settlement, settle
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.console.terminal import OUT, say
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.identity.persons import demand_name


def settle_records(folder: Path | None, by: str | None) -> int:
    """Show what does not agree and what would be assumed, and with a name put it on record; the exit code."""
    home = site_home(folder)
    config = read_site(home)
    proposed = propose_settlement(config, home, exchanges_of)
    if proposed is None:
        say("All records of this site agree: there is nothing to settle.")
        return 0
    _show(proposed, config)
    if not by:
        say("Nothing was changed. Restore the newest copies if you can; if not, decide: fedgraft site settle --by NAME")
        return 1
    demand_name(by)
    settle(config, proposed, by)
    say(f"On record, decided by {by}: see `fedgraft site egress` and `fedgraft site budget`. Start the site again.")
    return 0


def demand_agreement(config: SiteConfig, home: Path) -> None:
    """LedgerError if the site's records do not agree; `home` is the folder of the site's file."""
    if found := Records(config, home, exchanges_of).contradictions():
        raise LedgerError(found[0], fix=SETTLE)


def _show(settlement: Settlement, config: SiteConfig) -> None:
    for what in settlement.found:
        say(what)
    table = Table("study", "epsilon on record", "epsilon assumed spent")
    for study in sorted({*settlement.spent, *settlement.assumed}):
        table.add_row(study[:12], *(f"{value:.2f}" for value in settlement.of(study)))
    table.add_section()
    table.add_row("all", f"{settlement.before:.2f}", f"{settlement.after:.2f} of {config.policy.epsilon_lifetime:g}")
    OUT.print(table)
    say(f"Studies that end here: {', '.join(study[:12] for study in settlement.closed) or 'none'}")
