"""A private table study from end to end: from the shipped file to a model that tells patients apart, and its cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.checks.explain import check_study
from fedgraft.common.privacy.accountant import epsilon
from fedgraft.common.study.inputs import Scale
from fedgraft.common.study.study import Study, find_study
from fedgraft.simulations.engines.run import Hospitals, simulate, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario

CLOSED = SitePolicy(min_patients=20)
"""A hospital's own defaults but for its size: nothing leaves without noise, epsilon 3 for one study, no metrics."""
OPEN_EYES = CLOSED.model_copy(update={"allow_non_dp": True, "metrics": "exact"})


@pytest.fixture(scope="module")
def study() -> Study:
    return find_study(Path("private_table"), ("evaluate.floor=4",))[0]


@pytest.fixture(scope="module")
def sites() -> Hospitals:
    return hospitals_of(load_scenario("breast_cancer"))


def under(sites: Hospitals, policy: SitePolicy) -> Hospitals:
    return Hospitals(sites.cohorts, policies=dict.fromkeys(sites.cohorts, policy))


@pytest.fixture(scope="module")
def run(study: Study, sites: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At hospitals that let nothing out without noise, but show their metrics."""
    return simulate(study, under(sites, OPEN_EYES), tmp_path_factory.mktemp("table") / "run")


def entry(run: Path, name: str) -> np.ndarray:
    state = load_tensors(run / "model.safetensors")
    return next(array for key, array in state.items() if key.endswith(f"standardise.{name}"))


def auroc(run: Path) -> float:
    return float(read_json(run / "result.json")["metrics"]["diagnosis"]["macro"]["auroc"])


def test_every_site_is_charged_for_the_scale_and_for_training_and_for_nothing_more(run: Path, study: Study) -> None:
    result = read_json(run / "result.json")
    assert result["status"] == "completed"
    for site, privacy in result["privacy"].items():
        rows = Held.of(run / "sites" / site).open(8.0).rows()
        assert [row.facts.release for row in rows] == ["sums", *["train"] * 8]
        assert [row.event.steps for row in rows] == [1, *[5] * 8]
        assert (rows[0].event.sample_rate, rows[1].event.sample_rate) == (1.0, 0.5)
        assert {row.facts.unit for row in rows} == {"patient"}
        delta = privacy["delta"]
        assert 0.49 < epsilon([rows[0].event], delta) <= 0.5
        assert 2.4 < epsilon([row.event for row in rows[1:]], delta) <= 2.5
        assert privacy["epsilon"] == pytest.approx(epsilon([row.event for row in rows], delta))
        assert privacy["epsilon"] < 3.0
        assert privacy["without_dp"] == []


def test_the_model_tells_patients_apart(run: Path) -> None:
    assert auroc(run) > 0.93


def test_the_scale_is_near_that_of_the_patients_and_not_theirs(run: Path, study: Study) -> None:
    sites = sorted(path.name for path in (run / "sites").iterdir() if (path / "site.json").is_file())
    cohorts = [simulated_cohort(study, run, site) for site in sites]
    train = np.concatenate([cohort.inputs[cohort.splits["train"]].numpy() for cohort in cohorts])
    mean, std = train.mean(axis=0), train.std(axis=0)
    assert (np.abs(entry(run, "mean") - mean) < 3 * std).all()
    assert (entry(run, "std") < 5 * std).all()
    assert (entry(run, "std") > std / 2).all()
    near = np.abs(entry(run, "mean") / mean - 1) <= 1e-6  # by chance one is, once in 15,000 runs
    assert near.sum() <= 1, "these would be the exact means"


def test_hospitals_with_their_own_defaults_take_part(study: Study, sites: Hospitals, tmp_path: Path) -> None:
    out = simulate(study, under(sites, CLOSED), tmp_path / "run")
    result = read_json(out / "result.json")
    assert result["headline"].startswith("4 of 4 sites") or result["status"] == "completed"
    assert len(result["privacy"]) == 4


@pytest.mark.slow
def test_under_masks_it_is_the_same_study(study: Study, sites: Hospitals, tmp_path: Path) -> None:
    """The coordinator reads sums over the sites alone, the noise's variance among them."""
    masked = study.model_copy(update={"secure_aggregation": True})
    check_study(masked, "test")
    policy = OPEN_EYES.model_copy(update={"metrics": "secure_aggregation"})
    out = simulate(masked, under(sites, policy), tmp_path / "run")
    assert read_json(out / "result.json")["status"] == "completed"
    assert auroc(out) > 0.93
    assert all(len(Held.of(out / "sites" / site).open(8.0).rows()) == 9 for site in sites.cohorts)


def test_public_numbers_in_their_place_cost_nothing(study: Study, sites: Hospitals, tmp_path: Path) -> None:
    middle = {name: Scale(mean=(a + b) / 2, std=(b - a) / 4) for name, (a, b) in study.input.ranges.items()}
    columns = study.input.model_copy(update={"ranges": {}, "standardise": middle})
    asked = study.model_copy(update={"input": columns, "plan": study.plan[1:]})
    check_study(asked, "test")
    out = simulate(asked, under(sites, OPEN_EYES), tmp_path / "run")
    for site, privacy in read_json(out / "result.json")["privacy"].items():
        assert 2.4 < privacy["epsilon"] <= 2.5
        assert [row.facts.release for row in Held.of(out / "sites" / site).open(8.0).rows()] == ["train"] * 8
    assert entry(out, "mean").tolist() == pytest.approx([middle[name].mean for name in columns.numeric])
    assert auroc(out) > 0.9
