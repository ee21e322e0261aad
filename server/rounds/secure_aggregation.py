"""The exchanges of a masked study: all sites of a circle answer, and their sum opens; or the circle is drawn anew.

The coordinator adds up words that say nothing, and looks only at the sum, as if it came from one site that has all
cases. If a site is missing, its noise is left in the sum and nothing opens: the round is repeated with the others, who
mask anew, as long as they are at least three and each of them lends itself to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

from fedgraft.common.base.errors import InputError, QuorumError, RunError
from fedgraft.common.protocol.instructions import (
    Answer,
    Circles,
    Code,
    Greeting,
    Masked,
    Order,
    Refusal,
    Split,
)
from fedgraft.common.secure_aggregation.masking import (
    FEWEST,
    Layout,
    MaskedSum,
    NotOpened,
)
from fedgraft.common.secure_aggregation.summing import (
    METRICS,
    TENSORS,
    metric_shapes,
    pooled_loss,
    pooled_metrics,
    pooled_update,
    tensor_shapes,
)
from fedgraft.common.study.aggregates import Nothing
from fedgraft.common.study.study import Study
from fedgraft.server.aggregation.aggregator import Merger
from fedgraft.server.rounds.collect import Collected, Collector, headline
from fedgraft.server.rounds.validation import Bar, bad_content

_WHY = (
    f"A masked sum needs {FEWEST} sites: with two, each could subtract its own part from the sum and know the other's."
)
_HIDDEN = "masks hide whose part is to blame"
_LOOK = "Look into the sites' own logs, or leave a site out, and continue with --resume."


@dataclass(frozen=True)
class Wanted:
    """What one exchange asks of `sites`: work, and measuring on `split`; it counts if `needed` of them take part.

    `order` makes a site's order, anew for each attempt, since sites hold more of the model by then. `hold` is told of
    each site that has taken in what it was sent. `observers` answer in the open, once.
    """

    sites: Collection[str]
    needed: int
    work: bool
    split: Split | None
    order: Callable[[str], Order]
    hold: Callable[[str], None]
    observers: Mapping[str, Order]


@dataclass
class Attempt:
    """One attempt at an exchange: its circles, and what their sites have sent so far, summed up."""

    circles: Circles
    sums: dict[str, MaskedSum]
    contexts: dict[str, dict[str, str]]
    missing: dict[str, Code] = field(default_factory=dict)
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, circles: Circles, layouts: Mapping[str, Layout]) -> Attempt:
        """Nothing is in yet."""
        sums = {part: MaskedSum(layouts[part], len(circle)) for part, circle in circles.parts.items()}
        return cls(circles, sums, {part: {} for part in sums})

    def take(self, site: str, answer: Answer, order: Order) -> None:
        """Add what a site sent, or note why it does not count."""
        if isinstance(answer, Refusal):
            self.missing[site] = answer.code
            return
        asked = {part for part, circle in self.circles.parts.items() if site in circle}
        if not isinstance(answer, Masked) or answer.exchange != order.exchange:
            self.missing[site] = Code.GARBAGE
        elif not asked - {METRICS} <= answer.parts.keys() <= asked:  # a site may keep its metrics to itself
            self.missing[site] = Code.WRONG_KEYS
        else:
            for part, words in answer.parts.items():
                try:
                    self.sums[part].add(words)
                except ValueError:
                    self.missing[site] = Code.WRONG_SHAPE
                self.contexts[part][site] = answer.contexts[part]
            if answer.spent is not None:
                self.spent[site] = asdict(answer.spent)

    def find_strangers(self) -> None:
        """Note the sites that have masked for something else than most: another model, other partners, other keys."""
        for contexts in self.contexts.values():
            usual = Counter(contexts.values()).most_common(1)[0][0] if contexts else ""
            for site, context in contexts.items():
                if context != usual:
                    self.missing.setdefault(site, Code.OTHER_CONTEXT)

    def whole(self, part: str) -> bool:
        """Whether all sites of the circle have put in this part, and alike."""
        circle = self.circles.parts.get(part, {}).keys()
        return bool(circle) and self.contexts[part].keys() == circle and not circle & self.missing.keys()


class MaskedCollector:
    """Carries out the exchanges of one run of a masked study."""

    def __init__(self, study: Study, collector: Collector, greetings: Mapping[str, Greeting]) -> None:
        self._study = study
        self._collector = collector
        self._greetings = greetings
        self._numbers = count(1)

    def collect(self, wanted: Wanted, bar: Bar, merging: Merger) -> Collected:
        """Repeat with fewer sites until what is wanted opens.

        QuorumError if they get too few. RunError if a sum does not open although all sites agree on what it is of, or
        if it opens to what cannot be.
        """
        got, sites = Collected(), sorted(wanted.sites)
        while True:
            circles = self._circles(wanted, sites, bar, got)
            attempt = self._attempt(wanted, sites, circles, bar, got)
            got.missing |= attempt.missing
            got.spent |= attempt.spent
            got.merged = [site for site in sites if site not in attempt.missing]
            for site in got.merged:
                wanted.hold(site)
            # Work is repeated for what it merges; metrics alone are worth another exchange only if that was all.
            part = TENSORS if wanted.work else METRICS
            if part not in circles.parts or not attempt.missing or attempt.whole(part):
                break
            if not wanted.work and len(self._measured(got.merged)) < FEWEST:
                break
            sites, got.repeats = got.merged, got.repeats + 1
        self._open(attempt, got, bar, merging)
        return got

    def _circles(self, wanted: Wanted, sites: list[str], bar: Bar, got: Collected) -> Circles:
        """Who masks what with whom. QuorumError if what must be merged has too few sites."""
        nonces = {site: self._greetings[site].nonce for site in sites}
        parts = {}
        if wanted.work and not isinstance(bar.stage.merge, Nothing):
            if len(sites) < max(wanted.needed, FEWEST):
                raise _too_few(wanted, sites, got.missing)
            parts[TENSORS] = nonces
        measured = self._measured(sites)
        if wanted.split is not None and len(measured) >= FEWEST:
            parts[METRICS] = {site: nonces[site] for site in measured}
        return Circles(next(self._numbers), parts)

    def _measured(self, sites: list[str]) -> list[str]:
        """Those that let sums of metrics leave."""
        return [site for site in sites if self._greetings[site].evaluates]

    def _attempt(self, wanted: Wanted, sites: list[str], circles: Circles, bar: Bar, got: Collected) -> Attempt:
        orders = {site: _own(wanted, site, circles) for site in sites}
        # Observers are asked once.
        observers = {} if got.repeats else wanted.observers
        attempt = Attempt.begin(circles, self._layouts(bar))
        for reply in self._collector.replies({**orders, **observers}, bar.state, got):
            if reply.site in observers:
                self._collector.vetted(got, reply, observers[reply.site], bar)
            else:
                attempt.take(reply.site, reply.answer, orders[reply.site])
        attempt.find_strangers()
        return attempt

    def _layouts(self, bar: Bar) -> dict[str, Layout]:
        return {
            TENSORS: Layout.of(tensor_shapes(bar.shapes, self._study, bar.stage)),
            METRICS: Layout.of(metric_shapes(self._study)),
        }

    def _open(self, attempt: Attempt, got: Collected, bar: Bar, merging: Merger) -> None:
        """Take in the sums that all their sites have put into."""
        try:
            if attempt.whole(TENSORS):
                update = pooled_update(attempt.sums[TENSORS].open(), bar.stage, bar.tags, bar.state)
                if code := bad_content(update, bar):
                    raise RunError(f"The masked sum holds what cannot be ({code}), and {_HIDDEN}.", fix=_LOOK)
                merging.add(update)
            if attempt.whole(METRICS):
                sums = attempt.sums[METRICS].open()
                got.pooled, got.train_pooled = pooled_metrics(sums, self._study), pooled_loss(sums)
        except NotOpened:
            raise RunError(
                f"All sites agree on what they masked, but their masks do not cancel, and {_HIDDEN}: "
                "a site's mask key is not that of its roster entry, or what it sent was changed on the way.",
                fix=_LOOK,
            ) from None
        except InputError as error:
            raise RunError(f"The masked sums of metrics cannot be ({error}), and {_HIDDEN}.", fix=_LOOK) from None


def _own(wanted: Wanted, site: str, circles: Circles) -> Order:
    """A site's order: it masks the parts whose circle it is in, and measures only what it will mask."""
    parts = {part: circle for part, circle in circles.parts.items() if site in circle}
    order = wanted.order(site)
    return replace(order, evaluate=order.evaluate if METRICS in parts else None, circles=Circles(circles.number, parts))


def _too_few(wanted: Wanted, left: list[str], missing: Mapping[str, Code]) -> QuorumError:
    reason = f" {_WHY}" if len(left) < FEWEST else ""
    return QuorumError(
        f"{headline(len(left), len(wanted.sites), missing)}; {max(wanted.needed, FEWEST)} are needed.{reason}",
        fix="Continue with --resume once the sites are back.",
    )
