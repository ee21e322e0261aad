"""Studies with differential privacy, from the study file to the report: what is spent, refused and said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.privacy.accountant import Event, default_delta, epsilon
from fedgraft.common.study.plan import Role
from fedgraft.server.report import build_report
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.run import OPEN, Engine, Hospitals
from helpers.runs import page_of
from helpers.simulated import resume, simulate

TRAINING = {"east": 25, "north": 16, "south": 29, "west": 19}
"""Patients in training by site, as chance has it: each patient's split is by that patient alone."""
STRICT = SitePolicy(min_patients=1, epsilon_per_study=6.0)


@pytest.fixture
def private_study(make_study):
    """A head trained with noise in 3 rounds of 2 steps."""

    def make(measure: Mapping[str, float] | None = None, **changes: object):
        private = dict(measure or {"epsilon": 5.0}) | {"sample_rate": 0.5}
        local = {"steps": 2, "lr": 0.01, "private": private}
        return make_study(method={"name": "linear_probe", "rounds": 3, "local": local}, **changes)

    return make


def under(hospitals: Hospitals, **policies: SitePolicy) -> Hospitals:
    return Hospitals(hospitals.cohorts, policies=policies)


def spent(run: Path) -> list[dict[str, float]]:
    """Epsilon by site after each round."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{site: one["epsilon"] for site, one in row["spent"].items()} for row in rows if row["spent"]]


@pytest.mark.slow
def test_every_site_says_what_the_study_cost_it(hospitals: Hospitals, private_study, tmp_path: Path) -> None:
    """The figures are those of the steps taken, the last of them at most what the study asked for."""
    run = simulate(private_study(), hospitals, tmp_path / "run")
    figures = read_json(run / "result.json")["privacy"]
    rounds = spent(run)
    assert len(rounds) == 4  # the evaluation says it once more
    for site, patients in TRAINING.items():
        delta = default_delta(patients)
        (noise_multiplier,) = {row.event.noise_multiplier for row in Held.of(run / "sites" / site).open(100.0).rows()}
        assert figures[site] == {
            "dp": True,
            "epsilon": pytest.approx(epsilon([Event(noise_multiplier, 0.5, 6)], delta)),
            "delta": delta,
            "unit": "patient",
            "relation": "add/remove",
            "accountant": "rdp",
            "steps": 6,
            "without_dp": [],
        }
        assert 4.9 < figures[site]["epsilon"] <= 5.0
        assert [row[site] for row in rounds] == pytest.approx(
            [epsilon([Event(noise_multiplier, 0.5, n)], delta) for n in (2, 4, 6, 6)]
        )
    overall = read_json(run / "result.json")["privacy_overall"]
    worst = sorted((one["epsilon"] for one in figures.values()), reverse=True)
    assert overall["one_site"] == {"epsilon": worst[0], "delta": 1e-3}
    assert overall["two_sites"] == {"epsilon": pytest.approx(worst[0] + worst[1]), "delta": 2e-3}
    assert "a repetition gives another model" in page_of(run).text
    cells = page_of(run).cells
    at = cells.index("add/remove one patient, rdp")
    assert cells[at - 1 : at + 5] == [
        "east",
        "add/remove one patient, rdp",
        "nothing",
        f"{figures['east']['epsilon']:.2f}",
        "1.0e-03",
        "6",
    ]
    at = cells.index("a patient of two sites")
    assert cells[at + 3 : at + 5] == [f"{worst[0] + worst[1]:.2f}", "2.0e-03"]


@pytest.mark.slow
def test_the_studys_seed_does_not_give_the_noise_away(hospitals: Hospitals, private_study, tmp_path: Path) -> None:
    one, other = (
        load_tensors(
            simulate(private_study({"noise_multiplier": 1.0}), hospitals, tmp_path / name) / "model.safetensors"
        )
        for name in ("one", "other")
    )
    heads = [key for key in one if key.startswith("heads.")]
    assert heads
    # Of some hundred float32 numbers two may well be equal by chance.
    assert all((one[key] != other[key]).mean() > 0.98 for key in heads)
    assert all((one[key] == other[key]).all() for key in one if key not in heads)


@pytest.mark.slow
def test_a_site_that_never_agreed_to_work_without_noise_stays_out(hospitals, make_study, tmp_path: Path) -> None:
    run = simulate(make_study(), under(hospitals, north=STRICT), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["headline"] == "3 of 4 sites; missing: north, policy"
    assert "north" not in result["privacy"]
    assert result["privacy"]["east"] == {"dp": False, "without_dp": ["train"]}
    assert result["privacy_overall"] is None
    assert "a repetition gives another model" not in page_of(run).text
    cells = page_of(run).cells
    assert ("east", "none", "train") in zip(cells, cells[1:], cells[2:], strict=False)
    assert "not_private" in (run / "sites" / "north" / "site.log").read_text()
    assert not Held.of(run / "sites" / "north").exists()


def test_a_study_that_nobody_may_take_part_in_says_why(hospitals, make_study, tmp_path: Path) -> None:
    closed = dict.fromkeys(hospitals.cohorts, SitePolicy(min_patients=1))
    with pytest.raises(QuorumError, match="east: policy"):
        simulate(make_study(), under(hospitals, **closed), tmp_path / "run")


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"steps_max": 5}, "policy"),
        ({"backbones": ("resnet18",)}, "policy"),
        ({"train": frozenset({Role.NORM_AFFINE})}, "policy"),
        ({"min_patients": 17}, "policy"),
        ({"delta": 1e-3}, None),
    ],
)
def test_a_rule_of_one_site_costs_nobody_else_anything(hospitals, private_study, tmp_path: Path, rule, code) -> None:
    run = simulate(private_study(), under(hospitals, north=STRICT.model_copy(update=rule)), tmp_path / "run")
    privacy = read_json(run / "result.json")["privacy"]
    assert set(privacy) == set(TRAINING) - ({"north"} if code else set())
    if code is None:
        assert privacy["north"]["delta"] == 1e-3
        assert privacy["north"]["epsilon"] <= 5.0


@pytest.mark.slow
def test_a_site_puts_more_noise_where_its_policy_is_stricter(hospitals, private_study, tmp_path: Path) -> None:
    policies = {
        "east": OPEN.model_copy(update={"epsilon_per_study": 1.0}),
        "west": OPEN.model_copy(update={"noise_multiplier_min": 9.0}),
    }
    run = simulate(private_study(), under(hospitals, **policies), tmp_path / "run")
    privacy = read_json(run / "result.json")["privacy"]
    assert 0.98 < privacy["east"]["epsilon"] <= 1.0
    assert privacy["west"]["epsilon"] == pytest.approx(epsilon([Event(9.0, 0.5, 6)], default_delta(TRAINING["west"])))
    assert privacy["south"]["epsilon"] > 4.9


@pytest.mark.slow
def test_two_private_stages_are_added_up_and_refused_before_the_first(hospitals, private_study, tmp_path: Path) -> None:
    study = private_study({"epsilon": 2.0})
    stage = study.plan[0].model_copy(update={"name": "again"})
    twice = study.model_copy(update={"plan": (study.plan[0], stage)})
    tight = STRICT.model_copy(update={"epsilon_per_study": 2.1})
    run = simulate(twice, under(hospitals, north=tight, south=STRICT), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["headline"] == "3 of 4 sites; missing: north, budget"
    assert 2.1 < result["privacy"]["south"]["epsilon"] < 4.0
    assert not Held.of(run / "sites" / "north").exists()


def test_what_a_closed_site_says_of_its_patients_is_rounded_or_not_said(hospitals, private_study, tmp_path) -> None:
    run = simulate(private_study(), under(hospitals, **dict.fromkeys(TRAINING, STRICT)), tmp_path / "run")
    result = read_json(run / "result.json")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert {site: facts["cases"]["train"] for site, facts in result["sites"].items()} == {
        "east": 30,
        "north": 20,
        "south": 30,
        "west": 20,
    }
    assert not any(facts["labels"] for facts in result["sites"].values())
    assert not any(row["metrics"] for row in history)
    assert {tuple(figures) for row in history for figures in row["train"].values()} == {
        ("steps", "noise_multiplier", "sample_rate"),
        (),
    }
    assert build_report(run).stat().st_size > 10_000


class Stopped(Exception):
    """A run that is stopped from outside."""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_resumed_run_sends_what_was_sent_and_pays_once(
    hospitals, private_study, tmp_path: Path, monkeypatch, engine: str
) -> None:
    """Stopped after the sites answered, before the coordinator kept anything of it."""
    save = RunFolder.save_checkpoint

    def interrupted(self: RunFolder, exchange: int, *rest: object) -> None:
        if exchange == 2:
            raise Stopped
        save(self, exchange, *rest)

    monkeypatch.setattr(RunFolder, "save_checkpoint", interrupted)
    with pytest.raises(Stopped):
        simulate(private_study(), hospitals, tmp_path / "run", Engine(name=engine))
    replies = {path: path.read_bytes() for path in (tmp_path / "run").glob("sites/*/replies/*/000002.safetensors")}
    assert len(replies) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in replies), "for the site's own eyes"
    monkeypatch.undo()
    aggregated: dict[int, Mapping[str, np.ndarray]] = {}

    def watched(self: RunFolder, exchange: int, state: Mapping[str, np.ndarray], *rest: object) -> None:
        aggregated[exchange] = dict(state)
        save(self, exchange, state, *rest)

    monkeypatch.setattr(RunFolder, "save_checkpoint", watched)
    run = resume(tmp_path / "run", Engine(name=engine))
    assert list(aggregated) == [2, 3]
    assert all(path.read_bytes() == content for path, content in replies.items())
    key = "heads.cls.weight"
    total = sum(TRAINING.values())
    want = sum(
        load_tensors(path)[f"shared/{key}"].astype(np.float64) * TRAINING[path.parts[-4]] / total for path in replies
    )
    np.testing.assert_allclose(aggregated[2][key], want, rtol=1e-6)
    for site in TRAINING:
        rows = Held.of(run / "sites" / site).open(100.0).rows()
        assert [row.round for row in rows] == [1, 2, 3]
    assert 4.9 < read_json(run / "result.json")["privacy"]["east"]["epsilon"] <= 5.0


def test_a_round_that_was_paid_but_never_answered_is_lost_and_not_paid_twice(
    hospitals, private_study, tmp_path: Path, monkeypatch
) -> None:
    """A site that crashed between the charge and the reply."""
    from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard

    keep = PrivacyGuard.keep

    def crashed(self: PrivacyGuard, exchange: int, *rest: object) -> None:
        if exchange == 2 and self._patients == TRAINING["west"]:
            raise OSError("the machine is gone")
        keep(self, exchange, *rest)

    def interrupted(self: RunFolder, exchange: int, *rest: object) -> None:
        if exchange == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(PrivacyGuard, "keep", crashed)
        patch.setattr(RunFolder, "save_checkpoint", interrupted)
        with pytest.raises(Stopped):
            simulate(private_study(), hospitals, tmp_path / "run")
    run = resume(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["missing"] for row in rows] == [{}, {"west": "budget"}, {}, {}]
    assert [row.round for row in Held.of(run / "sites" / "west").open(100.0).rows()] == [1, 2, 3]


@pytest.mark.parametrize("harm", ["deleted", "cut", "witness"])
def test_a_ledger_that_is_gone_stops_the_site_and_nobody_else(
    hospitals, private_study, tmp_path: Path, monkeypatch, harm: str
) -> None:
    save = RunFolder.save_checkpoint

    def harmed(self: RunFolder, exchange: int, *rest: object) -> None:
        save(self, exchange, *rest)
        held = Held.of(self.path / "sites" / "south")
        if exchange == 1 and harm == "deleted":
            held.ledger.unlink()
        elif exchange == 1 and harm == "cut":
            held.ledger.write_bytes(held.ledger.read_bytes()[:5000])
        elif exchange == 1:
            held.witness.unlink()

    monkeypatch.setattr(RunFolder, "save_checkpoint", harmed)
    run = simulate(private_study(), hospitals, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["missing"] for row in rows] == [{}, *[{"south": "ledger"}] * 3]
