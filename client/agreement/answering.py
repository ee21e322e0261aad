"""A site's answer to what it could supply for a study that nobody has approved yet: as its policy says, or none.

What the answer tells is fixed by the site's cases and its own file. Nothing in it follows from what a study may vary,
so that asking again, otherwise, tells no more; and a site gives few answers that differ, since a coordinator that asks
every day would see in them who came.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace

from fedgraft.client.agreement.seal import nonce_in, seal_of, state_of
from fedgraft.client.agreement.supply import Counting, described, missing, supplied
from fedgraft.client.agreement.wording import Heard, wording
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.enrolment.cohort_request import cohort_request, read_cohort
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.governance.budget import guard_of
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.small_records import ANSWERED
from fedgraft.client.privacy.policy import Reason
from fedgraft.common.base.errors import ENDS
from fedgraft.common.base.files import locked, make_folder, read_json, write_json
from fedgraft.common.models.initialise import make_model
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.answers import AskedPrice, Pin, SiteAnswer, question
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.study import Study

GROUNDS = "numbers of patients over the whole cohort, by agreement of the policy"

_CHANGED = (
    "the cases are not those over which this site answered for the run's agreement: the coordinator may ask again, by "
    "`fedgraft study ask`, or you put the cases back as they were"
)


def answer_study(config: SiteConfig, study: Study) -> SiteAnswer:
    """What the site could supply. Refused if its policy tells nothing; DataError if its cohort cannot be read."""
    exact = config.observer or config.policy.agreement == "exact"
    _demand_allowed(config, exact=exact)
    try:
        answer = _answer(config, study, exact=exact)
    except (Refused, *ENDS):
        raise
    except BaseException:
        # That a column cannot be read as a study asks may be due to one patient's cell, and so is an answer as well.
        if not exact:
            _once_more(config, f"not read {question(study)}")
        raise
    if not exact:
        _once_more(config, answer.counts)
    seal = seal_of(answer.digest, answer.state, question(study), place_of(config, study.digest).secret)
    return replace(answer, seal=seal)


def _demand_allowed(config: SiteConfig, *, exact: bool) -> None:
    if config.policy.agreement == "none" and not exact:
        why = "somebody asked what the site could supply, and agreement of the policy is none"
        raise Refused(Code.POLICY, why)
    if not exact and config.policy.unit == "patient" and not config.cohort.knows_patients:
        # Ten images may be of one patient.
        raise Refused(Code.POLICY, Reason.NO_PATIENTS.value)


def demand_agreed(pin: Pin, config: SiteConfig, study: Study) -> None:
    """Refused unless the site gave this answer to what the study asks, and over the cases that it has now."""
    asked, secret = question(study), place_of(config, study.digest).secret
    if not hmac.compare_digest(pin.seal, seal_of(pin.answer, pin.state, asked, secret)):
        why = "the run's agreement has an answer under this site's name that the site never gave to such a study"
        raise Refused(Code.OTHER_AGREEMENT, why)
    if not hmac.compare_digest(pin.state, state_of(_read(config, study)[1], asked, secret, nonce_in(pin.state))):
        raise Refused(Code.COHORT_CHANGED, _CHANGED)


def _answer(config: SiteConfig, study: Study, *, exact: bool) -> SiteAnswer:
    heard, cohort = _read(config, study)
    counting = Counting.of(cohort, exact=exact)
    patients = counting.count(counting.patients >= 0)
    # What is priced for must not follow from the study's split: many splits together would tell the number exactly.
    trained = len({cohort.patients[at] for at in cohort.splits["train"].tolist()}) if exact else patients[1]
    return SiteAnswer(
        config.name,
        exact,
        config.observer,
        patients,
        supplied(cohort, heard, counting),
        described(cohort, study.input, counting),
        missing(cohort, config.cohort, study.input, counting),
        _price(config, study, trained),
        state_of(cohort, question(study), place_of(config, study.digest).secret),
    )


def _read(config: SiteConfig, study: Study) -> tuple[Mapping[str, Heard], Cohort]:
    """What the site has of every task, and its cases under its own words. Refused if it has nothing of any."""
    words = wording(config.cohort, study)
    if not words.tasks:
        raise Refused(Code.NO_LABELS, "the site has no column, and no masks, for any task of the study")
    wanted = replace(cohort_request(config, study), tasks=words.tasks)
    return words.heard, read_cohort(config.model_copy(update={"cohort": words.spec}), study, [], wanted)


def _price(config: SiteConfig, study: Study, patients: int) -> AskedPrice:
    """What the plan costs at a site of so many patients that has spent nothing; constant words if it may not be had.

    What the site has spent is not in it: that would tell of its other studies.
    """
    if config.observer:
        return AskedPrice(0.0, 0.0)
    guard = guard_of(config, study, patients, looks=True)
    try:
        planned = [privacy for _, privacy in guard.planned(make_model(study).tags())]
        events = [Event(privacy.noise_multiplier, privacy.sample_rate, privacy.steps) for privacy in planned]
        cost = epsilon(events, guard.delta) if events else 0.0
    except Refused as refused:
        return AskedPrice(0.0, 0.0, refused.why if refused.why in set(Reason) else refused.code.value)
    if not cost <= config.policy.epsilon_per_study:
        return AskedPrice(0.0, 0.0, Code.BUDGET.value)
    return AskedPrice(cost, guard.delta if events else 0.0)


def _once_more(config: SiteConfig, counts: str) -> None:
    """Put the answer on record, unless it was given before. Refused if the policy's number of answers is reached."""
    path = config.state / ANSWERED
    make_folder(config.state)
    with locked(path):
        known = read_json(path) if path.exists() else []
        if counts in known:
            return
        if len(known) >= config.policy.agreement_answers:
            why = "agreement_answers of the policy were given before, and the numbers would differ from all of them"
            raise Refused(Code.POLICY, why)
        write_json(path, [*known, counts], private=True)
