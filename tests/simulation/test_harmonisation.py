"""ComBat from sums in a study: sites' offsets are gone, what covariates explain stays, and no effect leaves a site."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.tables.table import read_table
from fedgraft.client.inference.adapt import AdaptRequest, adapt
from fedgraft.client.inference.command import PredictRequest, predict
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.columns.harmonise import harmonisation_sums, layer_of
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import DataError, StudyError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.checks.explain import check_study, explain, sentence
from fedgraft.common.harmonisation.combat import common_from_sums, sums_of
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.methods.fit import Fit
from fedgraft.common.study.study import read_study
from fedgraft.simulations.engines.run import Hospitals, simulated_cohort
from helpers.harmonised import AGE_SLOPE, INPUT, SIZES, Floats, hospitals, pooled_combat, study
from helpers.simulated import resume, simulate, stopped_at
from helpers.work import CPU, cohort


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    return hospitals(tmp_path_factory.mktemp("analysers"))


@pytest.fixture(scope="module")
def run(there: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = study()
    check_study(asked, "test")
    return simulate(asked, there, tmp_path_factory.mktemp("harmonised") / "run")


def cohort_of(run: Path, site: str) -> Cohort:
    asked, _ = read_study(run / "study.yaml")
    return simulated_cohort(asked, run, site)


def rows_of(run: Path, site: str, split: str = "train") -> torch.Tensor:
    cohort = cohort_of(run, site)
    return cohort.inputs[cohort.splits[split]]


def adjusted(run: Path, site: str, rows: torch.Tensor) -> Floats:
    """The assays (N, 4) as the site's model takes them in."""
    layer = layer_of(LoadedModel(str(run), run / "sites" / site, everything=True).local_model)
    with torch.no_grad():
        found: Floats = layer(rows)[:, [0, 2, 3, 4]].double().numpy()
    return found


def covariates(rows: torch.Tensor) -> Floats:
    """Age, and whether a man; NaN where missing."""
    sexes = rows[:, 5:].double().numpy()
    man = np.where(sexes.sum(1) > 0, sexes[:, 1], np.nan)
    return np.column_stack([rows[:, 1].double().numpy(), man])


def state_of(run: Path, site: str) -> dict[str, np.ndarray]:
    (folder,) = (run / "sites" / site / "local_state").iterdir()
    return load_tensors(sorted(folder.iterdir())[-1])


def effects(run: Path) -> dict[str, list[Floats]]:
    found = {site: state_of(run, site) for site in SIZES}
    return {site: [own[key].astype(float) for key in sorted(own)] for site, own in found.items()}


def offsets(values: dict[str, Floats], by: dict[str, Floats]) -> tuple[Floats, Floats, Floats]:
    """By assay the largest difference between two sites, given the covariates, its standard error, and age's slope."""
    found = []
    for assay in range(4):
        y = np.concatenate([values[site][:, assay] for site in SIZES])
        x = np.vstack([by[site] for site in SIZES])
        site = np.repeat(np.eye(len(SIZES)), [len(by[site]) for site in SIZES], axis=0)
        use = ~np.isnan(y) & ~np.isnan(x).any(1)
        design = np.column_stack([site, x])[use]
        fit, (left,), *_ = np.linalg.lstsq(design, y[use], rcond=None)
        spread = left / (use.sum() - 5) * np.linalg.inv(design.T @ design)
        pairs = np.array([[1, -1, 0, 0, 0], [1, 0, -1, 0, 0], [0, 1, -1, 0, 0]])
        error = np.sqrt(np.diag(pairs @ spread @ pairs.T).max())
        found.append((np.ptp(fit[:3]), error, fit[3]))
    return tuple(np.array(row) for row in zip(*found, strict=True))  # type: ignore[return-value]


def test_offsets_are_gone_given_covariates_and_what_these_explain_is_kept(run: Path) -> None:
    rows = {site: rows_of(run, site) for site in SIZES}
    by = {site: covariates(own) for site, own in rows.items()}
    raw = {site: own[:, [0, 2, 3, 4]].double().numpy() for site, own in rows.items()}
    before, error, _ = offsets(raw, by)
    after, _, slope = offsets({site: adjusted(run, site, own) for site, own in rows.items()}, by)
    assert before.max() > 8 * error.max()
    # Shrinkage leaves a part of what chance alone could be.
    assert (after < error).all()
    assert slope == pytest.approx(AGE_SLOPE, abs=0.05)
    held = {site: rows_of(run, site, "test") for site in SIZES}
    by = {site: covariates(own) for site, own in held.items()}
    after, error, _ = offsets({site: adjusted(run, site, own) for site, own in held.items()}, by)
    assert (after < 3 * error).all()  # patients whom no site has looked at, by what training patients say


def test_it_is_combat_on_all_training_patients_at_one_place(run: Path) -> None:
    rows = [rows_of(run, site) for site in SIZES]
    wanted = pooled_combat([(own[:, [0, 2, 3, 4]].double().numpy(), covariates(own)) for own in rows])
    taken_in = []
    for site, own, pooled in zip(SIZES, rows, wanted, strict=True):
        found, known = adjusted(run, site, own), ~np.isnan(pooled)
        np.testing.assert_allclose(found[known], pooled[known], atol=2e-5)
        taken_in.append(found)
    state = load_tensors(run / "model.safetensors")
    scale = [state[f"backbone.standardise.{name}"][[0, 2, 3, 4]] for name in ("mean", "std")]
    whole = np.vstack(taken_in)  # of those who lack a covariate too
    np.testing.assert_allclose(scale, [np.nanmean(whole, 0), np.nanstd(whole, 0)], rtol=1e-4)


def test_no_effect_of_a_site_leaves_it(run: Path) -> None:
    own = {site: state_of(run, site) for site in SIZES}
    model = load_tensors(run / "model.safetensors")
    for entries in own.values():
        assert sorted(key.rpartition(".")[2] for key in entries) == ["factor", "shift"]
        for key, array in entries.items():
            assert not np.allclose(array, model[key])
    key = next(key for key in model if key.endswith("harmonise.shift"))
    assert (model[key] == 0).all()
    for site in SIZES:
        lines = [json.loads(line) for line in (run / "sites" / site / "egress.jsonl").read_text().splitlines()]
        sent = {line["exchange"]: set(line["tensors"]) for line in lines if line["kind"] == "update"}
        assert sent[1] == {"count", "sum", "sites", "squares", "covariates", "products", "cross"}
        assert sent[2] == set()
        assert not any("harmonise" in name for names in sent.values() for name in names)


def test_sums_tell_nothing_of_what_few_patients_have() -> None:
    """Nine patients with an assay, in twenty rows, and nine women among many men: as if neither were there."""
    draw = np.random.default_rng(3)
    x = np.column_stack([draw.normal(size=(150, 5)), np.tile([0.0, 1.0], (150, 1))])
    x[:9, 5:], x[30:, 0], x[:10, 0] = [1, 0], np.nan, np.nan
    patients = tuple(f"p{10 + at % 9 if 10 <= at < 30 else at + 100}" for at in range(150))
    told = []
    for value in (1.0, 777.0):
        x[10:30, 0] = x[:9, 2] = value
        one = replace(cohort(torch.from_numpy(x).float(), {"cls": torch.arange(150) % 2}), patients=patients)
        asked = study()
        told.append(harmonisation_sums(LocalModel(asked, CPU), Loader(one, asked.input, CPU), one.patients))
    assert told[0]["count"].tolist() == [0, 141, 141, 141]
    assert all(np.array_equal(told[0][name], told[1][name]) for name in told[0])


@pytest.mark.parametrize("kind", ["a word among those who have the column", "two words", "a number"])
def test_sums_tell_nothing_of_the_few_of_a_column_who_differ(kind: str) -> None:
    """Nine are women, or of another age, of those who have an assay, though more are among all."""
    draw = np.random.default_rng(4)
    x = np.column_stack([draw.normal(size=(150, 5)), np.tile([0.0, 1.0], (150, 1))])
    given = INPUT | {"harmonise": {"covariates": ["age", "sex"]}}
    if kind == "a word among those who have the column":
        x[:40, 5:], x[9:40, 0] = [1, 0], np.nan
    elif kind == "two words":  # without the eight in the third ward only nine women are left
        x[:17, 5:] = [1, 0]
        ward = np.tile([0.0, 1.0, 0.0], (150, 1))
        ward[40:80], ward[9:17] = [1, 0, 0], [0, 0, 1]
        x = np.column_stack([x, ward])
        words = {"sex": ["f", "m"], "ward": ["a", "b", "c"]}
        given = INPUT | {"categorical": words, "harmonise": {"covariates": ["age", "sex", "ward"]}}
    else:
        x[:, 1], x[:, 5:] = 1.0, np.tile([[1, 0], [0, 1]], (75, 1))
        x[:9, 1] = 0.0
    told = []
    for value in (1.0, 777.0):
        x[:9, 0] = value
        one = replace(cohort(torch.from_numpy(x).float(), {"cls": torch.arange(150) % 2}))
        asked = study(input=given)
        told.append(harmonisation_sums(LocalModel(asked, CPU), Loader(one, asked.input, CPU), one.patients))
    assert told[0]["count"][0] > 100
    assert all(np.array_equal(told[0][name], told[1][name]) for name in told[0])


def test_a_sites_own_sums_tell_its_effects() -> None:
    """What the pages say: mean and spread of residuals, and so what the site finds, follow from sums of one site."""
    draw, cases = np.random.default_rng(5), []
    for site in range(3):
        x = draw.normal(size=(60 + 20 * site, 2))
        cases.append((x @ draw.normal(size=(2, 3)) + site + draw.normal(size=(len(x), 3)) * (1 + site), x))
    sent = [sums_of(*own) for own in cases]
    common = common_from_sums({name: sum((one[name] for one in sent[1:]), sent[0][name]) for name in sent[0]})
    level, spread, slopes, centre = (common[name] for name in ("level", "spread", "slopes", "centre"))
    y, x = cases[1]
    z = (y - level - (x - centre) @ slopes.T) / spread
    one = sent[1]
    mean = one["sum"] / one["count"] - level - ((one["covariates"] / one["count"][:, None] - centre) * slopes).sum(1)
    around = one["squares"] - 2 * (slopes * one["cross"]).sum(1)
    around += np.einsum("pi,pij,pj->p", slopes, one["products"], slopes)
    np.testing.assert_allclose(mean / spread, z.mean(0))
    np.testing.assert_allclose(around / spread**2 / (one["count"] - 1), z.var(0, ddof=1))


def test_a_person_gets_the_figures_of_the_run(run: Path, there: Hospitals, tmp_path: Path) -> None:
    """`predict --site` answers by the site's own effects, as the run's figures do; without them it is another model."""
    reported = read_json(run / "result.json")["metrics"]["cls"]["sites"]
    for site in SIZES:
        reader = LoadedModel(str(run), run / "sites" / site, everything=True)
        loader = Loader(cohort_of(run, site), reader.input, reader.local_model.device)
        found = evaluate(reader.local_model, loader, "test")["cls"].values()
        assert found["auroc"] == pytest.approx(reported[site]["auroc"], abs=1e-6)
        assert found["accuracy"] == pytest.approx(reported[site]["accuracy"], abs=1e-6)
    said = {}
    for name, site in (("own", run / "sites" / "west"), ("common", None)):
        predict(PredictRequest(str(run), there.cohorts["west"].root, tmp_path / name, site))
        with (tmp_path / name / "predictions.csv").open() as file:
            said[name] = [list(row.values())[-1] for row in csv.DictReader(file)]
    assert said["own"] != said["common"]


def test_a_finished_model_is_measured_where_hospitals_find_their_effects_alone(
    run: Path, there: Hospitals, tmp_path: Path
) -> None:
    finished = {"backbone": "table_linear", "weights": str(run), "heads": "weights"}
    alone = [{"name": "harmonise", "local": {"kind": "harmonise"}, "keep": "site_effects"}]
    asked = study(model=finished, plan=alone)
    check_study(asked, "test")
    measured = simulate(asked, there, tmp_path / "measured")
    found, wanted = (read_json(one / "result.json")["metrics"]["cls"]["sites"] for one in (measured, run))
    for site in SIZES:
        assert found[site]["auroc"] == pytest.approx(wanted[site]["auroc"], abs=1e-6)


def test_a_hospital_that_comes_later_finds_its_effects_by_itself(run: Path, there: Hospitals, tmp_path: Path) -> None:
    home = tmp_path / "later"
    data = there.cohorts["west"]
    adapt(AdaptRequest(str(run), home, Fit(how="ridge"), data=data), as_json=False)
    adapted = LoadedModel(str(run), home, everything=True).local_model
    mine = state_of(run, "west")
    for key, array in adapted.read(mine).items():
        np.testing.assert_allclose(array, mine[key], atol=0.8)  # by other training patients of the same hospital
        assert abs(array - float(key.endswith("factor"))).max() > 0.2


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(run: Path, there: Hospitals, tmp_path: Path) -> None:
    """Once while sites find their effects, and once after: what they keep and the model are those of a whole run."""
    stopped = stopped_at(study(), there, tmp_path / "run", 2)
    resume(stopped)
    whole, again = load_tensors(run / "model.safetensors"), load_tensors(stopped / "model.safetensors")
    assert all(np.array_equal(whole[key], again[key]) for key in whole)
    for site, own in effects(run).items():
        assert all(map(np.array_equal, own, effects(stopped)[site]))


@pytest.mark.slow
def test_under_masks_it_is_the_same(run: Path, there: Hospitals, tmp_path: Path) -> None:
    plan = [stage.model_dump() | {"where": "labelled"} for stage in study().plan]
    asked = study(plan=plan, secure_aggregation=True)
    check_study(asked, "test")
    masked = simulate(asked, there, tmp_path / "run")
    for site, own in effects(run).items():
        for one, other in zip(own, effects(masked)[site], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_features_of_frozen_extractors_are_harmonised_without_covariates() -> None:
    given = {
        "kind": "features",
        "count": 8,
        "extractor": {"name": "x", "weights": "0" * 64, "preprocessing": "p"},
        "harmonise": {},
    }
    asked = study(input=given)
    assert [stage.name for stage in asked.plan] == ["combat", "harmonise", "standardise", "probe"]
    checked = check_study(asked, "test")
    assert "backbone.standardise.harmonise.slopes" not in checked.architecture.entries
    assert checked.architecture.entries["backbone.standardise.harmonise.shift"].shape == (8,)


def test_what_leaves_is_said_before(there: Hospitals) -> None:
    asked = study()
    rows = explain(asked, "test").rows
    words = [sentence(stage, row) for stage, row in zip(asked.plan, rows, strict=True)]
    assert "count and sum of each column and its covariates" in words[0]
    assert "equal to the pooled fit" in words[0]
    assert "nothing leaves the site" in words[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"input": INPUT | {"harmonise": {"covariates": ["cls"]}}}, "cls is no column of the input"),
        (
            {
                "input": INPUT | {"harmonise": {"covariates": ["age"]}},
                "tasks": [{"name": "age", "kind": "regression", "unit": "y", "mean": 50, "std": 10}],
            },
            "age is what the study asks for",
        ),
        ({"input": INPUT | {"harmonise": {"covariates": ["age", "age"]}}}, "names a column twice"),
        ({"input": INPUT | {"harmonise": {"covariates": INPUT["numeric"]}}}, "no numeric column is left"),
        (
            {
                "method": {
                    "name": "fedavg",
                    "local": {"steps": 5, "fixed_norm_stats": True, "private": {"epsilon": 5, "sample_rate": 0.1}},
                }
            },
            "differential privacy",
        ),
        (
            {"plan": [{"name": "h", "local": {"kind": "harmonise"}, "keep": "site_effects"}]},
            "columns are harmonised before anything else",
        ),
        (
            {"input": INPUT, "plan": [{"name": "h", "local": {"kind": "harmonise"}, "keep": "site_effects"}]},
            "say in input.harmonise by which covariates",
        ),
    ],
)
def test_what_cannot_be_harmonised_is_refused_with_its_reason(more: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        check_study(study(**more), "test")


def test_a_site_whose_policy_lets_nothing_out_without_noise_sends_no_sums(there: Hospitals, tmp_path: Path) -> None:
    closed = SitePolicy.model_validate({"min_patients": 1, "allow_non_dp": False})
    asked = study(rounds={"quorum": 0.5, "min_sites": 2})
    run = simulate(asked, Hospitals(there.cohorts, policies={"west": closed}), tmp_path / "run")
    rows = [json.loads(line) for line in (run / "sites" / "west" / "egress.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} <= {"greeting", "refusal"}


def test_a_column_that_holds_the_label_at_a_site_is_no_covariate_there(there: Hospitals) -> None:
    labelled = there.cohorts["west"].model_copy(update={"label_columns": {"cls": "sex"}})
    asked = study(tasks=[{"name": "cls", "classes": ["f", "m"]}])
    plain = study(input=INPUT)
    assert isinstance(asked.input, TableInput)
    assert isinstance(plain.input, TableInput)
    with pytest.raises(DataError, match="'sex' holds the label") as refused:
        read_table(labelled, asked.tasks, asked.input)
    assert "leave the covariate out" in str(refused.value)
    read_table(labelled, asked.tasks, plain.input)
