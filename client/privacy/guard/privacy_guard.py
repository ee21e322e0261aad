"""What stands between a study's wishes and the site's data: the site's policy, and its ledger.

The order matters: policy, charge, work, reply kept, reply sent. A crash in between costs the charge, never privacy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedgraft.client.privacy.guard.final_step import demand_final_step
from fedgraft.client.privacy.guard.privacy_request import request_of, steps_of
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.guard.shown_counts import ShownCounts
from fedgraft.client.privacy.guard.study_account import StudyAccount
from fedgraft.client.privacy.guard.survival_counts import demand_figures, question
from fedgraft.client.privacy.ledger.hash_chain import Facts
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.ledger import AlreadyCharged, Caps, ChargeRefused
from fedgraft.client.privacy.ledger.public_counts import PublicCounts
from fedgraft.client.privacy.ledger.reply_store import Replies
from fedgraft.client.privacy.ledger.small_records import PUBLIC, RELEASES, SHOWN
from fedgraft.client.privacy.policy import (
    EffectivePrivacy,
    Metrics,
    PrivacyRequest,
    Reason,
    SitePolicy,
    effective,
)
from fedgraft.common.base.errors import LedgerError
from fedgraft.common.privacy.accountant import (
    Event,
    Spend,
    Unit,
    epsilon,
    noise_for,
)
from fedgraft.common.protocol.instructions import Arrays, Code
from fedgraft.common.protocol.routing import (
    Tags,
    changed,
    privacy_request,
    releases_plainly,
    retains_statistics,
)
from fedgraft.common.study.plan import Role, Stage
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.stages.training import Private
from fedgraft.common.study.study import Study

_LOST = "this round was charged, and then the site crashed: the charge is lost"


class PrivacyGuard:
    """One site's policy and ledger in one study. `patients` counts those that the study may learn from.

    `is_source` says that they are no patients of a hospital, but public source data; `patients_known` whether the data
    say whose a case is. `witness` is where the ledger's witness is, if not beside the site's state `folder`. A guard
    that only `looks` fixes no public number.
    """

    def __init__(  # noqa: PLR0913 - the rules of a site, and where its records are
        self,
        study: Study,
        policy: SitePolicy,
        folder: Path,
        patients: int,
        *,
        is_source: bool = False,
        witness: Path | None = None,
        patients_known: bool = True,
        looks: bool = False,
    ) -> None:
        self.is_source = is_source
        self._patients_known = patients_known or is_source
        self._study = study
        self._policy = policy
        self._account = StudyAccount(study, Held.of(folder, witness), policy.epsilon_lifetime)
        self._shown = ShownCounts(folder / SHOWN)
        self._replies = Replies(folder / "replies" / study.digest)
        # Once in a study is once: what was released is never pushed out by later replies.
        self._releases = Replies(folder / RELEASES / study.digest)
        self._patients = patients
        self._public = PublicCounts(folder / PUBLIC, fixes=not looks)
        self._allowed: set[tuple[frozenset[Role], bool]] = set()

    @property
    def delta(self) -> float:
        """That of the site's ledger, or the one with which it would begin."""
        known = self._account.delta()
        return self._policy.delta_for(self.public_units("patient", 0)) if known is None else known

    @property
    def unit(self) -> Unit:
        """What the site's policy protects as one: a patient with all images, or an image."""
        return self._policy.unit

    @property
    def keeps_features(self) -> bool:
        """Whether features may lie on the site's disk until the study ends."""
        return self._policy.keep_features

    @property
    def metrics(self) -> Metrics:
        """What may leave about the site's data, besides what privacy pays for."""
        return self._policy.metrics

    @property
    def shows_metrics(self) -> bool:
        """Whether exact sums of metrics, losses and counts may leave, as this study asks for them: masked or not."""
        return self._policy.metrics == "exact" or (
            self._study.secure_aggregation and self._policy.metrics == "secure_aggregation"
        )

    def public(self, count: int) -> int:
        """A count as it may leave: exact where metrics may; else the public number of patients, whatever it is."""
        return count if self.shows_metrics else self._public.of("patient", self._patients)

    def public_units(self, unit: Unit, count: int) -> int:
        """The public number of units, by which private sums are divided; `count` is the true one, asked for once."""
        return self._public.of(unit, self._patients if unit == "patient" else count)

    def admit(self, tags: Tags) -> None:
        """Look at the whole study before its first round; raises Refused if the site could not go through with it."""
        demand_final_step(self._study, self._policy, tags, self.asked_in)
        planned = self.planned(tags)
        events = [_event(privacy) for _, privacy in planned] + list(self.metrics_events())
        if not events:
            return
        delta = self.delta
        if not epsilon(events, delta) <= self._policy.epsilon_per_study:
            raise Refused(Code.BUDGET, "all stages together cost more than epsilon_per_study of the policy")
        if not epsilon(events + list(self._account.spent_by_others()), delta) <= self._policy.epsilon_lifetime:
            raise Refused(Code.BUDGET, "with what other studies have spent, more than epsilon_lifetime of the policy")

    def demand_secure_aggregation(self) -> None:
        """Raise Refused if the policy lets nothing leave in the open, and the study has no masks."""
        if self._policy.secure_aggregation_only and not self._study.secure_aggregation:
            raise Refused(Code.POLICY, Reason.NOT_SECURE.value)

    def planned(self, tags: Tags) -> list[tuple[Stage, EffectivePrivacy]]:
        """The study's private stages and what the site makes of each. Raises Refused for what policy does not allow."""
        self.demand_secure_aggregation()
        planned = []
        for stage in self._study.plan:
            if not self.asked_in(stage):
                continue
            roles = frozenset(tags[key].role for key in changed(stage, tags))
            if releases_plainly(stage, tags):
                self.allow_plain(roles, kept=retains_statistics(stage))
                demand_figures(self._policy, self._study, stage)
            elif privacy_request(stage) is not None:
                planned.append((stage, self._effective(request_of(self._study, stage, roles))))
        return planned

    def asked_in(self, stage: Stage) -> bool:
        """Whether the site could be asked to work in this stage: hospitals never for the source, and the other way."""
        if self.is_source or stage.where == "source":
            return self.is_source and (stage.where == "source" or stage.joint_lambda is not None)
        return stage.where != "labelled" or self._patients > 0

    def allow_plain(self, roles: frozenset[Role], *, kept: bool = False) -> None:
        """Let work be released without noise. Raises Refused unless the site's policy says that it may.

        `kept` says that the coordinator keeps what each site sends.
        """
        if (roles, kept) in self._allowed:
            return
        architectures, secure_aggregation = self._study.architectures, self._study.secure_aggregation
        self._effective(
            PrivacyRequest(
                architectures, roles, private=False, steps=1, secure_aggregation=secure_aggregation, kept=kept
            )
        )
        self._allowed.add((roles, kept))

    def charge(
        self, stage: Stage, exchange: int, roles: frozenset[Role], model: str, cases: int
    ) -> Private | PrivateSums:
        """Charge one round of private work on the `model` of that digest, and give what the site makes of the request.

        `cases` is the number of training cases, of which only a public, coarse number is used.

        Raises Refused, or Replay if this round was answered before.
        """
        asked = privacy_request(stage)
        assert asked is not None
        privacy = self._effective(request_of(self._study, stage, roles))
        facts = Facts(privacy.unit, self._patients, model, "train" if isinstance(asked, Private) else "sums")
        event = Event(privacy.noise_multiplier, privacy.sample_rate, steps_of(stage))
        self._charge(exchange, event, facts, privacy)
        found = {"noise_multiplier": privacy.noise_multiplier, "unit": privacy.unit, "epsilon": None}
        if isinstance(asked, PrivateSums):
            return asked.model_copy(update=found | {"max_norm": privacy.max_grad_norm})
        expected = asked.expected_units or self.public_units(privacy.unit, cases)
        found |= {"max_grad_norm": privacy.max_grad_norm, "sample_rate": privacy.sample_rate}
        return asked.model_copy(update=found | {"expected_units": expected})

    def _charge(self, exchange: int, event: Event, facts: Facts, privacy: EffectivePrivacy) -> None:
        # Looked at once more within the charge: another study may have been charged since the look before.
        limit = self._policy.metrics_lifetime if facts.release == "metrics" else math.inf
        try:
            self._account.ledger(privacy).charge(
                self._study.digest, exchange, event, facts, Caps(privacy.epsilon_per_study, limit)
            )
        except ChargeRefused as refused:
            raise Refused(Code.BUDGET, refused.reason.value) from None
        except AlreadyCharged:
            raise self._replies.of(exchange) or Refused(Code.BUDGET, _LOST) from None
        except LedgerError as error:
            raise Refused(Code.LEDGER, str(error)) from None

    def charge_metrics(self, exchange: int, model: str) -> float:
        """Charge the study's only release of noised counts, and give its noise over what one unit can change.

        Raises Refused, or Replay if it was released before, whatever model it was asked of.
        """
        self._answered_once(exchange)
        if self._untold:
            raise Refused(Code.POLICY, Reason.NO_PATIENTS.value)
        event = next(self.metrics_events(), None)
        if event is None:
            raise Refused(Code.BUDGET, "metrics of other studies have cost metrics_lifetime of the policy")
        facts = Facts(self._policy.unit, self._patients, model, "metrics")
        privacy = EffectivePrivacy(
            True,
            facts.unit,
            self._policy.epsilon_per_study,
            self.delta,
            event.noise_multiplier,
            1.0,
            1.0,
            1,
            self.metrics,
        )
        self._charge(exchange, event, facts, privacy)
        return event.noise_multiplier

    def admit_metrics(self, exchange: int) -> None:
        """Let exact but coarse counts out, once in a study and for few studies in all. Raises Refused, or Replay.

        There is no budget for what is exact: many such counts together give single labels away.
        """
        self._answered_once(exchange)
        self._shown.admit(self._study.digest, self._policy.metrics_studies)

    def admit_survival(self, stage: Stage, patients: Sequence[str], exits: np.ndarray) -> None:
        """Let coarse counts out of who left when, by one question for ever. Raises Refused."""
        self._shown.admit_survival(question(self._study, stage, patients, exits))

    def keep_metrics(self, exchange: int, shown: Arrays) -> None:
        """Put the study's only release of figures on disk, before it is sent."""
        self._releases.keep(exchange, shown, {})

    def _answered_once(self, exchange: int) -> None:
        if (answered := self._releases.of(exchange)) is not None:
            raise answered

    def metrics_events(self) -> Iterator[Event]:
        """What the release of noised counts costs, if there will be one.

        All of them together may cost much less than all work together: each is a question about the same few cases.
        """
        if self.metrics != "noised" or self._study.secure_aggregation or self._untold:
            return
        noise_multiplier = noise_for(self._policy.metrics_epsilon, self.delta, 1.0, 1)
        event = Event(max(self._policy.noise_multiplier_min, noise_multiplier), 1.0, 1)
        if epsilon([*self._account.spent_by_others("metrics"), event], self.delta) <= self._policy.metrics_lifetime:
            yield event

    def grounds(self, stage: Stage | None, *, plain: bool) -> str:
        """What the policy says of an answer to this stage (None: evaluation), which is `plain` if without noise."""
        words = []
        if stage is not None and (asked := privacy_request(stage)) is not None:
            what = "entries trained" if isinstance(asked, Private) else "sums noised"
            words.append(f"{what} with differential privacy, charged to the ledger")
        elif plain:
            words.append("entries or sums without noise, by allow_non_dp of the policy")
        if self.shows_metrics:
            words.append("exact figures, by metrics of the policy")
        if self._study.secure_aggregation:
            words.append("masked, so that only sums over several sites can be read")
        if stage is None and self.metrics in ("noised", "suppressed"):
            words.append(f"counts of test cases, {self.metrics}, by metrics of the policy")
        if stage is None and (names := [one.name for one in self._policy.subgroups_of(self._study)]):
            words.append(f"of subgroups too, by subgroups of the policy: {', '.join(names)}")
        return "; ".join(words) or "nothing of the site's data"

    def spend(self) -> Spend | None:
        """What this study has cost here so far; None if nothing. See `StudyAccount.spend` for its delta."""
        return self._account.spend()

    def keep(self, exchange: int, shared: Arrays, own: Arrays) -> None:
        """Put what is about to be sent on disk, so that it can be sent again without being computed again."""
        self._replies.keep(exchange, shared, own)

    def _effective(self, request: PrivacyRequest) -> EffectivePrivacy:
        request = replace(request, patients_known=self._patients_known)
        reserved = tuple(self.metrics_events()) if request.private else ()
        delta = self.delta if request.private else self._account.delta()
        privacy = effective(self._policy, request, self._patients, delta, reserved)
        if isinstance(privacy, Reason):
            raise Refused(Code.BUDGET if privacy is Reason.BUDGET else Code.POLICY, privacy.value)
        return privacy

    @property
    def _untold(self) -> bool:
        """Whether patients are to be protected, and nothing says whose a case is."""
        return not self._patients_known and self.unit == "patient"


def _event(privacy: EffectivePrivacy) -> Event:
    return Event(privacy.noise_multiplier, privacy.sample_rate, privacy.steps)
