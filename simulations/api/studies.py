"""What can be known of a study before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedgraft.common.checks.explain import describe_task, sentence
from fedgraft.common.checks.explain import explain as explain_study
from fedgraft.common.checks.far_source import weights_advice
from fedgraft.common.checks.together import who_is_together
from fedgraft.common.study.study import Study
from fedgraft.simulations.api.simulate import AnyStudy, open_study
from fedgraft.simulations.planning.pricing import Price
from fedgraft.simulations.planning.pricing import price as price_study


@dataclass(frozen=True)
class Explanation:
    """What a study will train, share and move. Printed, or shown in a notebook, it is a sentence a stage."""

    study: Study
    tasks: tuple[str, ...]
    sentences: tuple[str, ...]
    stages: tuple[dict[str, Any], ...]
    """One row for each stage, as in a run's result."""

    def __str__(self) -> str:
        lines = [f"{number}. {line}" for number, line in enumerate(self.sentences, start=1)]
        return "\n".join([f"Study {self.study.name}, digest {self.study.digest}", *self.tasks, *lines])

    __repr__ = __str__


def explain(study: AnyStudy) -> Explanation:
    """What a study will do, stage by stage. StudyError with every reason why it cannot work."""
    found, source = open_study(study)
    explained = explain_study(found, source)
    rows = explained.rows
    said = tuple(f"{stage.name}: {sentence(stage, row)}" for stage, row in zip(found.plan, rows, strict=True))
    start = explained.start
    advised = weights_advice(found, start.provenance.manifest, start.architecture.tags)
    said += (*who_is_together(found, start.architecture.entries), *advised)
    return Explanation(found, tuple(map(describe_task, found.tasks)), said, tuple(rows))


def price(study: AnyStudy, patients: int = 1000, *, metrics_epsilon: float | None = None) -> Price:
    """What a study costs a site with so many patients in training: epsilon, by stage and together, at its delta.

    `metrics_epsilon` is what the site's policy allows noised figures to cost, if it has `metrics: noised`. Nothing is
    spent in stages without noise, which promise nothing. StudyError with every reason why the study cannot work.
    """
    return price_study(open_study(study)[0], patients, metrics_epsilon=metrics_epsilon)
