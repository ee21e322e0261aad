"""Exchanges under secure aggregation: all sites of a group answer, and their sum opens; or the group is drawn anew.

The coordinator adds up words that say nothing, and looks only at the sum, as if it came from one site that has all
cases. If a site is missing, its noise is left in the sum and nothing opens, and the round is repeated. A site that is
merely away is waited for, and the same group masks anew, under a new number: every site lends itself to that. If it
does not come back in time, or has other trouble, the others are asked, as long as they are at least three: whether
they form another group is for each of them to decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

from fedgraft.common.base.errors import InputError, QuorumError, RunError
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Answer,
    Code,
    Greeting,
    Instruction,
    MaskedUpdate,
    Refusal,
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
from fedgraft.common.study.inputs import Split
from fedgraft.common.study.schedule import last_exchange
from fedgraft.common.study.study import Study
from fedgraft.server.aggregation.joint import Take
from fedgraft.server.rounds.exchange.collect import Collected, Collector, headline
from fedgraft.server.rounds.exchange.outages import Outages
from fedgraft.server.rounds.exchange.validation import Limits, bad_content

_WHY = (
    f"A masked sum needs {FEWEST} sites: with two, each could subtract its own part from the sum and know the other's."
)
_SAME = "Those that say not_secure mask with the same sites as before alone (`regroup` in their site.yaml)."
_HIDDEN = "masks hide whose part is to blame"
_LOOK = "Look into the sites' own logs, or leave a site out, and continue with --resume."


@dataclass(frozen=True)
class WantedSums:
    """What an exchange asks of `sites`: work, and measuring on `split`; it counts if `needed` of them take part.

    `instruction` makes a site's instruction, anew for each attempt, since sites hold more of the model by then. `hold`
    is called with each site that has taken in what it was sent. `observers` answer without masks, once.
    """

    exchange: int
    sites: Collection[str]
    needed: int
    work: bool
    split: Split | None
    instruction: Callable[[str], Instruction]
    hold: Callable[[str], None]
    observers: Mapping[str, Instruction]


@dataclass
class SumAttempt:
    """One attempt at an exchange: its groups, and what their sites have sent so far, summed up."""

    groups: AggregationGroups
    sums: dict[str, MaskedSum]
    contexts: dict[str, dict[str, str]]
    missing: dict[str, Code] = field(default_factory=dict)
    spent: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, groups: AggregationGroups, layouts: Mapping[str, Layout]) -> SumAttempt:
        """An attempt in which no upload is in yet."""
        sums = {part: MaskedSum(layouts[part], len(group)) for part, group in groups.parts.items()}
        return cls(groups, sums, {part: {} for part in sums})

    def take(self, site: str, answer: Answer, instruction: Instruction) -> None:
        """Add what a site sent, or note why it does not count."""
        if isinstance(answer, Refusal):
            self.missing[site] = answer.code
            return
        asked = {part for part, group in self.groups.parts.items() if site in group}
        if not isinstance(answer, MaskedUpdate) or answer.exchange != instruction.exchange:
            self.missing[site] = Code.GARBAGE
        elif not asked - {METRICS} <= answer.parts.keys() <= asked:  # a site may keep its metrics to itself
            self.missing[site] = Code.WRONG_KEYS
        else:
            for part, words in answer.parts.items():
                try:
                    self.sums[part].add(words)
                except ValueError:
                    self.missing[site] = Code.WRONG_SHAPE
                    return
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
        """Whether all sites of the group have put in this part, and alike."""
        group = self.groups.parts.get(part, {}).keys()
        return bool(group) and self.contexts[part].keys() == group and not group & self.missing.keys()


class SecureCollector:
    """Carries out the exchanges of one run of a study with secure aggregation."""

    def __init__(self, study: Study, collector: Collector, greetings: Mapping[str, Greeting], outages: Outages) -> None:
        self._study = study
        self._outages = outages
        self._given_up: set[str] = set()
        self._in_vain: set[tuple[int, str]] = set()
        self._collector = collector
        self._greetings = greetings
        self._numbers = count(1)
        self._measuring: frozenset[str] = frozenset()

    def collect(self, wanted: WantedSums, limits: Limits, take: Take) -> Collected:
        """Repeat until what is wanted opens: with the same sites if those that are missing come back, else with fewer.

        QuorumError if they get too few. RunError if a sum does not open although all sites agree on what it is of, or
        if it opens to what cannot be.
        """
        got = Collected()
        # Sites that did not come back are waited for no more until they are there.
        self._given_up = self._outages.away(self._given_up)
        got.missing |= dict.fromkeys(self._given_up & set(wanted.sites), Code.UNREACHABLE)
        sites = sorted(wanted.sites - got.missing.keys())
        while True:
            groups = self._groups(wanted, sites, limits, got)
            attempt = self._attempt(wanted, sites, groups, limits, got)
            got.missing |= attempt.missing
            got.spent |= attempt.spent
            got.aggregated = [site for site in sites if site not in attempt.missing]
            for site in got.aggregated:
                wanted.hold(site)
            # Work is repeated for what it aggregates; metrics alone are worth another exchange only if that was all.
            part = TENSORS if wanted.work else METRICS
            if part not in groups.parts or not attempt.missing or attempt.whole(part):
                break
            again = self._next_group(wanted, sites, attempt, got)
            if not wanted.work and len(self._measured(again)) < FEWEST:
                break
            sites, got.repeats = again, got.repeats + 1
        self._open(attempt, got, limits, take)
        return got

    def _next_group(self, wanted: WantedSums, sites: list[str], attempt: SumAttempt, got: Collected) -> list[str]:
        """With whom the exchange is repeated: all that are there, and those that were away and are back."""
        lost = self._outages.lost(attempt.missing) | self._sealed_in_vain(wanted.exchange, attempt.missing)
        if lost and self._outages.over(wanted.exchange, lost, len(lost)):
            for site in lost:
                del got.missing[site]
            return [site for site in sites if site not in got.missing]
        self._given_up |= lost
        return got.aggregated

    def _sealed_in_vain(self, exchange: int, missing: Mapping[str, Code]) -> set[str]:
        """Sites whose masked reply was lost on its way, so that they cannot seal another under its number.

        A new number helps, once in an exchange: whoever says it again was greeted by another run.
        """
        found = {(exchange, site) for site, code in missing.items() if code is Code.MASK_REUSED} - self._in_vain
        self._in_vain |= found
        return {site for _, site in found}

    def _groups(self, wanted: WantedSums, sites: list[str], limits: Limits, got: Collected) -> AggregationGroups:
        """Who masks what with whom. QuorumError if what must be aggregated has too few sites."""
        nonces = {site: self._greetings[site].nonce for site in sites}
        parts = {}
        if wanted.work and limits.shapes:
            if len(sites) < max(wanted.needed, FEWEST):
                raise _too_few(wanted, sites, got.missing)
            parts[TENSORS] = nonces
        measured = frozenset(self._measured(sites))
        if wanted.split is not None and len(measured) >= FEWEST:
            # Sites mask figures with one group alone in a study: the first, for as long as it is there.
            if not self._measuring or not self._measuring <= measured:
                self._measuring = measured
            parts[METRICS] = {site: nonces[site] for site in sorted(self._measuring)}
        return AggregationGroups(next(self._numbers), parts)

    def _measured(self, sites: list[str]) -> list[str]:
        """Those that let sums of metrics leave."""
        return [site for site in sites if self._greetings[site].evaluates]

    def _attempt(
        self, wanted: WantedSums, sites: list[str], groups: AggregationGroups, limits: Limits, got: Collected
    ) -> SumAttempt:
        instructions = {site: _own(wanted, site, groups) for site in sites}
        # Observers are asked once.
        observers = {} if got.repeats else wanted.observers
        attempt = SumAttempt.begin(groups, self._layouts(limits, wanted.exchange))
        states = dict.fromkeys((*instructions, *observers), limits.state)
        for reply in self._collector.replies({**instructions, **observers}, states, got):
            if reply.site in observers:
                self._collector.vetted(got, reply, observers[reply.site], {"": limits})
            else:
                attempt.take(reply.site, reply.answer, instructions[reply.site])
        attempt.find_strangers()
        return attempt

    def _layouts(self, limits: Limits, exchange: int) -> dict[str, Layout]:
        return {
            TENSORS: Layout.of(tensor_shapes(limits.shapes, self._study, limits.stage)),
            METRICS: Layout.of(metric_shapes(self._study, by_group=exchange == last_exchange(self._study))),
        }

    def _open(self, attempt: SumAttempt, got: Collected, limits: Limits, take: Take) -> None:
        """Take in the sums that all their sites have put into."""
        try:
            if attempt.whole(TENSORS):
                update = pooled_update(attempt.sums[TENSORS].open(), limits.stage, limits.tags, limits.state)
                if code := bad_content(update, limits):
                    raise RunError(f"The masked sum holds what cannot be ({code}), and {_HIDDEN}.", fix=_LOOK)
                take(update)
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


def _own(wanted: WantedSums, site: str, groups: AggregationGroups) -> Instruction:
    """A site's instruction: it masks the parts whose group it is in. In all else sites are told the same."""
    parts = {part: group for part, group in groups.parts.items() if site in group}
    return replace(wanted.instruction(site), groups=AggregationGroups(groups.number, parts))


def _too_few(wanted: WantedSums, left: list[str], missing: Mapping[str, Code]) -> QuorumError:
    reason = f" {_WHY}" if len(left) < FEWEST else ""
    if Code.NOT_SECURE in missing.values():
        reason += f" {_SAME}"
    return QuorumError(
        f"{headline(len(left), len(wanted.sites), missing)}; {max(wanted.needed, FEWEST)} are needed.{reason}",
        fix="Continue with --resume once the sites are back.",
    )
