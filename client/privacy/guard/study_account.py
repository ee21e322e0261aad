"""The site's ledger as one study sees it: what it has spent, what others have, and the delta that all share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.hash_chain import Release
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import Ledger
from fedgraft.client.privacy.policy import EffectivePrivacy
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.privacy.accountant import Event, Spend, epsilon
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.study import Study


class StudyAccount:
    """One study's place in a ledger that may not have begun; `epsilon_lifetime` is the policy's limit for all."""

    def __init__(self, study: Study, held: Held, epsilon_lifetime: float) -> None:
        self._study, self._held, self._limit = study, held, epsilon_lifetime

    def delta(self) -> float | None:
        """That of the ledger; None if there is none yet. Refused if it cannot be trusted."""
        if not self._held.exists():
            return None
        try:
            return self._held.open(self._limit).delta
        except LedgerError as error:
            raise Refused(Code.LEDGER, str(error)) from None

    def spent_by_others(self, *releases: Release) -> Iterator[Event]:
        """Events of other studies: all, or those of some kinds of release."""
        if self._held.exists():
            rows = self._held.open(self._limit).rows()
            others = (row for row in rows if row.job != self._study.digest)
            yield from (row.event for row in others if not releases or row.facts.release in releases)

    def spend(self) -> Spend | None:
        """What this study has cost so far; None if nothing.

        The delta follows from the number of patients, which a study with secure aggregation keeps from the coordinator:
        there it is rounded up to a power of ten, and epsilon is that of the rounded delta.
        """
        if not self._held.exists():
            return None
        try:
            ledger = self._held.open(self._limit)
            spent = ledger.spent(self._study.digest)
            if spent.steps and self._study.secure_aggregation:
                delta = 10.0 ** math.ceil(math.log10(spent.delta) - 1e-9)
                spent = replace(spent, delta=delta, epsilon=epsilon(ledger.events(self._study.digest), delta))
        except LedgerError as error:
            raise Refused(Code.LEDGER, str(error)) from None
        return spent if spent.steps else None

    def ledger(self, privacy: EffectivePrivacy) -> Ledger:
        """The ledger, begun with this privacy's delta and unit if there is none; LedgerError if it is damaged."""
        if self._held.exists():
            return self._held.open(self._limit)
        return Ledger.create(self._held.ledger, self._held.witness, self._limit, privacy.delta, privacy.unit)
