"""Runs in which a hospital holds the last that leaves: signed, refused, masked, and with limits of the policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedgraft.common.base.errors import InputError, QuorumError
from fedgraft.simulations.engines.run import OPEN, Engine, Hospitals
from helpers.federation import same_weights
from helpers.simulated import simulate
from helpers.work import MakeStudy

METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 1, "batch_size": 4, "lr": 0.01}}
Held = Callable[..., Hospitals]


@pytest.fixture
def held(hospitals: Hospitals) -> Held:
    """Three hospitals, of which north holds; `limits` are more of its policy."""

    def make(release: str | None = None, **limits: Any) -> Hospitals:
        cohorts = {name: hospitals.cohorts[name] for name in ("east", "north", "south")}
        policy = OPEN.model_copy(update={"release": "hold", **limits})
        return replace(hospitals, cohorts=cohorts, policies={"north": policy}, release=release)

    return make


def result(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def decisions(run: Path) -> list[tuple[int, str, str]]:
    lines = map(json.loads, (run / "sites" / "north" / "egress.jsonl").read_text().splitlines())
    return [
        (one["exchange"], one["words"]["decision"], one["words"]["by"]) for one in lines if one["kind"] == "release"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_signed_gives_the_model_of_a_run_without_a_hold(
    held: Held, make_study: MakeStudy, tmp_path: Path, masked: bool
) -> None:
    study = make_study(method=METHOD, secure_aggregation=masked)
    run = simulate(study, held("sign"), tmp_path / "held")
    plain = simulate(study, replace(held(), policies={}), tmp_path / "plain")
    assert same_weights(run, plain)
    assert result(run)["metrics"] == result(plain)["metrics"]
    assert result(run)["status"] == "completed"
    assert decisions(run) == [(2, "signed", "simulation")]
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [one["sites"] for one in told if one["event"] == "held"] == [["north"]]


@pytest.mark.slow
def test_a_refusal_is_told_by_its_word_and_the_others_go_on_if_they_may(
    held: Held, make_study: MakeStudy, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    study = make_study(method=METHOD)
    run = simulate(study, held("refuse"), tmp_path / "run", Engine(name="pool", workers=2))
    found = result(run)
    assert found["status"] == "incomplete"
    assert {(one["exchange"], one["site"], one["code"]) for one in found["refusals"]} == {
        (2, "north", "release_refused"),
        (3, "north", "release_refused"),
    }
    assert decisions(run) == [(2, "refused", "simulation")]
    home = run / "sites" / "north"
    assert "refused by simulation" in command("site", "release", "--home", home)[1]
    code, out, _ = command("site", "release", study.digest[:12], "--show", "--home", home)
    assert code == 0
    assert "exchange 2 (stage" in out
    assert "Decided: refused by simulation" in out
    assert command("site", "release", study.digest[:12], "--sign", "--by", "Anna", "--home", home)[0] == 2
    code, out, _ = command("site", "passport", run, "--home", home)
    assert "to exchange 2: NOT released by simulation, not signed" in out
    needy = make_study(method=METHOD, rounds={"min_sites": 3})
    with pytest.raises(QuorumError, match="missing: north, release_refused"):
        simulate(needy, held("refuse"), tmp_path / "needy")


@pytest.mark.slow
def test_a_limit_that_is_not_met_cannot_be_signed_and_says_so(
    held: Held, make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(method=METHOD)
    run = simulate(study, held("sign", release_epsilon_max=2.0), tmp_path / "dear")
    assert decisions(run) == [(2, "refused", "simulation")]
    assert "sends without noise, so that no epsilon holds; release_epsilon_max is 2" in caplog.text
    run = simulate(study, held("sign", release_membership_auc_max=0.5), tmp_path / "audited")
    assert decisions(run) == [(2, "refused", "simulation")]
    assert "was not tested: fewer than 20 patients" in caplog.text
    (sheet,) = (run / "sites" / "north" / "evidence").glob("*/release_audit.txt")
    assert "Attack of site north on what it holds for exchange 2" in sheet.read_text()


def test_a_hold_is_not_simulated_without_a_word_of_what_people_decide(
    held: Held, make_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="north: the policy says release: hold"):
        simulate(make_study(method=METHOD), held(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
