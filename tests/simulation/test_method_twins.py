"""Methods against a few lines of NumPy from their papers, through whole runs: sites, wire, aggregate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tables import Trial, sgd, slope, study, trial

STEPS, LR, ROUNDS = 3, 0.5, 4
MEAN = {"share": "all", "aggregate": {"kind": "mean"}}


def stage(local: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "train", "local": local, "rounds": ROUNDS} | MEAN | more


def same(ours: np.ndarray, plain: np.ndarray) -> bool:
    """Whether a run in single precision followed a twin in double."""
    return bool(np.abs(ours - plain).max() < 2e-5)


def fedavg(t: Trial, pull: float = 0.0, rounds: int = ROUNDS) -> np.ndarray:
    """FedAvg over full batches; with `pull`, FedProx."""
    w = t.first
    for _ in range(rounds):
        ends = []
        for z, y in t.cases.values():
            v = w.copy()
            for _ in range(STEPS):
                v = v - LR * (slope(v, z, y) + pull * (v - w))
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    return w


def test_without_terms_it_is_fedavg(tmp_path: Path) -> None:
    t = trial(study(stage(sgd(STEPS, LR))), tmp_path)
    assert same(t.last, fedavg(t))
    assert not same(t.last, t.first)


def test_fedprox_pulls_to_the_start_of_the_round(tmp_path: Path) -> None:
    terms = [{"kind": "supervised"}, {"kind": "proximal", "to": "round", "weight": 0.4}]
    t = trial(study(stage(sgd(STEPS, LR, losses=terms))), tmp_path)
    assert same(t.last, fedavg(t, pull=0.4))
    assert not same(t.last, fedavg(t))


def test_ditto_keeps_a_model_pulled_to_the_common_one(tmp_path: Path) -> None:
    own = [{"kind": "supervised"}, {"kind": "proximal", "to": "global", "weight": 0.4}]
    personal = stage(sgd(STEPS, LR, losses=own), name="own", share="none", keep="all", aggregate={"kind": "nothing"})
    t = trial(study(stage(sgd(STEPS, LR)), personal), tmp_path)
    common = fedavg(t)
    assert same(t.last, common)
    for site, (z, y) in t.cases.items():
        v = common.copy()
        for _ in range(ROUNDS * STEPS):
            v = v - LR * (slope(v, z, y) + 0.4 * (v - common))
        assert same(t.kept(site), v)


def scaffold(t: Trial, rates: list[float]) -> np.ndarray:
    """Karimireddy et al. 2020, algorithm 1 with option II; `rates` are those of a round's steps."""
    w, c = t.first, np.zeros_like(t.first)
    own = {site: np.zeros_like(c) for site in t.cases}
    for _ in range(ROUNDS):
        ends, moves = [], []
        for site, (z, y) in t.cases.items():
            v = w.copy()
            for rate in rates:
                v = v - rate * (slope(v, z, y) - own[site] + c)
            new = own[site] - c + (w - v) / sum(rates)
            ends.append(v)
            moves.append(new - own[site])
            own[site] = new
        w, c = np.einsum("k,kij->ij", t.weights, ends), c + np.einsum("k,kij->ij", t.weights, moves)
    return w


SCAFFOLD = {"methods": [{"kind": "scaffold"}]}


def test_scaffold_corrects_the_drift_of_the_sites(tmp_path: Path) -> None:
    t = trial(study(stage(sgd(STEPS, LR, **SCAFFOLD))), tmp_path)
    assert same(t.last, scaffold(t, [LR] * STEPS))
    assert not same(t.last, fedavg(t))


@pytest.mark.slow
def test_scaffold_comes_closer_to_the_pooled_optimum_than_fedavg(tmp_path: Path) -> None:
    """With many local steps FedAvg ends where the sites' drifts balance, SCAFFOLD where the pooled gradient is 0."""
    found = {}
    for name, terms in (("fedavg", {}), ("scaffold", SCAFFOLD)):
        t = trial(study(stage(sgd(20, LR, **terms), rounds=40)), tmp_path / name)
        found[name] = np.linalg.norm(
            sum(weight * slope(t.last, z, y) for weight, (z, y) in zip(t.weights, t.cases.values(), strict=True))
        )
    assert found["scaffold"] < 0.1 * found["fedavg"], found


@pytest.mark.parametrize("secure_aggregation", [False, True])
def test_scaffold_sends_nothing_up_beside_the_entries(tmp_path: Path, secure_aggregation: bool) -> None:
    """The coordinator works out its control variates from the mean alone, so masks hide no less."""
    one = trial(study(stage(sgd(STEPS, LR)), secure_aggregation=secure_aggregation), tmp_path / "plain")
    two = trial(study(stage(sgd(STEPS, LR, **SCAFFOLD)), secure_aggregation=secure_aggregation), tmp_path / "scaffold")
    up = [_bytes_up(t) for t in (one, two)]
    assert np.abs(np.subtract(*up)).max() < 10  # counts and losses are written as text
    assert same(two.last, scaffold(two, [LR] * STEPS))


def _bytes_up(t: Trial) -> list[int]:
    return [row["bytes_up"] for row in _history(t) if row["stage"] == "train"]


def test_reptile_goes_half_the_way_to_the_mean(tmp_path: Path) -> None:
    aggregate = {"kind": "server_optimiser", "rule": "sgd", "lr": 0.5, "weight": "equal"}
    t = trial(study(stage(sgd(STEPS, LR), aggregate=aggregate)), tmp_path)
    w = t.first
    for _ in range(ROUNDS):
        ends = []
        for z, y in t.cases.values():
            v = w.copy()
            for _ in range(STEPS):
                v = v - LR * slope(v, z, y)
            ends.append(v)
        w = w + 0.5 * (np.mean(ends, axis=0) - w)
    assert same(t.last, w)


def test_maml_takes_gradients_where_steps_ahead_lead(tmp_path: Path) -> None:
    t = trial(study(stage(sgd(STEPS, LR, inner_steps={"lr": 0.3, "steps": 2}))), tmp_path)
    w = t.first
    for _ in range(ROUNDS):
        ends = []
        for z, y in t.cases.values():
            v = w.copy()
            for _ in range(STEPS):
                u = v - 0.3 * slope(v, z, y)
                u = u - 0.3 * slope(u, z, y)
                v = v - LR * slope(u, z, y)
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    assert same(t.last, w)
    assert not same(t.last, fedavg(t))


@pytest.mark.parametrize(("rule", "figures"), [("swa", {"over": 0.5}), ("ema", {"decay": 0.7})])
def test_a_stage_ends_with_the_average_of_its_rounds(tmp_path: Path, rule: str, figures: dict[str, float]) -> None:
    t = trial(study(stage(sgd(STEPS, LR), weight_averaging={"rule": rule, **figures})), tmp_path)
    rounds = [fedavg(t, rounds=number) for number in range(1, ROUNDS + 1)]
    if rule == "swa":
        want = np.mean(rounds[2:], axis=0)
    else:
        want = rounds[0]
        for one in rounds[1:]:
            want = 0.7 * want + 0.3 * one
    assert same(t.last, want)
    assert not same(t.last, rounds[-1])


def _history(t: Trial) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (t.run / "history.jsonl").read_text().splitlines()]


def test_a_stage_that_no_longer_improves_ends_with_its_best_model(tmp_path: Path) -> None:
    """At this rate the head overshoots: later rounds are no better on validation than an early one."""
    every = {"evaluate": {"every": 1, "split": "val", "floor": 1}}
    until = {"patience": 2, "metric": "accuracy", "least": 0.0}
    t = trial(study(stage(sgd(STEPS, LR), rounds=30, early_stopping=until), **every), tmp_path / "stops")
    rows = [row for row in _history(t) if row["stage"] == "train"]
    values = [row["metrics"]["cls"]["macro"]["accuracy"] for row in rows]
    assert 3 <= len(rows) < 30
    best = int(np.argmax(values))
    assert best == len(values) - 3
    assert same(t.last, fedavg(t, rounds=best))
    final = _history(t)[-1]
    assert (final["stage"], final["evaluated"]) == ("evaluate", {"stage": "train", "round": best})


def test_a_stage_that_improves_runs_to_its_end(tmp_path: Path) -> None:
    until = {"patience": 4, "metric": "auroc"}
    t = trial(
        study(stage(sgd(STEPS, LR), early_stopping=until), evaluate={"every": 1, "split": "val", "floor": 1}), tmp_path
    )
    assert same(t.last, fedavg(t))
    assert "remarks" in (result := json.loads((t.run / "result.json").read_text()))
    assert result["remarks"] == []


def test_a_stage_that_nobody_can_judge_runs_to_its_end_and_says_so(tmp_path: Path) -> None:
    """As few cases as these sites validate on decide nothing: the stage is not ended by chance, nor in silence."""
    until = {"patience": 1, "metric": "accuracy"}
    study_ = study(stage(sgd(STEPS, LR), early_stopping=until), evaluate={"every": 1, "split": "val", "floor": 500})
    t = trial(study_, tmp_path)
    assert same(t.last, fedavg(t))
    (remark,) = json.loads((t.run / "result.json").read_text())["remarks"]
    assert "could not stop early" in remark
    assert f"{ROUNDS} of {ROUNDS}" in remark


@pytest.mark.parametrize("lam", [0.25, 3.0])
def test_the_joint_loss_weighs_the_coordinators_source_against_all_hospitals(tmp_path: Path, lam: float) -> None:
    """One step a round is a step along the slope of L_source + lambda L_target, over 1 + lambda."""
    asked = study(stage(sgd(1, LR), joint_lambda=lam))
    t = trial(asked, tmp_path, public_sources={"west"})
    hospitals = {site: found for site, found in t.cases.items() if site != "west"}
    counts = np.array([len(y) for _, y in hospitals.values()], float)
    w = t.first
    for _ in range(ROUNDS):
        target = sum(n * slope(w, z, y) for n, (z, y) in zip(counts / counts.sum(), hospitals.values(), strict=True))
        w = w - LR * (slope(w, *t.cases["west"]) + lam * target) / (1 + lam)
    assert same(t.last, w)
    assert set(_history(t)[-1]["metrics"]["cls"]["sites"]) == set(hospitals)


def test_a_source_in_a_folder_at_the_site_is_a_second_loss(tmp_path: Path) -> None:
    terms = [{"kind": "supervised"}, {"kind": "supervised", "of": "source", "weight": 0.5}]
    beside = {"east": "west", "north": "west", "west": "east"}
    t = trial(study(stage(sgd(STEPS, LR, losses=terms))), tmp_path, beside=beside)
    w = t.first
    for _ in range(ROUNDS):
        ends = []
        for site, (z, y) in t.cases.items():
            v = w.copy()
            for _ in range(STEPS):
                v = v - LR * (slope(v, z, y) + 0.5 * slope(v, *t.every[beside[site]]))
            ends.append(v)
        w = np.einsum("k,kij->ij", t.weights, ends)
    assert same(t.last, w)


def test_a_site_without_the_source_says_so_before_the_first_round(tmp_path: Path) -> None:
    terms = [{"kind": "supervised"}, {"kind": "supervised", "of": "source"}]
    t = trial(study(stage(sgd(STEPS, LR, losses=terms))), tmp_path, beside={"east": "west", "west": "east"})
    result = json.loads((t.run / "result.json").read_text())
    assert [(row["site"], row["code"], row["round"]) for row in result["refusals"]] == [("north", "no_source", 0)]
