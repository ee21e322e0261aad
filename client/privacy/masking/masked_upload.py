"""A site's replies in one study with secure aggregation: looked over before the work, sealed after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.used_masks import (
    MaskBook,
    Occasion,
    SecureAggregationSettings,
    read_pairs,
)
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Code,
    Instruction,
    MaskedUpdate,
)
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.secure_aggregation.masking import (
    Context,
    Layout,
    encode,
    mask,
)
from fedgraft.common.secure_aggregation.summing import METRICS, TENSORS, Summands
from fedgraft.common.study.clusters import group_of, groups_of
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import MEASURE
from fedgraft.common.study.study import Study

_OTHER_GROUP = "the site was in another group before, and `regroup` does not allow a change"


@dataclass(frozen=True)
class Accepted:
    """The parts of a reply that the site puts into sums, and the nonce under which it does."""

    parts: frozenset[str]
    nonce: str


class Sealer:
    """One site's masks in one study. Raises RosterError if its key or its roster cannot be used."""

    def __init__(self, study: Study, settings: SecureAggregationSettings, site: str, folder: Path) -> None:
        self._study = study
        self._settings = settings
        self._pairs = read_pairs(site, settings)
        self._book = MaskBook(folder / "masks.sqlite")

    def greet(self, *, been_here: bool = False) -> str:
        """The nonce for a run that begins, or is taken up again.

        Raises Refused if the site has `been_here` by another record, and its file of used masks knows nothing of that:
        without it nobody can tell with whom the site has masked, and a second group would give one site away.
        """
        if been_here and not self._book.knows(self._study.digest):
            raise Refused(Code.MASK_REUSED, "the file of used masks is gone, but the site has been in this study")
        return self._book.greet(self._study.digest)

    def accept(self, instruction: Instruction, stage: Stage) -> Accepted:
        """Which parts of its reply the site will mask.

        Raises Refused for a group that the site does not lend itself to: too few, unknown sites, or, for tensors,
        another one than before (metrics are then only left out); and for a number or a run that is over.
        """
        groups = instruction.groups
        if groups is None or not groups.parts.keys() <= {TENSORS, METRICS}:
            raise _not_secure("the instruction asks for an answer in the open")
        if not groups.parts:
            return Accepted(frozenset(), "")
        nonces = {group.get(self._pairs.site) for group in groups.parts.values()}
        if len(nonces) != 1 or (nonce := nonces.pop()) is None:
            raise _not_secure("the site is not in the group that it was named")
        for group in groups.parts.values():
            if len(group) < self._settings.fewest:
                raise _not_secure(f"the group has {len(group)} sites, fewer than {self._settings.fewest}")
            if strangers := group.keys() - self._pairs.roster.keys.keys():
                raise _not_secure(f"not on the roster: {', '.join(sorted(strangers))}")
        if others := _of_other_clusters(self._study, self._pairs.site, groups):
            raise _not_secure(f"not in the site's cluster by the study: {', '.join(others)}")
        self._book.check(self._study.digest, nonce, groups.number)
        parts = set(groups.parts)
        if METRICS in parts and not self._may(groups, METRICS, stage):
            parts.discard(METRICS)
        if TENSORS in parts and not self._may(groups, TENSORS, stage):
            raise _not_secure(_OTHER_GROUP)
        return Accepted(frozenset(parts), nonce)

    def seal(
        self, instruction: Instruction, accepted: Accepted, summands: Mapping[str, Summands], received: str
    ) -> MaskedUpdate:
        """Mask these parts; the number is used up, on disk, before that. OutOfRange if a value is too large."""
        groups = instruction.groups
        assert groups is not None
        words, contexts, record = {}, {}, {}
        for part in sorted(summands):
            group, own = groups.parts[part], summands[part]
            layout = Layout.of({key: (array.shape, array.dtype.name) for key, array in own.arrays.items()})
            context = Context(
                study=self._study.digest,
                part=part,
                stage=instruction.stage,
                round=instruction.round,
                exchange=instruction.exchange,
                work=instruction.work,
                evaluate=instruction.evaluate,
                number=groups.number,
                sites=group,
                received=received,
            ).digest(layout, self._pairs)
            words[part] = encode(own.arrays, own.factors, layout, len(group))
            contexts[part] = context
            record[Occasion(part, instruction.stage, instruction.work)] = (sorted(group), context.hex())
        if record:
            stage = self._study.plan[instruction.stage] if self._study.plan else MEASURE
            only = frozenset(part for part in summands if not self._changes(part, stage))
            self._book.use(self._study.digest, accepted.nonce, groups.number, instruction.exchange, record, only)
        for part, hidden in words.items():
            mask(hidden, contexts[part], groups.parts[part], self._pairs)
        return MaskedUpdate(instruction.exchange, words, {part: context.hex() for part, context in contexts.items()})

    def _may(self, groups: AggregationGroups, part: str, stage: Stage) -> bool:
        """Whether the site masks this part with this group: always with the same one, else as its settings say.

        One group for a whole study: sums of one stage over four sites, and of the next over three of them, tell about
        the fourth nearly as much as two sums of the same stage would.
        """
        before = self._book.groups(self._study.digest, part)
        return before <= {tuple(sorted(groups.parts[part]))} or self._changes(part, stage)

    def _changes(self, part: str, stage: Stage) -> bool:
        """Whether the site may mask this part in another group than before."""
        private = part == TENSORS and privacy_request(stage) is not None
        return self._settings.regroup == "always" or (self._settings.regroup == "private" and private)


def _of_other_clusters(study: Study, site: str, groups: AggregationGroups) -> list[str]:
    """Sites that this one is to mask with, although the study puts them into another cluster, or in none."""
    if not groups_of(study.clusters):
        return []
    own = group_of(study.clusters, site)
    return sorted({name for part in groups.parts.values() for name in part if group_of(study.clusters, name) != own})


def _not_secure(why: str) -> Refused:
    return Refused(Code.NOT_SECURE, why)
