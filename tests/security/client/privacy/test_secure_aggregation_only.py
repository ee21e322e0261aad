"""A site that lets nothing leave in the open takes part in secure aggregation alone, whatever it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.data.cohorts.cohort import learning_patients
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.base.files import read_json
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol.instructions import (
    Code,
    Instruction,
    Refusal,
    Update,
)
from fedgraft.common.study.schedule import Step, split_at
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN, Hospitals
from helpers.simulated import simulate
from helpers.work import CPU, MakeStudy, cohort, images

ONLY = OPEN.model_copy(update={"secure_aggregation_only": True, "agreement": "none"})
PROBE = {"name": "linear_probe", "rounds": 2, "local": {"steps": 1, "batch_size": 8, "lr": 0.01}}
PLANS = {
    "plain": {"method": PROBE},
    "private": {
        "method": PROBE | {"local": {"steps": 1, "lr": 0.01, "private": {"noise_multiplier": 5.0, "sample_rate": 0.5}}}
    },
    "silent": {
        "plan": [
            {
                "name": "adapt",
                "where": "all",
                "local": {"kind": "recalibrate"},
                "share": "none",
                "aggregate": {"kind": "nothing"},
            }
        ]
    },
}


def a_site(study: Study, folder: Path, policy: SitePolicy) -> Site:
    inputs, labels = images(27)
    mine = cohort(inputs, {"cls": labels}, held_out=6)
    guard = PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    return Site(study, mine, LocalModel(study, CPU), folder, guard)


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_said_nor_done_in_a_study_without_masks(make_study: MakeStudy, tmp_path: Path, plan: str) -> None:
    """Neither at the greeting, nor by a site that greeted before its policy was changed and was started anew since."""
    study = make_study(**PLANS[plan])
    tensors = {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}
    for policy, answers in ((OPEN, True), (ONLY, False)):
        site = a_site(study, tmp_path / str(answers), policy)
        if answers:
            site.greet()
        else:
            with pytest.raises(Refused) as caught:
                site.greet()
            assert (caught.value.code, caught.value.why) == (Code.POLICY, "not_secure")
        visits = ((1, True, split_at(study, Step(1, 0, 1, work=True))), (1, True, None))
        if not answers:
            visits = (*visits, (1, True, "val"), (2, False, "test"), (2, False, None))
        for exchange, work, evaluate in visits:
            got = site.visit(Instruction(study.digest, exchange, 0, 1, work, evaluate, tensors))
            assert isinstance(got, Update) if answers else got == Refusal(exchange, Code.POLICY), (exchange, got)
    assert not (tmp_path / "False" / "ledger").exists()
    assert not list((tmp_path / "False").rglob("*.safetensors"))


def test_a_masked_study_runs_as_ever(hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    strict = Hospitals(hospitals.cohorts, policies=dict.fromkeys(hospitals.cohorts, ONLY))
    run = simulate(make_study(method=PROBE, secure_aggregation=True), strict, tmp_path / "secure_aggregation")
    result = read_json(run / "result.json")
    assert result["status"] == "completed", result["headline"]
    assert np.isfinite(result["metrics"]["cls"]["pooled"]["auroc"])
    with pytest.raises(QuorumError, match="policy"):
        simulate(make_study(method=PROBE), strict, tmp_path / "open")
