"""Ways in which a site could break at home what it promises, each a change of one rule of the real site."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml

from fedgraft.client.data.cohorts import splits
from fedgraft.client.data.cohorts.cohort import Cohort, load_cohort
from fedgraft.client.enrolment import join as enrolment
from fedgraft.client.enrolment import members
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.governance import egress
from fedgraft.client.governance.records import Records
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger.ledger import Ledger
from fedgraft.client.privacy.ledger.ledger_file import sound
from fedgraft.client.privacy.ledger.public_counts import PublicCounts
from fedgraft.client.runtime import greeting, sessions, site
from fedgraft.client.runtime.sessions import Session
from fedgraft.client.runtime.visit import evaluation
from fedgraft.client.runtime.visit.admission import Turn
from fedgraft.client.runtime.visit.workplace import Workplace
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.config import config_files
from fedgraft.common.identity.enrolment import SiteKeys
from fedgraft.common.privacy.accountant import default_delta
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Arrays, Refusal
from fedgraft.common.protocol.routing import Routing
from fedgraft.common.study import study

Patch = pytest.MonkeyPatch


def true_number_divides(patch: Patch) -> None:
    patch.setattr(PublicCounts, "of", lambda self, unit, count: count)


def delta_of_the_true_number(patch: Patch) -> None:
    patch.setattr(PrivacyGuard, "delta", property(lambda self: default_delta(self._patients)))


def counts_are_greeted_with(patch: Patch) -> None:
    real = greeting.counts_of
    patch.setattr(site, "counts_of", lambda study, cohort, guard: real(study, cohort, None))


def dealt_by_rank(patch: Patch) -> None:
    def ranked(patients: Sequence[str], dealing: object) -> dict[str, str]:
        return {each: splits.SPLITS[at % 3] for at, each in enumerate(sorted(patients))}

    patch.setattr(splits, "alone", ranked)


def failure_is_told(patch: Patch) -> None:
    real = Routing.of
    patch.setattr(Routing, "of", lambda stage, tags: replace(real(stage, tags), silent=False))


def figures_follow_what_is_there(patch: Patch) -> None:
    """Whether there are own entries is looked at, and not what stages could have left."""
    real = evaluation.released

    def lax(place: Workplace, turn: Turn, local_state: Arrays, *more: Any) -> dict[str, Arrays]:
        with pytest.MonkeyPatch.context() as inner:
            if not local_state:
                inner.setattr(Workplace, "bare", lambda *_: frozenset())
            return real(place, turn, local_state, *more)

    patch.setattr(site, "released", lax)


def rows_are_patients(patch: Patch) -> None:
    real = PrivacyGuard.__init__

    def lax(self: PrivacyGuard, *facts: Any, **more: Any) -> None:
        real(self, *facts, **more | {"patients_known": True})

    patch.setattr(PrivacyGuard, "__init__", lax)


def records_not_asked(patch: Patch) -> None:
    patch.setattr(Records, "demand", lambda self, study: None)


def witness_not_asked(patch: Patch) -> None:
    patch.setattr(Ledger, "_trusted", lambda self, db, witness: sound(self._path, db))
    patch.setattr(Records, "_ledger", lambda self, replies: iter(()))


def schedule_not_compared(patch: Patch) -> None:
    patch.setattr(Records, "_study", lambda self, study: iter(()))


def rules_read_once(patch: Patch) -> None:
    patch.setattr(Session, "stale", property(lambda self: False))


def approvals_read_once(patch: Patch) -> None:
    patch.setattr(Session, "approves", lambda self, digest: True)


def errors_are_told(patch: Patch) -> None:
    """What went wrong is the last thing that the site's program has thought of, and leaves in place of its name."""
    real, told = load_cohort, [""]

    def noted(*facts: Any) -> Cohort:
        try:
            return real(*facts)
        except FedgraftError as error:
            told[0] = str(error)
            raise

    packed = wire.pack_reply
    patch.setattr(sessions, "load_cohort", noted)
    patch.setattr(wire, "pack_reply", lambda answer, **how: packed(replace(answer, site=told[0]), **how))


def words_of_studies_are_not_looked_at(patch: Patch) -> None:
    patch.setattr(study, "_obeyed", lambda *_: iter(()))


def everybody_is_pinned(patch: Patch) -> None:
    patch.setattr(members, "_known", lambda home, own, roster, pins: dict(roster.members))


def fingerprints_are_not_compared(patch: Patch) -> None:
    patch.setattr(members, "_check_typed", lambda *_: None)


def keys_come_from_the_coordinator(patch: Patch) -> None:
    """As in the first edition, whose kits held what the site masks with."""
    real = enrolment._new_keys

    def copied(home: SiteHome) -> SiteKeys:
        keys = real(home)
        shutil.copy(home.masking_file, home.path.parent / "kits" / f"{home.path.name}.key")
        return keys

    patch.setattr(enrolment, "_new_keys", copied)


def the_last_key_wins(patch: Patch) -> None:
    """As PyYAML reads a file."""
    patch.setattr(config_files._Strict, "construct_mapping", yaml.SafeLoader.construct_mapping)


def a_new_model_is_another_question(patch: Patch) -> None:
    """Figures that were shown are kept in the place of the rounds' replies, out of which they are pushed."""
    patch.setattr(PrivacyGuard, "keep_metrics", lambda *_: None)
    patch.setattr(PrivacyGuard, "admit_metrics", lambda *_: None)
    patch.setattr(PrivacyGuard, "charge_metrics", lambda *_: 1.0)


def names_in_refusals_are_not_logged(patch: Patch) -> None:
    real = egress._line

    def short(digest: str, answer: Any, why: str) -> egress._Line:
        return real(digest, replace(answer, site="") if isinstance(answer, Refusal) else answer, why)

    patch.setattr(egress, "_line", short)


def figures_are_not_logged(patch: Patch) -> None:
    real = egress._line
    patch.setattr(egress, "_line", lambda *facts: replace(real(*facts), metrics={}))


def pings_are_all_that_is_logged(patch: Patch) -> None:
    patch.setattr(egress.EgressLog, "record", lambda *_: None)
