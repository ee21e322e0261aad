"""What a site says of its cases when it greets: exact counts where policy shows figures, else its public size alone."""

from __future__ import annotations

from collections import Counter

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.tables.targets import label_counts
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.common.protocol.instructions import Greeting
from fedgraft.common.study.study import Study


def counts_of(study: Study, cohort: Cohort, guard: PrivacyGuard | None) -> Greeting:
    """A greeting with counts of cases by split, of known training labels, and of problems by reason.

    Where policy shows no figures, none of these leaves: a label that one patient has, or a file that one patient
    spoils, would say whether that patient is there. What is left is the public number of patients.
    """
    if guard is not None and not guard.shows_metrics:
        return Greeting(cohort.name, {"train": guard.public(0)}, {})
    labels = {
        task.name: dict(label_counts(task, cohort.targets[task.name][cohort.splits["train"]])) for task in study.tasks
    }
    problems: Counter[str] = Counter()
    for problem in cohort.problems:
        problems[problem.reason] += problem.count
    cases = {split: len(indices) for split, indices in cohort.splits.items()}
    return Greeting(cohort.name, cases, labels, dict(problems))
