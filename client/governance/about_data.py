"""What a study takes for one of the site's patients, how many there are, and how they are split; in plain words."""

from __future__ import annotations

from typing import Any

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.data.cohorts.splits import IN_WORDS
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.budget import guard_of
from fedgraft.client.privacy.ledger.public_counts import coarse
from fedgraft.common.privacy.accountant import Unit
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.study.study import Study


def about_data(config: SiteConfig, study: Study, cohort: Cohort) -> dict[str, Any]:
    """`count` and `training` are numbers of units, exact or coarse as the policy's `metrics` says; nothing is fixed."""
    unit, spec = unit_of(config, study), config.cohort
    exact = guard_of(config, study, learning_patients(study, cohort)).shows_metrics
    all_cases, train = range(len(cohort.inputs)), cohort.splits["train"].tolist()

    def units(cases: Any) -> int:
        count = len(cases) if unit == "image" else len({cohort.patients[case] for case in cases})
        return count if exact else coarse(count)

    return {
        "unit": unit,
        "case": spec.what.case,
        "told_by": "PatientID" if spec.what.names_patients else spec.patient_column,
        "count": units(all_cases),
        "training": units(train),
        "exact": exact,
        "split_rule": cohort.split_rule,
    }


def unit_of(config: SiteConfig, study: Study) -> Unit:
    """Whom the study's private work would protect here: a patient, unless the site's policy says image and either the
    study does too, or nothing says whose a case is.
    """
    asked = {request.unit for stage in study.plan if (request := privacy_request(stage)) is not None}
    single = asked == {"image"} or not config.cohort.knows_patients
    return "image" if config.policy.unit == "image" and single else "patient"


def data_in_words(data: dict[str, Any]) -> list[str]:
    """The same as lines for a person."""
    case, told_by = data["case"], data["told_by"]
    cases = f"all {case}s with the same {told_by}" if told_by else f"a single {case}, since nothing says whose it is"
    what = f"a patient: {cases}" if data["unit"] == "patient" else f"a single {case}, whoever it is of"
    count, train = (f"{data[key]:,}" if data["exact"] else f"up to {data[key]:,}" for key in ("count", "training"))
    lines = [
        "What counts as one here:",
        f"  one unit is {what}",
        f"  there are {count} of them, {train} to train on" + ("" if data["exact"] else " (in coarse steps)"),
    ]
    if data["unit"] == "image" and told_by:
        lines.append(f"  a patient with several {case}s is protected less than the figures of privacy say")
    lines.append(f"  patients are {IN_WORDS[data['split_rule']]}")
    return lines
