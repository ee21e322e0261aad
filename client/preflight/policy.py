"""Preflight: does the site's policy allow the study, and what does it cost?"""

from __future__ import annotations

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.verdict import StageVerdict, judge
from fedgraft.client.preflight.report import Findings
from fedgraft.common.models.initialise import make_model
from fedgraft.common.study.study import Study


def check_policy(config: SiteConfig, study: Study, cohort: Cohort) -> Findings:
    """One line for every stage and one for the whole."""
    found = Findings()
    if config.observer:
        found.skipped("study", "an observer's data are public: it is evaluated on, and never trains")
        return found
    verdict = judge(config, study, make_model(study).tags(), learning_patients(study, cohort))
    for stage in verdict.stages:
        _stage(found, stage)
    cost = verdict.cost
    figures = {"epsilon": round(cost.epsilon, 3), "epsilon_after": round(cost.total_after, 3)}
    if verdict.refused:
        found.fails("study", f"the policy does not allow the study: {verdict.refused}", verdict.fix, **figures)
    elif any(stage.kind == "private" for stage in verdict.stages):
        description = f"allowed; costs epsilon {cost.epsilon:.2f}, all studies after it {cost.total_after:.2f}"
        found.fine("study", description, **figures)
    else:
        found.fine("study", "allowed; nothing is charged to the ledger", **figures)
    return found


def _stage(found: Findings, stage: StageVerdict) -> None:
    name = f"policy_{stage.name}"
    if stage.refused:
        found.fails(name, f"refused: {stage.refused}", stage.fix, refused=stage.refused)
    elif stage.privacy is not None and stage.epsilon is not None:
        description = (
            f"private: noise {stage.privacy.noise_multiplier:.2f} times `max_grad_norm`, epsilon {stage.epsilon:.2f}"
        )
        found.fine(
            name,
            description,
            noise_multiplier=round(stage.privacy.noise_multiplier, 4),
            epsilon=round(stage.epsilon, 4),
        )
    elif stage.kind == "plain":
        found.note(name, "allowed without noise by allow_non_dp", "What leaves can be inverted, up to single images.")
    else:
        found.fine(name, "releases nothing")
