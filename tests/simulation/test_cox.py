"""Cox's regression by sums equals that of all patients at one place, in the open and masked, whatever the scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import QuorumError, StudyError
from fedgraft.common.base.files import read_json
from fedgraft.common.checks.explain import check_study
from fedgraft.server.cli.outcome import show_result
from helpers.followed import COUNT, SIZES, SURVIVAL, cox_by_hand, hospitals, study
from helpers.runs import page_of
from helpers.simulated import resume, simulate, stopped_at

STRATA: dict[str, Any] = {
    "name": "hazards",
    "local": {"kind": "statistics", "of": "hazards", "survival": SURVIVAL},
    "aggregate": {"kind": "cox"},
    "rounds": 8,
}
ONE = STRATA | {"local": STRATA["local"] | {"survival": {k: v for k, v in SURVIVAL.items() if k != "by"}}}


def assert_by_hand(run: Path, *, strata: bool, within: float) -> None:
    (found,) = read_json(run / "result.json")["hazards"]
    assert found["settled"]
    assert [one["name"] for one in found["columns"]] == ["age", "stage"]
    for one, value, error in zip(found["columns"], *cox_by_hand(strata), strict=True):
        assert one["coefficient"] == pytest.approx(value, abs=within)
        assert one["error"] == pytest.approx(error, abs=within)
        assert one["low"] < one["ratio"] < one["high"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cox")
    return simulate(study(COUNT, ONE), hospitals(root), root / "run")


def test_coefficients_are_those_of_all_patients_at_one_place(run: Path) -> None:
    assert_by_hand(run, strata=False, within=1e-6)
    assert len(read_json(run / "result.json")["survival"]) == 1


def test_each_class_has_a_baseline_of_its_own_and_a_scale_changes_nothing(tmp_path: Path) -> None:
    scale = {"age": {"mean": 0.5, "std": 4.0}, "stage": {"mean": -1.0, "std": 0.25}}
    columns = {"kind": "table", "numeric": ["age", "stage"], "standardise": scale}
    run = simulate(study(STRATA, input=columns), hospitals(tmp_path), tmp_path / "run")
    assert_by_hand(run, strata=True, within=1e-6)


@pytest.mark.slow
def test_under_masks_it_is_the_same_regression(tmp_path: Path) -> None:
    masked = study(ONE, secure_aggregation=True)
    check_study(masked, "test")
    assert_by_hand(simulate(masked, hospitals(tmp_path), tmp_path / "run"), strata=False, within=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [2, 5])
def test_a_run_that_was_broken_off_ends_with_the_same_bits(exchange: int, run: Path, tmp_path: Path) -> None:
    """What the steps have come to is in every checkpoint, and so are the counts."""
    out = stopped_at(study(COUNT, ONE), hospitals(tmp_path), tmp_path / "run", exchange)
    resume(out)
    for key in ("hazards", "survival"):
        assert read_json(out / "result.json")[key] == read_json(run / "result.json")[key]


@pytest.mark.slow
def test_a_person_reads_the_ratios(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_result(run, read_json(run / "result.json"))
    said, page = capsys.readouterr().out, page_of(run).text
    (found,) = read_json(run / "result.json")["hazards"]
    ratio = f"{found['columns'][0]['ratio']:.4g}"
    assert ratio in said
    assert "Hazards: hazards" in page
    assert ratio in page


def test_too_few_rounds_are_said(tmp_path: Path) -> None:
    run = simulate(study(ONE | {"rounds": 1}), hospitals(tmp_path), tmp_path / "run")
    (found,) = read_json(run / "result.json")["hazards"]
    assert not found["settled"]


def test_noise_and_coarse_counts_are_refused(tmp_path: Path) -> None:
    private = ONE | {"local": ONE["local"] | {"private": {"epsilon": 1.0}}}
    with pytest.raises(StudyError, match="have no bound that could be noised"):
        check_study(study(private), "test")
    policy = SitePolicy(min_patients=1, allow_non_dp=True, metrics="suppressed")
    with pytest.raises(QuorumError, match="policy"):
        simulate(study(ONE), hospitals(tmp_path, dict.fromkeys(SIZES, policy)), tmp_path / "run")
