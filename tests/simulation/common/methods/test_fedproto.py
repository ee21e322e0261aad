"""FedProto against a twin written from its paper, through whole runs, in the open and under masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.files import load_tensors
from fedgraft.common.methods.fedproto import FedProto
from fedgraft.common.methods.memory.method import Ground
from fedgraft.simulations.engines.run import Hospitals
from helpers.mlp import MODEL, Net, apart, cases, descended, features, first, labels_loss, net
from helpers.simulated import simulate
from helpers.tables import CASES, Trial, sgd, study, trial
from helpers.work import MakeStudy

STEPS, LR, ROUNDS, LAM = 3, 0.3, 3, 1.5
STAGE = {"name": "train", "rounds": ROUNDS, "share": "none", "keep": "all", "aggregate": {"kind": "nothing"}}
LOCAL = sgd(STEPS, LR, methods=[{"kind": "fedproto", "lam": LAM}])


def fedproto(t: Trial, w: Net) -> dict[str, Net]:
    """Tan et al. 2022, algorithm 1, over full batches."""
    own: dict[str, Net] = dict.fromkeys(t.cases, w)
    prototypes: dict[int, Tensor] = {}
    for _ in range(ROUNDS):
        for site, (x, y) in cases(t).items():

            def loss(v: Net, x: Tensor = x, y: Tensor = y, known: dict[int, Tensor] = prototypes) -> Tensor:
                z, pull = features(v, x), torch.tensor(0.0)
                for row, label in zip(z, y.tolist(), strict=True):
                    if label in known:
                        pull = pull + ((row - known[label]) ** 2).mean()
                return labels_loss(v, x, y) + LAM * pull / len(x)

            own[site] = descended(own[site], loss, STEPS, LR)
        rows = {site: features(own[site], x).detach() for site, (x, _) in cases(t).items()}
        prototypes = {
            label: torch.cat([rows[site][y == label] for site, (_, y) in cases(t).items()]).mean(dim=0)
            for label in (0, 1)
        }
    return own


def kept(t: Trial, site: str) -> Net:
    (folder,) = (t.run / "sites" / site / "local_state").iterdir()
    found = load_tensors(sorted(folder.iterdir())[-1])
    return net({key: array for key, array in found.items() if ":" not in key})


@pytest.mark.parametrize("secure_aggregation", [False, True])
def test_a_run_follows_the_paper_and_shares_no_entry(tmp_path: Path, secure_aggregation: bool) -> None:
    asked = study(STAGE | {"local": LOCAL}, secure_aggregation=secure_aggregation, **MODEL)
    t = trial(asked, tmp_path)
    twin = fedproto(t, first(asked))
    for site in CASES:
        assert apart(kept(t, site), twin[site]) < 3e-5, site
    assert apart(twin["east"], twin["west"]) > 1e-2
    rows = [json.loads(line) for line in (t.run / "history.jsonl").read_text().splitlines()]
    sent = 3 * 8 * (2 * 32 + 2)  # sums and counts of two classes, of three sites
    assert all(sent < row["bytes_up"] < 3 * sent + 4000 for row in rows if row["stage"] == "train")


def test_a_site_that_releases_nothing_without_noise_is_not_asked_for_sums(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    """No entry leaves in this stage, but sums over patients do: the policy decides on these as on entries."""
    asked = make_study(method={"name": "fedproto", "rounds": 1, "local": {"steps": 1, "batch_size": 8}})
    closed = SitePolicy(allow_non_dp=False, metrics="exact", min_patients=1)
    run = simulate(asked, replace(hospitals, policies={"west": closed}), tmp_path / "run")
    refusals = json.loads((run / "result.json").read_text())["refusals"]
    assert {(row["site"], row["code"]) for row in refusals} == {("west", "policy")}


def test_sums_that_no_cases_have_are_not_taken_in() -> None:
    asked = study(STAGE | {"local": LOCAL}, **MODEL)
    on = Ground(asked, asked.plan[1], {}, {"heads.cls.weight": ((2, 3), "float32")})
    good = {"cls/sum": np.ones((2, 3)), "cls/count": np.array([4.0, 1.0])}
    assert FedProto().plausible(on, good)
    assert not FedProto().plausible(on, good | {"cls/count": np.array([4.0, -1.0])})
    assert not FedProto().plausible(on, good | {"cls/count": np.array([4.0, 0.0])})
