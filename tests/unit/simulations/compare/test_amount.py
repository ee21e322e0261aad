"""How much arms work, in truth: against counts of steps by hand; and seeds that would decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedgraft.common.metrics.table import TABLE
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.compare.amount import at_hospitals, seeds_to_decide, work_of
from fedgraft.simulations.compare.measures.measure import Measure
from fedgraft.simulations.compare.paired import against_control
from fedgraft.simulations.compare.question import BUILT_IN, Arm

MakeStudy = Callable[..., Study]
AUROC, BRIER = (Measure(Task(classes=("a", "b")), TABLE[name], 0.02) for name in ("auroc", "brier"))


def fedavg(make_study: MakeStudy, rounds: int = 8, **local: Any) -> Study:
    return make_study(method={"name": "fedavg", "rounds": rounds, "local": local or {"epochs": 2}})


@pytest.mark.parametrize("name", ["ditto", "local_finetuning", "shot_im", "pseudo_label", "lp_ft", "graft", "fixbn"])
def test_a_preset_goes_through_as_many_rounds_as_the_study(make_study: MakeStudy, name: str) -> None:
    """Ditto, a second training at each site, and models that teach themselves went through them twice."""
    study = fedavg(make_study)
    own = BUILT_IN[name].apply(study, "x")
    assert sum(rounds for _, rounds in at_hospitals(own.plan)) == 8
    assert work_of(own, study) == {"words": "16 passes over each site's cases", "times": 1.0}


def test_unequal_work_is_said_in_numbers(make_study: MakeStudy) -> None:
    study = fedavg(make_study)
    longer = Arm.model_validate({"name": "longer", "set": {"plan.0.rounds": 12}}).apply(study, "x")
    assert work_of(longer, study) == {"words": "24 passes over each site's cases, 1.5 times as much", "times": 1.5}
    odd = BUILT_IN["ditto"].apply(fedavg(make_study, 1), "x")  # there is no half round
    assert work_of(odd, fedavg(make_study, 1))["times"] == 2.0
    probe = BUILT_IN["ridge_probe"].apply(study, "x")
    assert work_of(probe, study) == {"words": "no gradient", "times": 0.0}
    assert work_of(probe, probe) == {"words": "no gradient", "times": 1.0}
    assert work_of(study, probe) == {"words": "16 passes over each site's cases", "times": None}
    steps = fedavg(make_study, steps=10, batch_size=4)
    assert work_of(steps, study) == {"words": "320 cases in steps", "times": None}
    ahead = BUILT_IN["fomaml"].apply(steps, "x")
    assert work_of(ahead, steps)["times"] == 2.0


def test_seeds_that_decide_follow_from_the_interval() -> None:
    """Half as wide an interval takes four times as many seeds; four of five times takes (2.8 / 1.96)^2 as many more."""
    assert seeds_to_decide(0.03, 3, 0.02) == int(np.ceil(3 * (1.5 * 2.8 / 1.96) ** 2)) == 14
    assert seeds_to_decide(0.06, 3, 0.02) == 56
    assert seeds_to_decide(0.001, 5, 0.02) == 2
    assert seeds_to_decide(0.03, 1, 0.02) is None
    assert seeds_to_decide(float("nan"), 3, 0.02) is None


def drawn(value: float, spread: float) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return {(seed, 0): {"north": np.concatenate([[value], value + spread * rng.normal(size=400)])} for seed in range(3)}


def test_a_model_must_clearly_beat_the_best_of_the_controls() -> None:
    arms = {"study": drawn(0.9, 0.01), "near": drawn(0.81, 0.05), "thumb": drawn(0.8, 0.0), "dull": drawn(0.6, 0.0)}
    found = against_control("study", ["dull", "thumb"], arms, AUROC)
    assert found is not None
    assert (found["control"], found["clear"]) == ("thumb", True)
    assert found["value"] == pytest.approx(0.1)
    near = against_control("near", ["dull", "thumb"], arms, AUROC)
    assert near is not None
    assert near["low"] < 0 < near["high"]
    assert near["clear"] is False
    assert against_control("thumb", ["dull", "thumb"], arms, AUROC) is None
    assert against_control("study", [], arms, AUROC) is None
    worse = against_control("study", ["dull", "thumb"], arms, BRIER)  # where low is good, dull is the best of them
    assert worse is not None
    assert (worse["control"], worse["clear"]) == ("dull", False)
