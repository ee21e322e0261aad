"""Which method the sites' differences and the model's own parts suggest, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from fedgraft.common.checks.far_source import TWO_STEPS
from fedgraft.common.protocol.routing import Tags
from fedgraft.common.study.plan import Role
from fedgraft.common.study.tasks import AnyTask, Regression

_LEARNT = {Role.STEM, Role.BODY, Role.NORM_AFFINE, Role.NORM_STATS}


@dataclass(frozen=True)
class MethodAdvice:
    """What to take first, why, and what to hold it against."""

    method: str
    why: str
    """A sentence or two; "" where there is nothing to say."""
    arms: tuple[str, ...]
    """Of a comparison that tries it."""
    until: str
    """What to take while it cannot be told who should train together."""


def method_advice(task: AnyTask, tags: Tags, *, from_elsewhere: bool, apart: bool, several: bool) -> MethodAdvice:
    """What to take for `task` with a model of these entries.

    `from_elsewhere`: no study has made its weights; `apart`: some pair of sites differs by more than chance;
    `several`: there are pairs at all.
    """
    roles = {tag.role for tag in tags.values()}
    own = (
        "one model, method: {{name: {}, personalise: best}}, by which a site keeps a model of its own if that "
        "is better on its validation cases"
    )
    if not roles & _LEARNT:
        method = "ridge_probe" if isinstance(task, Regression) else "logistic_probe"
        why = (
            f"method: {method}: the model is a head on what comes in, and heads from sums are those of all patients at "
            "one place."
        )
        return MethodAdvice(method, why, ("study", method, "fedavg", "local"), f"one model, method: {method}")
    if from_elsewhere:
        why = (
            f"method: {TWO_STEPS}: weights from elsewhere want a head first, norm statistics that stay as they came, "
            "and time: on real chest X-rays of 128 pixels twenty rounds did better than eight."
        )
        return MethodAdvice(TWO_STEPS, why, (TWO_STEPS, "ridge_probe", "scratch", "local"), own.format(TWO_STEPS))
    if Role.NORM_STATS not in roles:
        why = "method: fedavg: the model has no norm statistics that could stay at the sites." if several else ""
    elif apart:
        why = "Keep norm statistics at the sites: method: silobn or fedbn, or adapt at the end (graft)."
    else:
        why = "method: fedavg will do: local norm layers would gain nothing." if several else ""
    arms = ("study", "silobn", "fedavg", "local") if Role.NORM_STATS in roles else ("study", "fedavg", "ditto", "local")
    return MethodAdvice("fedavg", why, arms, own.format("fedavg"))
