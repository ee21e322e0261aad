"""What a site's policy and ledger say of a study before it runs: stage by stage, and of the whole."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.budget import Proposal, guard_of, propose
from fedgraft.client.privacy.guard.final_step import demand_final_step
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.used_masks import read_pairs
from fedgraft.client.privacy.policy import EffectivePrivacy, Reason
from fedgraft.common.base.errors import InputError, LedgerError
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.protocol.routing import Tags, releases_plainly
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.study import Study

_FIXES = {
    Reason.NOT_PRIVATE: "Ask for a private stage, or set allow_non_dp: true if your people accept that what leaves can "
    "be inverted.",
    Reason.NOT_SECURE: "The policy says secure_aggregation_only, and the study sends in the open: ask the coordinator "
    "for secure_aggregation: true.",
    Reason.RETAINED_STATISTICS: "The coordinator would keep your sums, which can be inverted, beyond the study: set "
    "retain_statistics: "
    "true if your people accept that, or ask for a stage without local.retain_statistics.",
    Reason.BACKBONE: "A backbone of the study, its base models or its teacher is none of `backbones` in the policy.",
    Reason.ROLES: "The study trains entries that `train` in the policy does not list.",
    Reason.NO_PATIENTS: "Nothing says whose an image or row is, so a patient with several would be protected less than "
    "is said: name the column as patient_column in site.yaml, or set unit: image in the policy if each case may count "
    "by itself.",
    Reason.TOO_FEW_PATIENTS: "There are fewer training patients than min_patients of the policy; add patients.",
    Reason.BAD_REQUEST: "The study asks for privacy that makes no sense; tell the coordinator.",
    Reason.DELTA: "The study asks for a smaller delta than that of your ledger; tell the coordinator.",
    Reason.STEPS: "The study takes more steps than steps_max of the policy.",
    Reason.NOT_AWAITED: "Your policy holds the last that leaves until it is signed, and the study waits for nobody: "
    "ask the coordinator for rounds.release_wait_h above 0.",
    Reason.NO_LAST_STEP: "Your policy holds the last that leaves until it is signed, and with early_stopping in the "
    "last stage that sends nobody can tell beforehand which round that is: ask the coordinator for a study without it.",
    Reason.BUDGET: "The study costs more than epsilon_per_study of the policy; it needs more noise, or fewer steps.",
}
_LEDGER_FIX = "The ledger cannot be trusted, so nothing may be released: see fedgraft site budget."
_SECURE_FIX = (
    "The study has secure aggregation: `secure_aggregation` in site.yaml must name the site's mask key and roster, and "
    "people here must have pinned enough other sites: fedgraft site roster --accept NAME=FINGERPRINT."
)
_WHOLE_FIX = "Together with what was spent it costs more than the policy allows: see fedgraft site budget."


@dataclass(frozen=True)
class StageVerdict:
    """One stage: its noise and cost if it is private, a constant word and what to do if it is refused."""

    name: str
    kind: str
    """"private", "plain" (released without noise) or "silent" (nothing is released)."""
    privacy: EffectivePrivacy | None = None
    epsilon: float | None = None
    refused: str = ""
    fix: str = ""


@dataclass(frozen=True)
class StudyVerdict:
    """The whole study at a site of so many training patients; `refused` is a constant word, "" if it is allowed."""

    patients: int
    stages: tuple[StageVerdict, ...]
    cost: Proposal
    shows_metrics: bool
    """Whether exact sums of metrics and counts may leave, as the study asks for them: masked or not."""
    refused: str = ""
    fix: str = ""


def judge(config: SiteConfig, study: Study, tags: Tags, patients: int) -> StudyVerdict:
    """What the policy in `config`, and the ledger in its state folder, say of a study."""
    stages = tuple(_judge_stage(config, study, stage, tags, patients) for stage in study.plan)
    shows = guard_of(config, study, patients).shows_metrics
    first = next((stage for stage in stages if stage.refused), None)
    try:
        cost = propose(config, study, patients)
    except LedgerError:
        nothing = Proposal(study.digest, patients, (), 0.0, 0.0, Code.LEDGER.value)
        return StudyVerdict(patients, stages, nothing, shows, Code.LEDGER.value, _LEDGER_FIX)
    if first is not None:
        return StudyVerdict(patients, stages, cost, shows, first.refused, first.fix)
    try:
        demand_final_step(study, config.policy, tags, guard_of(config, study, patients).asked_in)
    except Refused as refused:
        return StudyVerdict(patients, stages, cost, shows, refused.why, _FIXES[Reason(refused.why)])
    if cost.refused:
        return StudyVerdict(patients, stages, cost, shows, Code.BUDGET.value, _WHOLE_FIX)
    if study.secure_aggregation and not _can_mask(config):
        return StudyVerdict(patients, stages, cost, shows, Code.NO_SECURE_AGGREGATION.value, _SECURE_FIX)
    return StudyVerdict(patients, stages, cost, shows)


def _can_mask(config: SiteConfig) -> bool:
    settings = config.secure_aggregation
    try:
        return settings is not None and len(read_pairs(config.name, settings).roster.keys) >= settings.fewest
    except InputError:
        return False


def _judge_stage(config: SiteConfig, study: Study, stage: Stage, tags: Tags, patients: int) -> StageVerdict:
    alone = guard_of(config, study.model_copy(update={"plan": (stage,)}), patients)
    kind = "plain" if releases_plainly(stage, tags) else "silent"
    try:
        planned = alone.planned(tags)
    except Refused as refused:
        # What a ledger says names its file; all other reasons are constant words.
        why = "" if refused.code is Code.LEDGER else refused.why
        fix = _FIXES[Reason(why)] if why in set(Reason) else _LEDGER_FIX
        return StageVerdict(stage.name, kind, refused=why or refused.code.value, fix=fix)
    if not planned:
        return StageVerdict(stage.name, kind)
    privacy = planned[0][1]
    cost = epsilon([Event(privacy.noise_multiplier, privacy.sample_rate, privacy.steps)], privacy.delta)
    return StageVerdict(stage.name, "private", privacy, cost)
