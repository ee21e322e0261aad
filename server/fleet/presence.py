"""Which sites the server hears of, and whom it is still worth waiting for.

A site that is away for a moment comes back by itself: it was started again, its laptop slept, its line was cut. And
when nobody is heard of, it is the server, its gate or its network that was away, and says nothing of any site.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

AWAY_S = 180.0
"""So long after it was last heard of a site may come back within its round, if not said otherwise: after two minutes of
sleep, say. Flower notices a silence after 20 s; a site that was killed is back half a minute after it is started."""

PATIENCE_S = 1800.0
"""So long a round is waited for that cannot count without those who are away, if not said otherwise."""

_LOOK_S = 1.0
_POLL_S = 0.5

Look = Callable[[], Mapping[int, str]]
"""The nodes that are heard of at this moment, with their sites' names."""


class Presence:
    """What the server heard of the sites of one run, since the run's process began."""

    def __init__(
        self,
        look: Look,
        patience_s: float = PATIENCE_S,
        away_s: float = AWAY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience_s = patience_s
        self.away_s = away_s
        self._look = look
        self._clock = clock
        self._began = clock()
        self._heard: dict[int, float] = {}
        self._nodes: Mapping[int, str] = {}
        self._names: dict[int, str] = {}
        self._looked: float | None = None
        self._silent: float | None = None
        self._broken = self._began

    def online(self) -> Mapping[int, str]:
        """The nodes that are heard of, as of a second ago at most."""
        now = self._clock()
        if self._looked is None or now - self._looked >= _LOOK_S:
            self._nodes, self._looked = self._look(), now
            self._heard |= dict.fromkeys(self._nodes, now)
            self._names |= self._nodes
            if self._nodes:
                self._silent = None
            else:
                self._silent = now if self._silent is None else self._silent
                self._broken = now
        return self._nodes

    def missed(self, node: int) -> None:
        """Flower says that this node is not heard of: so it is, until the next look."""
        self._nodes = {number: name for number, name in self._nodes.items() if number != node}

    def lost(self, node: int) -> bool:
        """Whether this round goes on without the node.

        That is once others were heard of for long enough, and it was not; or once nobody was for all of the patience.
        A site that came back with other keys is another node, and knows nothing of what this one was sent.
        """
        online, now = self.online(), self._clock()
        if node in online:
            return False
        if self._names.get(node) in online.values():
            return True
        if self._silent is not None:
            return now - self._silent > self.patience_s
        return now - max(self._heard.get(node, self._began), self._broken) > self.away_s

    def wait_for(self, names: Collection[str], count: int, *, patiently: bool) -> bool:
        """Wait until `count` of these sites are heard of; whether they are before the patience is at its end.

        Or, if not `patiently`, before they have been away for too long while others were heard of.
        """
        began = now = self._clock()
        spent = 0.0
        while len(set(names) & set(self.online().values())) < count:
            before, now = now, self._clock()
            spent += 0.0 if self._silent is not None else now - before
            if now - began > self.patience_s or (not patiently and spent > self.away_s):
                return False
            time.sleep(_POLL_S)
        return True

    def wait_for_anybody(self) -> None:
        """Wait until a site is heard of, or the patience is at its end."""
        began = self._clock()
        while not self.online() and self._clock() - began < self.patience_s:
            time.sleep(_POLL_S)
