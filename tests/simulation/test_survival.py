"""Kaplan-Meier by sums equals that of all patients at one place, in the open, masked and, nearly, with noise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.small_records import SHOWN
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import QuorumError, StudyError
from fedgraft.common.base.files import read_json
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study
from fedgraft.server.cli.outcome import show_result
from fedgraft.simulations.engines.run import prepare, resume
from helpers.followed import COUNT, ENDS, SIZES, SURVIVAL, by_hand, hospitals, study
from helpers.runs import page_of
from helpers.simulated import simulate

OPEN = {"min_patients": 1, "allow_non_dp": True, "epsilon_per_study": 100.0, "epsilon_lifetime": 100.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("survival")
    return simulate(study(), hospitals(root), root / "run")


def curves(run: Path) -> dict[str, dict[str, Any]]:
    (counted,) = read_json(run / "result.json")["survival"]
    assert (counted["unit"], counted["event"], counted["ends"]) == ("d", "died: yes", ENDS)
    return {one["name"]: one for one in counted["curves"]}


def assert_by_hand(run: Path) -> None:
    found = curves(run)
    for arm in ("old", "new"):
        one = found[arm]
        for at, (n, d, left, error) in enumerate(by_hand(arm)):
            assert (one["at_risk"][at], one["events"][at]) == (n, d)
            assert one["survival"][at] == pytest.approx(left, abs=1e-12)
            assert one["error"][at] == pytest.approx(error, abs=1e-12)
            assert one["low"][at] < left < one["high"][at]
        assert one["median"] == next((end for end, row in zip(ENDS, by_hand(arm), strict=False) if row[2] <= 0.5), None)


def test_curves_and_errors_are_those_of_all_patients_at_one_place(run: Path) -> None:
    """Each patient once, whatever the split; times on the end of a bin, and patients without a time, as by hand."""
    assert_by_hand(run)


@pytest.mark.slow
def test_a_person_reads_them_on_the_terminal_and_on_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_result(run, read_json(run / "result.json"))
    said, page = capsys.readouterr().out, page_of(run).text
    n, d, left, _ = by_hand("new")[-1]
    assert "No stage trains the model" in said
    assert f"{left:.3f}".lstrip("0") in said
    assert "Survival: died: yes" in page
    assert f"{left:.3f} [" in page
    assert f"{d} of {n}" in page


def test_under_masks_it_is_the_same_curve(tmp_path: Path) -> None:
    masked = study(secure_aggregation=True)
    check_study(masked, "test")
    assert_by_hand(simulate(masked, hospitals(tmp_path), tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_noise_is_charged_and_the_curve_is_near(masked: bool, tmp_path: Path) -> None:
    local = COUNT["local"] | {"private": {"epsilon": 20.0}}
    private = study(COUNT | {"local": local}, secure_aggregation=masked)
    check_study(private, "test")
    policy = SitePolicy(**(OPEN | {"allow_non_dp": False}))
    run = simulate(private, hospitals(tmp_path, dict.fromkeys(SIZES, policy)), tmp_path / "run")
    for arm, one in curves(run).items():
        hand = by_hand(arm)
        assert all(abs(one["survival"][at] - row[2]) < 0.2 for at, row in enumerate(hand))
        assert any(one["survival"][at] != row[2] for at, row in enumerate(hand))
        assert set(one["error"]) == {None}
    (row,) = Held.of(run / "sites" / "east").open(100.0).rows()
    assert row.facts.release == "sums"
    assert read_json(run / "result.json")["privacy"]["east"]["epsilon"] <= 20.0


@pytest.mark.parametrize("metrics", ["none", "noised", "secure_aggregation"])
def test_a_site_that_shows_no_figures_counts_nobody(metrics: str, tmp_path: Path) -> None:
    policy = SitePolicy.model_validate(OPEN | {"metrics": metrics})
    with pytest.raises(QuorumError, match="policy"):
        simulate(study(), hospitals(tmp_path, dict.fromkeys(SIZES, policy)), tmp_path / "run")


def test_a_site_that_suppresses_small_counts_sends_none_below_ten(tmp_path: Path) -> None:
    policy = SitePolicy.model_validate(OPEN | {"metrics": "suppressed"})
    run = simulate(study(), hospitals(tmp_path, dict.fromkeys(SIZES, policy)), tmp_path / "run")
    found = curves(run)
    for arm, one in found.items():
        assert all(count == 0 or count >= 10 for count in one["events"])
        assert sum(one["events"]) > 0.7 * sum(row[1] for row in by_hand(arm))


def test_a_site_that_suppresses_small_counts_is_not_counted_by_two_sets_of_bins(tmp_path: Path) -> None:
    """Their difference could be one patient."""
    other = COUNT | {"name": "again", "local": COUNT["local"] | {"survival": SURVIVAL | {"ends": [29.0, 60.0]}}}
    policy = SitePolicy.model_validate(OPEN | {"metrics": "suppressed"})
    with pytest.raises(QuorumError, match="policy"):
        simulate(study(COUNT, other), hospitals(tmp_path, dict.fromkeys(SIZES, policy)), tmp_path / "run")


def left_by(run: Path) -> dict[str, list[list[int]]]:
    (counted,) = read_json(run / "result.json")["survival"]
    return {one["name"]: [one["at_risk"], one["events"]] for one in counted["curves"]}


def test_two_studies_do_not_count_by_two_sets_of_bins_either(tmp_path: Path) -> None:
    """In the second the first bin ends some days sooner: between them they tell of few who left on those days."""
    there = hospitals(tmp_path, dict.fromkeys(SIZES, SitePolicy.model_validate(OPEN | {"metrics": "suppressed"})))
    first = simulate(study(), there, tmp_path / "first")

    def after_the_first(name: str, asked: Study) -> Path:
        """A run at the same sites, which know what they have shown."""
        prepare(asked, there, tmp_path / name)
        for site in SIZES:
            shutil.copy(first / "sites" / site / SHOWN, tmp_path / name / "sites" / site / SHOWN)
        resume(tmp_path / name)
        return tmp_path / name

    sooner = [22.0, *ENDS[1:]]
    other = study(COUNT | {"local": COUNT["local"] | {"survival": SURVIVAL | {"ends": sooner}}})
    alone = left_by(simulate(other, there, tmp_path / "alone"))
    told = np.abs([np.subtract(own, alone[arm]) for arm, own in left_by(first).items()])
    assert np.any((told > 0) & (told < 10)), "the attack would tell nothing"
    with pytest.raises(QuorumError, match="policy"):
        after_the_first("second", other)
    table = there.cohorts["east"].root
    whole = table.read_text()
    assert "\np1," in whole
    table.write_text(whole.replace("\np1,", "\np1,1"))  # one patient is followed for longer
    with pytest.raises(QuorumError, match="east, policy"):
        after_the_first("later", study(COUNT | {"name": "later"}, rounds={"quorum": 1.0}))
    table.write_text(whole)
    assert left_by(after_the_first("again", study(COUNT | {"name": "once_more"}))) == left_by(first)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"time": "died"}, "local.survival.time: died is no task of values"),
        ({"event": "days"}, "local.survival.event: days is no task of two classes"),
        ({"by": "died"}, "local.survival.by: died is no other task"),
    ],
)
def test_tasks_that_say_no_survival_are_refused_before_round_1(change: dict[str, Any], words: str) -> None:
    local = COUNT["local"] | {"survival": SURVIVAL | change}
    with pytest.raises(StudyError, match=words):
        check_study(study(COUNT | {"local": local}), "test")


def test_what_counts_no_survival_has_no_such_key_and_the_other_way_round() -> None:
    for local in ({"kind": "statistics", "of": "survival"}, {"kind": "statistics", "survival": SURVIVAL}):
        with pytest.raises(
            StudyError, match=r"local\.survival: time, event and ends are what of: survival or hazards needs"
        ):
            check_study(study(COUNT | {"local": local}), "test")
    with pytest.raises(StudyError, match="each larger than the one before"):
        study(COUNT | {"local": COUNT["local"] | {"survival": SURVIVAL | {"ends": [30, 30]}}})
