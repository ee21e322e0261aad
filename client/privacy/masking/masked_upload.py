"""A site's replies in one masked study: looked over before the work, sealed after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgraft.client.privacy.guard.privacy_guard import Refused
from fedgraft.client.privacy.masking.used_masks import (
    MaskBook,
    MaskSettings,
    Occasion,
    read_pairs,
)
from fedgraft.common.protocol.instructions import (
    Circles,
    Code,
    Masked,
    Order,
)
from fedgraft.common.protocol.routing import privacy_asked
from fedgraft.common.secure_aggregation.masking import (
    Context,
    Layout,
    encode,
    mask,
)
from fedgraft.common.secure_aggregation.summing import METRICS, TENSORS, Terms
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study


@dataclass(frozen=True)
class Accepted:
    """The parts of a reply that the site puts into sums, and the nonce under which it does."""

    parts: frozenset[str]
    nonce: str


class Sealer:
    """One site's masks in one study. Raises RosterError if its key or its roster cannot be used."""

    def __init__(self, study: Study, settings: MaskSettings, site: str, folder: Path) -> None:
        self._study = study
        self._settings = settings
        self._pairs = read_pairs(site, settings)
        self._book = MaskBook(folder / "masks.sqlite")

    def greet(self) -> str:
        """The nonce for a run that begins, or is taken up again."""
        return self._book.greet(self._study.digest)

    def accept(self, order: Order, stage: Stage) -> Accepted:
        """Which parts of its reply the site will mask.

        Raises Refused for a circle that the site does not lend itself to: too few, unknown sites, or, for tensors,
        another one than before (metrics are then only left out); and for a number or a run that is over.
        """
        circles = order.circles
        if circles is None or not circles.parts.keys() <= {TENSORS, METRICS}:
            raise _not_masked("the order asks for an answer in the open")
        if not circles.parts:
            return Accepted(frozenset(), "")
        nonces = {circle.get(self._pairs.site) for circle in circles.parts.values()}
        if len(nonces) != 1 or (nonce := nonces.pop()) is None:
            raise _not_masked("the site is not in the circle that it was named")
        for circle in circles.parts.values():
            if len(circle) < self._settings.fewest:
                raise _not_masked(f"the circle has {len(circle)} sites, fewer than {self._settings.fewest}")
            if strangers := circle.keys() - self._pairs.roster.keys.keys():
                raise _not_masked(f"not on the roster: {', '.join(sorted(strangers))}")
        self._book.check(self._study.digest, nonce, circles.number)
        parts = set(circles.parts)
        if METRICS in parts and not self._may(order, circles, METRICS, private=False):
            parts.discard(METRICS)
        private = privacy_asked(stage) is not None
        if TENSORS in parts and not self._may(order, circles, TENSORS, private=private):
            raise _not_masked("this work was masked in another circle before, and `regroup` does not allow it again")
        return Accepted(frozenset(parts), nonce)

    def seal(self, order: Order, accepted: Accepted, terms: Mapping[str, Terms], received: str) -> Masked:
        """Mask these parts; the number is used up, on disk, before that. OutOfRange if a value is too large."""
        circles = order.circles
        assert circles is not None
        words, contexts, record = {}, {}, {}
        for part in sorted(terms):
            circle, own = circles.parts[part], terms[part]
            layout = Layout.of({key: (array.shape, array.dtype.name) for key, array in own.arrays.items()})
            context = Context(
                study=self._study.digest,
                part=part,
                stage=order.stage,
                round=order.round,
                exchange=order.exchange,
                number=circles.number,
                sites=circle,
                received=received,
            ).digest(layout, self._pairs)
            words[part] = encode(own.arrays, own.factors, layout, len(circle))
            contexts[part] = context
            record[Occasion(part, order.stage, order.work)] = (sorted(circle), context.hex())
        if record:
            self._book.use(self._study.digest, accepted.nonce, circles.number, order.exchange, record)
        for part, hidden in words.items():
            mask(hidden, contexts[part], circles.parts[part], self._pairs)
        return Masked(order.exchange, words, {part: context.hex() for part, context in contexts.items()})

    def _may(self, order: Order, circles: Circles, part: str, *, private: bool) -> bool:
        """Whether the site masks this work with this circle: always with the same one, else as its settings say."""
        before = self._book.circles(self._study.digest, Occasion(part, order.stage, order.work))
        regroup = self._settings.regroup
        same = before <= {tuple(sorted(circles.parts[part]))}
        return same or regroup == "always" or (regroup == "private" and private)


def _not_masked(why: str) -> Refused:
    return Refused(Code.NOT_MASKED, why)
