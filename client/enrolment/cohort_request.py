"""What a study wants of a site's cohort, and by which rule the site's patients are split for it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, load_cohort
from fedgraft.client.data.cohorts.splits import SplitRule
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import DataError
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.study import Study


def cohort_request(config: SiteConfig, study: Study) -> CohortRequest:
    """The study's request, under this site's policy."""
    rule, subgroups = split_rule(config.policy, study), config.policy.subgroups_judged(study)
    return CohortRequest(study.tasks, study.input, study.split, study.seed, rule, subgroups)


def source_request(config: SiteConfig, study: Study) -> CohortRequest:
    """The same of a source's cases, of which no figures leave: nothing need say their subgroups."""
    return replace(cohort_request(config, study), subgroups=())


def split_rule(policy: SitePolicy, study: Study) -> SplitRule:
    """`independent` if anything with differential privacy may follow: a private stage, a site that lets nothing else
    out, noised metrics. Else `stratified`.
    """
    private = is_private(study) or not policy.allow_non_dp or policy.metrics == "noised"
    return "independent" if private else "stratified"


def read_cohort(
    config: SiteConfig, study: Study, left_out: list[str], wanted: CohortRequest | None = None, *, full: bool = False
) -> Cohort:
    """The cohort as the study would see it. DataError as `load_cohort`. Fills `left_out`: files not used, and why.

    The site's own splits are used if it has some, and not written if it has none: a study that was merely looked at
    must not decide them. Decoded images stay in the cache. `wanted` is what is asked of the cohort, if not what the
    study asks. `full` compares what is kept of decoded images with its digests.
    """
    place = place_of(config, study.digest)
    with tempfile.TemporaryDirectory(prefix="fedgraft-look-") as folder:
        state = Path(folder)
        if (place.state / "splits.csv").exists():
            shutil.copy(place.state / "splits.csv", state)
        wanted = wanted or cohort_request(config, study)
        try:
            return load_cohort(config.name, config.cohort, wanted, replace(place, state=state, full=full))
        except DataError as error:
            raise DataError(str(error).replace(str(state), str(place.state))) from None
        finally:
            if (state / "left_out.csv").exists():
                left_out += (state / "left_out.csv").read_text(encoding="utf-8").splitlines()[1:]
