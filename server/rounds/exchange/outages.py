"""Rounds that lost sites on the way: who may come back, and how long that is waited for.

Nobody need be there to type `--resume`. A round that cannot count without sites that are merely away is repeated once
they are back, as if it had never been begun: sites answer an exchange that is asked again as they did before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from fedgraft.common.protocol.instructions import Code
from fedgraft.server.fleet.fleet import Fleet
from fedgraft.server.runs.run_folder import NOTICE, WAITING

_REPEATS = 8
"""So often an exchange is repeated: sites that are lost again and again have another trouble than their line."""


class Outages:
    """The waiting of one run. `tell` takes a kind of event and its facts."""

    def __init__(self, fleet: Fleet, tell: Callable[..., None]) -> None:
        self._fleet = fleet
        self._tell = tell
        self._exchange = 0
        self._repeats = 0

    def lost(self, missing: Mapping[str, Code]) -> set[str]:
        """Those of the missing sites that did not answer since they were away, or cannot be reached."""
        late = {site for site, code in missing.items() if code is Code.DEADLINE}
        return {site for site, code in missing.items() if code is Code.UNREACHABLE} | self._fleet.away(late)

    def away(self, sites: Collection[str]) -> set[str]:
        """Those of these sites that nothing is heard of at this moment."""
        return self._fleet.away(sites)

    def over(self, exchange: int, sites: Collection[str], count: int) -> bool:
        """Wait until `count` of the lost `sites` are there again, so that the exchange can be repeated."""
        self._repeats = self._repeats + 1 if exchange == self._exchange else 1
        self._exchange = exchange
        if not sites or count > len(sites) or self._repeats > _REPEATS:
            return False
        self._tell(WAITING, exchange=exchange, sites=sorted(sites), needed=count)
        return self._fleet.wait_for(sites, count, patiently=True)

    def reunited(self, before: Collection[str], *, all_of_them: bool) -> None:
        """Wait for the sites that were there before the run's process began: its server may have been away as well.

        As long as a round does, or, where it cannot go on without `all_of_them`, for as long as the run has patience.
        The time begins anew with each process: an outage of the server is none of a site.
        """
        if not before:
            return
        if away := self._fleet.away(before):
            verb = "it was" if len(away) == 1 else "they were"
            self._tell(NOTICE, text=f"The run waits for {', '.join(sorted(away))}, as {verb} there before.")
        self._fleet.wait_for(before, len(before), patiently=all_of_them)
