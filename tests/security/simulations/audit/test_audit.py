"""`fedgraft privacy audit`: attacks that succeed where there is no privacy, fail where there is, and see mistakes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from fedgraft.client.attacks import canaries
from fedgraft.client.attacks.attack_target import AttackTarget
from fedgraft.client.attacks.canaries import (
    CANARIES,
    CLAIMS,
    DELTA,
    Trial,
    chance_of,
    lower_bound,
)
from fedgraft.client.privacy.masking import masked_upload as sealing
from fedgraft.common.secure_aggregation import masking
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.attack import attack, private_targets
from fedgraft.simulations.audit.attacks import inversion, metrics_oracle
from fedgraft.simulations.audit.attacks.mechanism import CHECKS
from fedgraft.simulations.audit.findings import Finding
from helpers import sabotage
from helpers.runs import Page, page_of
from helpers.simulated import simulate

MakeStudy = Callable[..., Study]
SIX = {
    sabotage.no_clip: "sensitivity",
    sabotage.clip_of_the_mean: "sensitivity",
    sabotage.noise_divided_again: "noise",
    sabotage.half_the_noise: "noise",
    sabotage.no_noise: "noise",
    sabotage.seeded_noise: "fresh noise",
}
LOUD = (sabotage.no_clip, sabotage.clip_of_the_mean, sabotage.noise_divided_again, sabotage.no_noise)
"""Those that a single run gives away; half the noise, and noise that repeats itself, need not show in the end."""


@pytest.fixture
def private_study(make_study: MakeStudy) -> Study:
    local = {"steps": 2, "lr": 0.01, "private": {"epsilon": 3.0, "sample_rate": 0.25}}
    return make_study(method={"name": "linear_probe", "rounds": 3, "local": local})


@pytest.fixture
def attack_target(private_study: Study) -> AttackTarget:
    return private_targets(private_study, 1000)[0]


# Canaries.


def test_the_chance_of_right_guesses_is_the_papers() -> None:
    for guesses, right in ((100, 70), (61, 31)):
        assert chance_of(2000, guesses, right, 0.0, 0.0) == pytest.approx(binom.sf(right - 1, guesses, 0.5))
        wide = 1 / (1 + np.exp(-0.5))
        tail = [sum(binom.pmf(right - j, guesses, wide) for j in range(1, i + 1)) / i for i in range(1, right + 1)]
        want = binom.sf(right - 1, guesses, wide) + 2 * 2000 * 1e-5 * max(tail)
        assert chance_of(2000, guesses, right, 0.5, 1e-5) == pytest.approx(want)
    assert chance_of(2000, 100, 0, 1.0, 1e-5) == 1.0


def test_the_bound_refutes_what_the_guesses_rule_out_and_no_more() -> None:
    rng = np.random.default_rng(0)
    part = rng.random(CANARIES) < 0.5
    assert 4.0 <= lower_bound(Trial(part.astype(float), part), DELTA) < 6.0
    assert lower_bound(Trial(rng.normal(size=CANARIES), part), DELTA) < 0.2
    assert lower_bound(Trial(-part.astype(float), part), DELTA) == 0.0
    # Randomised response of a known epsilon: the bound stays below it, and comes near.
    for epsilon in (1.0, 3.0):
        told = np.where(rng.random(CANARIES) < 1 / (1 + np.exp(-epsilon)), part, ~part)
        assert 0.7 * epsilon < lower_bound(Trial(told + rng.random(CANARIES) / 9, part), DELTA) <= epsilon


def test_one_run_above_the_claim_by_chance_refutes_nothing_and_three_do() -> None:
    made: list[int] = []

    def runs(*bounds: float) -> Callable[[int], float]:
        made.clear()
        return lambda number: made.append(number) or bounds[number]

    assert canaries.confirmed(runs(0.3), 0.4) == 0.3
    assert made == [0]
    assert canaries.confirmed(runs(0.45, 0.1), 0.4) == 0.1
    assert made == [0, 1]
    assert canaries.confirmed(runs(0.9, 0.6, 0.7), 0.4) == 0.6
    assert made == [0, 1, 2]


def test_canaries_refute_training_without_privacy_and_not_what_is_private(attack_target: AttackTarget) -> None:
    assert canaries.plain(attack_target, 0).value >= 4
    for claim in CLAIMS:
        assert 0 <= canaries.claimed(attack_target, claim, 0).value <= claim


@pytest.mark.slow
def test_no_seed_refutes_a_claim_within_a_minute(attack_target: AttackTarget) -> None:
    start = time.process_time()
    for seed in range(3):
        assert canaries.plain(attack_target, seed).holds
        for claim in CLAIMS:
            assert canaries.claimed(attack_target, claim, seed).holds
    assert time.process_time() - start < 60


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("broken", LOUD, ids=lambda broken: broken.__name__)
def test_canaries_refute_broken_training(
    attack_target: AttackTarget, monkeypatch: pytest.MonkeyPatch, broken, claim: float
) -> None:
    broken(monkeypatch)
    for seed in range(3):
        assert canaries.claimed(attack_target, claim, seed).value > claim


# Inversion and imprint.


@pytest.mark.parametrize("seed", range(3))
def test_a_little_noise_stops_inversion_and_nothing_else_does(attack_target: AttackTarget, seed: int) -> None:
    least = attack_target.asking(None, {"noise_multiplier": 0.5})
    assert inversion.one_case(least, seed, private=True).value < 10
    assert inversion.imprint(least, seed, private=True).value == 0
    clipped_alone = attack_target.asking(None, {"noise_multiplier": 1e-7})
    for found in (
        inversion.one_case(attack_target, seed, private=False),
        inversion.one_case(clipped_alone, seed, private=True),
    ):
        assert found.value > 60
    for found in (
        inversion.imprint(attack_target, seed, private=False),
        inversion.imprint(clipped_alone, seed, private=True),
    ):
        assert found.value >= 0.4


def test_noise_that_is_missing_lets_patients_out(attack_target: AttackTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage.no_noise(monkeypatch)
    assert not inversion.one_case(attack_target, 0, private=True).holds
    assert not inversion.imprint(attack_target, 0, private=True).holds


def test_psnr_knows_the_range_of_what_is_looked_for() -> None:
    truth = torch.linspace(0, 1, 1000)
    assert inversion.psnr(truth, truth) == 200
    assert inversion.psnr(truth + 0.01, truth) == pytest.approx(40, abs=0.1)
    assert inversion.psnr(torch.full((1000,), 1e9), truth) == pytest.approx(inversion.psnr(torch.ones(1000), truth))
    assert inversion.psnr(torch.full((1000,), torch.nan), truth) < 6


# Metrics.


@pytest.mark.parametrize("seed", range(3))
def test_labels_come_out_of_exact_metrics_and_not_out_of_none(seed: int) -> None:
    assert metrics_oracle.recovered("exact", seed).value > 0.95
    assert metrics_oracle.recovered("none", seed).value <= 0.6
    # The study is not masked, so a site that tells its metrics only under masks tells none.
    assert metrics_oracle.recovered("secure_aggregation", seed).value <= 0.6


# Masks.


@pytest.fixture
def secure_study(make_study: MakeStudy) -> Study:
    return make_study(secure_aggregation=True, method={"name": "fedavg", "rounds": 1})


def test_masked_uploads_are_noise_until_all_are_there(secure_study: Study) -> None:
    found = all_of(secure_study, "mask")
    assert [one.name for one in found] == ["masked uploads", "masks, compared", "masks, together"]
    assert all(one.passed for one in found), found


def unmasked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sealing, "mask", lambda words, *_: None)


def one_stream(patch: pytest.MonkeyPatch) -> None:
    """The noise of a pair does not depend on what is summed."""
    real = masking._stream
    patch.setattr(masking, "_stream", lambda context, other, pairs: real(bytes(32), other, pairs))


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Noise that leaves the high bits of every word alone."""
    real = masking._stream

    class Halved:
        def __init__(self, stream: object) -> None:
            self._stream = stream

        def update_into(self, data: object, into: memoryview) -> None:
            self._stream.update_into(data, into)
            np.frombuffer(into, np.uint64)[:] >>= np.uint64(32)

    patch.setattr(masking, "_stream", lambda *args: Halved(real(*args)))


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (unmasked, {"masked uploads", "masks, compared", "masks, together"}),
        (one_stream, {"masks, compared"}),
        (narrow, {"masked uploads"}),
    ],
)
def test_broken_masks_are_found_out(secure_study: Study, monkeypatch, broken, caught: set[str]) -> None:
    broken(monkeypatch)
    assert caught <= names(all_of(secure_study, "mask"))


# The whole audit.


def all_of(study: Study, only: str = "", *, allow_plain: bool = False) -> list[Finding]:
    attempts = attack(study, 1000, allow_plain=allow_plain)
    return [attempt.find() for attempt in attempts if not only or attempt.name.startswith(only)]


def names(findings: list[Finding], *, failed: bool = True) -> set[str]:
    return {found.name for found in findings if not failed or found.fails}


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "name"), SIX.items(), ids=lambda value: getattr(value, "__name__", value))
def test_every_known_mistake_makes_the_audit_fail(private_study: Study, monkeypatch, broken, name: str) -> None:
    """Of the attacks those alone that it concerns: none knows of the others."""
    broken(monkeypatch)
    failed = {one for only in (name, "canaries, epsilon 1") for one in names(all_of(private_study, only))}
    assert name in failed
    # The others may show in the end as well, by the chance of the noise: that is no promise.
    assert broken not in LOUD or "canaries, epsilon 1" in failed


def test_every_stage_without_noise_is_shown_to_be_invertible(make_study: MakeStudy) -> None:
    plan = {"name": "graft", "rounds": 1, "local": {"epochs": 1}}
    study = make_study(method=plan)
    found = all_of(study, "no noise")
    assert [one.stage for one in found] == ["probe", "train"]
    assert all(one.fails and one.measured is not None and one.measured > 60 for one in found)
    accepted = all_of(study, "no noise", allow_plain=True)
    assert all(one.passed is False and one.accepted and not one.fails for one in accepted)
    table = make_study(
        input={"kind": "table", "numeric": ["a", "b"]},
        model={"backbone": "table_linear"},
        method={"name": "fedavg", "rounds": 1},
    )
    found = all_of(table, "no noise")
    assert [(one.stage, one.fails) for one in found] == [("standardise", True), ("train", True)]
    body = make_study(method={"name": "fedper", "rounds": 1})
    assert [one.fails for one in all_of(body, "no noise")] == [True]


@pytest.fixture
def study_file(private_study: Study, tmp_path: Path) -> Path:
    path = tmp_path / "private.yaml"
    path.write_text(private_study.to_yaml())
    return path


@pytest.mark.slow
def test_the_command_shows_keeps_and_judges_and_a_sound_study_holds(command, study_file: Path) -> None:
    """Every attack was tried, and measured."""
    code, out, err = command("privacy", "audit", study_file, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    kept = Path("runs/test-audit")
    assert told == json.loads((kept / "audit.json").read_text())
    assert told["holds"] is True
    found = told["findings"]
    assert not [one["name"] for one in found if one["passed"] is False]
    assert set(CHECKS) | {"canaries, epsilon 1", "canaries, epsilon 4", "inversion", "imprint"} < {
        one["name"] for one in found
    }
    assert [one["name"] for one in found if one["passed"] is None] == ["masked uploads"]
    assert all(one["seconds"] > 0 for one in found if one["passed"] is not None and one["measured"])
    page = Page((kept / "audit.html").read_text(encoding="utf-8"))
    assert "All 36 claims that were tested held" in page.text
    assert all(one["words"] in page.text for one in found)
    assert not [value for key, value in page.attributes if key in ("src", "href")]


@pytest.mark.slow
def test_a_study_without_privacy_fails_where_that_is_not_accepted(
    command, make_study: MakeStudy, tmp_path: Path
) -> None:
    (tmp_path / "plain.yaml").write_text(make_study().to_yaml())
    code, out, err = command("privacy", "audit", "plain.yaml", "--out", "found")
    assert code == 1
    assert "Updates of train are invertible: a patient's 128 features come out of one step at" in out
    assert "train: no noise" in err
    assert "--allow-plain" in err
    assert (
        "1 of 22 claims that were tested did not hold"
        in Page(Path("found/audit.html").read_text(encoding="utf-8")).text
    )


@pytest.mark.slow
def test_a_broken_trainer_ends_with_1_and_says_what_to_think(command, study_file: Path, monkeypatch) -> None:
    sabotage.half_the_noise(monkeypatch)
    code, out, err = command("privacy", "audit", study_file, "--out", "found")
    assert code == 1
    assert "FAILS" in out
    assert "train: noise" in err
    assert "Do not run this study" in err
    assert json.loads(Path("found/audit.json").read_text())["holds"] is False


@pytest.mark.slow
def test_an_audit_beside_a_run_is_a_page_of_its_report_and_what_is_accepted_fails_nothing(
    command, hospitals, make_study: MakeStudy, study_file: Path, tmp_path: Path
) -> None:
    study = make_study()
    run = simulate(study, hospitals, tmp_path / "run")
    assert "How it was attacked" not in page_of(run).text
    (tmp_path / "plain.yaml").write_text(study.to_yaml())
    code, out, err = command("privacy", "audit", "plain.yaml", "--out", run, "--allow-plain")
    assert (code, err) == (0, "")
    assert "fails, accepted" in out
    assert "are invertible" in out
    assert "none carried out" in " ".join(out.split())
    assert not (run / "audit.html").exists()
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    assert "How it was attacked" in text
    assert "1 of 22 claims that were tested did not hold and all that failed was accepted beforehand" in text
    before = (run / "audit.json").read_bytes()
    code, _, err = command("privacy", "audit", study_file, "--out", run)
    assert code == 2
    assert "another study" in err
    assert (run / "audit.json").read_bytes() == before
