"""Waiting for sites whose people have not let go yet what the study would have: such a site is asked again and again.

It keeps its answer, so that nothing is worked out or sent anew: the question names all that it was sent, and holds none
of it. A site that is away meanwhile is asked once it is back. How long the study waits counts from the first time that
the site said so, also over a restart of the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from fedgraft.common.protocol.instructions import Arrays, Code, Digests, Instruction, Refusal
from fedgraft.server.fleet.fleet import Fleet, Reply
from fedgraft.server.runs.run_folder import HELD

_FIRST_S, _SHARE, _SLOWEST_S = 0.5, 0.1, 60.0
"""The pause between two questions, a share of how long was waited: who decides at once is not kept waiting, and a
weekend is no more than a few thousand lines in the site's log."""

_STILL = (Code.HELD, Code.UNREACHABLE, Code.DEADLINE)
"""What a site says, or is said of it, that may yet let its answer go."""


class Releases:
    """The waiting of one run. `tell` takes a kind of event and its facts.

    `began` says when a site first held anything in this run, in seconds since 1970; None if it never did.
    """

    def __init__(
        self,
        fleet: Fleet,
        wait_s: float,
        tell: Callable[..., None],
        began: Callable[[str], float | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._wait_s = wait_s
        self._tell = tell
        self._began = began
        self._clock = clock

    def answers(
        self, held: Mapping[str, Instruction], states: Mapping[str, Arrays], deadline_s: float | None
    ) -> Iterator[Reply]:
        """One reply of each site that holds its answer: the answer, a refusal, or `held` once the time is over.

        `states` are by site all that it was sent.
        """
        digests = Digests()
        left = {site: replace(one, tensors={}, held=digests.of(states[site])) for site, one in held.items()}
        ends = {site: self._until(one.exchange, site) for site, one in left.items()}
        began = self._clock()
        while True:
            for site in [site for site in left if self._clock() >= ends[site]]:
                yield Reply(site, Refusal(left.pop(site).exchange, Code.HELD), 0, 0)
            if not left:
                return
            now = self._clock()
            pause = min(max(_FIRST_S, _SHARE * (now - began)), _SLOWEST_S)
            time.sleep(max(0.0, min(pause, *(ends[site] - now for site in left))))
            away = self._fleet.away(left)
            there = {site: one for site, one in left.items() if site not in away}
            for reply in self._fleet.exchange(there, deadline_s) if there else ():
                code = reply.answer.code if isinstance(reply.answer, Refusal) else None
                if code is Code.MISSING_TENSORS and left[reply.site].held:  # the site was started again
                    left[reply.site] = replace(held[reply.site], tensors=states[reply.site], held="")
                elif code not in _STILL:
                    del left[reply.site]
                    yield reply

    def _until(self, exchange: int, site: str) -> float:
        """When the study no longer waits for a site, in seconds since 1970; what it holds is told once."""
        before = self._began(site)
        if before is None:
            self._tell(HELD, exchange=exchange, sites=[site], hours=self._wait_s / 3600)
        return (self._clock() if before is None else before) + self._wait_s
