"""What a site says of its cases when it greets: counts, exact or as its policy lets them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.targets import label_counts
from fedgraft.common.protocol.instructions import Greeting
from fedgraft.common.study.study import Study


def counts_of(study: Study, cohort: Cohort, public: Callable[[int], int]) -> Greeting:
    """A greeting with counts of cases by split, of known training labels, and of problems by reason."""
    labels = {}
    for task in study.tasks:
        counts = label_counts(task, cohort.targets[task.name][cohort.splits["train"]])
        labels[task.name] = {name: public(count) for name, count in counts.items()}
    problems: Counter[str] = Counter()
    for problem in cohort.problems:
        problems[problem.reason] += public(problem.count)
    cases = {split: public(len(indices)) for split, indices in cohort.splits.items()}
    return Greeting(cohort.name, cases, labels, dict(problems))
