"""Cox's proportional hazards from sums: each exchange is a step of Newton's method, equal to the pooled step.

With w = exp(x b) every site adds up, over its patients who left in each bin of time, w, w x and w x x', and over its
events how many came in each bin, and x. What is at risk in a bin is the sum of all that leaves in it or later, over all
sites. From that follow Breslow's partial likelihood (1974), sum x b over events - sum d log S0, its slope, and its
curvature, sum d (S2 / S0 - S1 S1' / S0^2). Each class of `by` is a stratum, with a baseline of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedgraft.common.base.errors import RunError
from fedgraft.common.closed_form.survival import curves
from fedgraft.common.protocol.instructions import Arrays
from fedgraft.common.protocol.states import State, States
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.stages.survival import Survival
from fedgraft.common.study.study import Study

EVENTS, MOVED, WEIGHTS, MEANS, SQUARES = "events", "moved", "weights", "means", "squares_of_hazards"
"""Names of the sums: events (strata, bins); x over events (d,); w, w x and w x x' (strata, bins + 1, ...)."""
COEFFICIENTS = "coefficients"
_LARGEST = 50.0
"""What x b is kept below: e^50 times the usual hazard is of a step that went astray, and is taken back."""
_LONGEST = 5.0
_SETTLED = 1e-6
_FINITE = 690.0
"""What a ratio's logarithm is kept within, so that it is a number in every file."""
_Z = 1.959963984540054

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CoxSteps(State):
    """Where a stage's steps have come to: the `coefficients` that go to the sites, and where they came from."""

    coefficients: Arrays
    before: Arrays
    """The coefficients with the largest likelihood so far, and that; nothing before the first round."""

    owner: ClassVar[str] = "cox"


@dataclass(frozen=True)
class HazardRatios(State):
    """By stage the coefficients that its steps ended with, and what else people are told of them."""

    coefficients: Arrays
    errors: Arrays
    facts: Arrays
    """Events, log partial likelihood, and how far the last step went in units of the errors."""

    owner: ClassVar[str] = "hazard_ratios"
    lasts: ClassVar[bool] = True


def hazard_shapes(strata: int, bins: int, width: int) -> dict[str, tuple[int, ...]]:
    """Those of the sums."""
    whole = (strata, bins + 1)
    return {
        EVENTS: (strata, bins),
        MOVED: (width,),
        WEIGHTS: whole,
        MEANS: (*whole, width),
        SQUARES: (*whole, width, width),
    }


def hazard_sums(
    spec: Survival, left: tuple[np.ndarray, np.ndarray, np.ndarray], x: Floats, now: Floats, strata: int
) -> dict[str, np.ndarray]:
    """A site's sums at the coefficients `now` (d,); `left` are times, events and strata of patients, x (n, d)."""
    times, events, stratum = left
    ends = np.asarray(spec.ends, np.float64).astype(times.dtype)
    found = {name: np.zeros(shape) for name, shape in hazard_shapes(strata, len(ends), x.shape[1]).items()}
    bins = np.searchsorted(ends, times)
    w = np.exp(np.minimum(x @ now, _LARGEST))
    came = (events == 1) & (bins < len(ends))
    np.add.at(found[EVENTS], (stratum[came], bins[came]), 1.0)
    found[MOVED] += x[came].sum(axis=0)
    for place in set(zip(stratum.tolist(), bins.tolist(), strict=True)):
        own = (stratum == place[0]) & (bins == place[1])
        weighted = x[own] * w[own, None]
        found[WEIGHTS][place] = w[own].sum()
        found[MEANS][place] = weighted.sum(axis=0)
        found[SQUARES][place] = weighted.T @ x[own]
    return found


def take_step(stage: Stage, sums: Arrays, states: States) -> None:
    """Move the stage's coefficients by a step from the sums over sites; RunError if there is no event.

    Where the likelihood fell, half of the step before is taken back instead.
    """
    known = states.get(stage.name, CoxSteps) or CoxSteps({COEFFICIENTS: np.zeros_like(sums[MOVED])}, {})
    now = known.coefficients[COEFFICIENTS]
    if not sums[EVENTS].sum() > 0:
        raise RunError("No site has an event within the bins of time.", fix="Look at ends, and at the event's classes.")
    likelihood, slope, curvature = partial_likelihood(sums, now)
    before = known.before
    if before and not likelihood >= float(before["likelihood"][0]) - 1e-9 * abs(likelihood):
        states.put(stage.name, CoxSteps({COEFFICIENTS: (now + before[COEFFICIENTS]) / 2}, before))
        return
    inverse = np.linalg.pinv(curvature, hermitian=True)
    step = inverse @ slope
    length = max(0.0, float(slope @ step)) ** 0.5
    events = float(sums[EVENTS].sum())
    after = now + step * min(1.0, _LONGEST * events**0.5 / max(length, 1e-300))
    states.put(stage.name, CoxSteps({COEFFICIENTS: after}, {COEFFICIENTS: now, "likelihood": np.array([likelihood])}))
    ended = states.get("", HazardRatios) or HazardRatios({}, {}, {})
    found = after, np.sqrt(np.maximum(np.diag(inverse), 0.0)), np.array([events, likelihood, length])
    known_so_far = ended.coefficients, ended.errors, ended.facts
    states.put("", HazardRatios(*({**own, stage.name: new} for own, new in zip(known_so_far, found, strict=True))))


def partial_likelihood(sums: Arrays, now: Floats) -> tuple[float, Floats, Floats]:
    """Breslow's log partial likelihood at `now`, its slope (d,), and its curvature (d, d), from sums over all sites."""
    s0, s1, s2 = (np.cumsum(sums[name][:, ::-1], axis=1)[:, ::-1][:, :-1] for name in (WEIGHTS, MEANS, SQUARES))
    there = (sums[EVENTS] > 0) & (s0 > 0)
    d, s0, s1, s2 = sums[EVENTS][there], s0[there], s1[there], s2[there]
    mean = s1 / s0[:, None]
    likelihood = float(sums[MOVED] @ now - d @ np.log(s0))
    slope = sums[MOVED] - d @ mean
    curvature = np.einsum("e,eij->ij", d / s0, s2) - np.einsum("e,ei,ej->ij", d, mean, mean)
    return likelihood, slope, (curvature + curvature.T) / 2


def followed(study: Study, states: States, state: Arrays) -> dict[str, list[dict[str, Any]]]:
    """What a run's patients were followed for: Kaplan-Meier curves (`survival`) and Cox regressions (`hazards`)."""
    return {"survival": curves(study, states), "hazards": hazards(study, states, state)}


def hazards(study: Study, states: States, state: Arrays) -> list[dict[str, Any]]:
    """What the Cox regressions of a run ended with, one row for each stage, as `result.json` has them.

    Coefficients are for one more of a column's own unit where features are a table's columns; else for one more of a
    feature. The log partial likelihood, and errors, are those before the last step; `settled` says that this step went
    nowhere any more.
    """
    known = states.get("", HazardRatios)
    if known is None:
        return []
    return [_described(study, stage.name, known, state) for stage in study.plan if stage.name in known.coefficients]


def _described(study: Study, stage: str, known: HazardRatios, state: Arrays) -> dict[str, Any]:
    value, error = known.coefficients[stage], known.errors[stage]
    names = [f"feature {at}" for at in range(len(value))]
    if study.model.backbone == "table_linear" and isinstance(study.input, TableInput):
        words = ((name, own) for name, own in study.input.categorical.items())
        names = [*study.input.numeric, *(f"{name} = {word}" for name, own in words for word in own)]
        scale = next(array for key, array in state.items() if key.endswith("standardise.std")).astype(np.float64)
        value, error = value / scale, error / scale
    events, likelihood, length = known.facts[stage].tolist()
    rows = zip(names, value.tolist(), error.tolist(), strict=True)
    return {
        "stage": stage,
        "events": events,
        "likelihood": likelihood,
        "settled": length < _SETTLED,
        "columns": [_row(*row) for row in rows],
    }


def _row(name: str, value: float, error: float) -> dict[str, Any]:
    ends = np.clip([value, value - _Z * error, value + _Z * error], -_FINITE, _FINITE)
    ratio, low, high = np.exp(ends).tolist()
    return {"name": name, "coefficient": value, "error": error, "ratio": ratio, "low": low, "high": high}
