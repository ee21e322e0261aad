"""What a study wants of a site's cohort, and by which rule the site's patients are split for it."""

from __future__ import annotations

from fedgraft.client.data.cohorts.cohort import CohortRequest
from fedgraft.client.data.cohorts.splits import SplitRule
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.study import Study


def cohort_request(config: SiteConfig, study: Study) -> CohortRequest:
    """The study's request, under this site's policy."""
    rule, subgroups = split_rule(config.policy, study), config.policy.subgroups_of(study)
    return CohortRequest(study.tasks, study.input, study.split, study.seed, rule, subgroups)


def split_rule(policy: SitePolicy, study: Study) -> SplitRule:
    """`independent` if anything with differential privacy may follow: a private stage, a site that lets nothing else
    out, noised metrics. Else `stratified`.
    """
    private = is_private(study) or not policy.allow_non_dp or policy.metrics == "noised"
    return "independent" if private else "stratified"
