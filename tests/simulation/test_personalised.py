"""A site uses its own model only where it is better on its validation cases, and nobody else can tell where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft
from fedgraft.client.runtime.visit import personal
from fedgraft.client.runtime.visit.personal import kept_at_the_end
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.checks.check import check
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.measures.answers import MERGED
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.compare.running.cells import cells, outcome
from fedgraft.simulations.compare.running.cells import run as run_cells
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate

LOCAL = {"steps": 10, "batch_size": 8, "lr": 0.003}
BEST = {"name": "fedavg", "rounds": 2, "local": LOCAL, "personalise": "best"}
FEDAVG = {key: value for key, value in BEST.items() if key != "personalise"}
SPLIT = {"train": 0.5, "val": 0.3, "test": 0.2}


@pytest.fixture(scope="module")
def four(hospitals: Hospitals) -> Hospitals:
    """One of four hospitals calls the sides the other way round: a common model is of no use to it."""
    turned = {"label_map": {"cls": {"left": "right", "right": "left"}}}
    odd = hospitals.cohorts["south"].model_copy(update=turned)
    return replace(hospitals, cohorts={**hospitals.cohorts, "south": odd})


@pytest.fixture(scope="module")
def study(make_study) -> Study:
    return make_study(method=BEST, split=SPLIT)


@pytest.fixture(scope="module")
def run(four: Hospitals, study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(study, four, tmp_path_factory.mktemp("best") / "run")


def kept(run: Path, study: Study, site: str) -> dict[str, np.ndarray]:
    tags = initialise(study).model.tags()
    state = load_tensors(run / "model.safetensors")
    return kept_at_the_end(run / "sites" / site / "local_state" / study.digest, study, tags, state)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def choice(run: Path, site: str) -> dict[str, Any]:
    (path,) = (run / "sites" / site / "local_state").glob("*/personal/choice.json")
    return read_json(path)


def written(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All that the coordinator has of a run, but for how long things took."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    result = read_json(run / "result.json")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], {
        k: result[k] for k in result if k != "seconds"
    }


@pytest.mark.slow
def test_each_site_takes_what_is_better_on_its_validation_cases(
    run: Path, study: Study, four: Hospitals, make_study, tmp_path: Path
) -> None:
    """Where its own is better, it uses the model of a run of it alone; the common one is that of a plain run."""
    assert [stage.name for stage in study.plan] == ["alone", "train"]
    used = {site: choice(run, site) for site in four.cohorts}
    assert used["south"]["uses_own"]
    assert {found["uses_own"] for found in used.values()} == {True, False}, "else the test shows half of it"
    for site, found in used.items():
        assert found["uses_own"] == (found["own"] > found["common"])
        assert bool(kept(run, study, site)) == found["uses_own"]
    plain = simulate(make_study(method=FEDAVG, split=SPLIT), four, tmp_path / "plain")
    assert same(load_tensors(run / "model.safetensors"), load_tensors(plain / "model.safetensors"))
    by_itself = replace(four, cohorts={"south": four.cohorts["south"]})
    renamed = [study.plan[1].model_copy(update={"name": "alone"}).model_dump(mode="json")]
    alone = simulate(make_study(plan=renamed, split=SPLIT), by_itself, tmp_path / "alone")
    assert same(kept(run, study, "south"), load_tensors(alone / "model.safetensors"))


@pytest.mark.slow
def test_nothing_that_leaves_depends_on_the_choice(
    run: Path, study: Study, four: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose sites all take their own model tells the coordinator the very same."""
    tried = iter(range(100))
    monkeypatch.setattr(personal, "_figure", lambda *_: float(next(tried) % 2))  # the common model's comes first
    other = simulate(study, four, tmp_path / "other")
    assert written(other) == written(run)
    assert [choice(other, site)["uses_own"] for site in four.cohorts] != [
        choice(run, site)["uses_own"] for site in four.cohorts
    ]
    rows, result = written(run)
    assert [row["evaluated"] for row in rows if row["evaluated"]] == [
        {"stage": "start", "round": 0},
        *[{"stage": "start", "round": 0}] * 2,
        {"stage": "train", "round": 1},
        {"stage": "train", "round": 2},
    ]
    assert all(not row["train"] or not any(row["train"].values()) for row in rows if row["stage"] == "alone")
    assert "known to that site alone" in " ".join(result["remarks"])


@pytest.mark.slow
def test_a_site_and_a_comparison_use_what_was_chosen(
    run: Path, study: Study, four: Hospitals, make_study, tmp_path: Path
) -> None:
    opened = fedgraft.load_run(run)
    image = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    common = opened.model().predict(image).answers["cls"]
    for site in four.cohorts:
        found = opened.model(site).predict(image).answers["cls"]
        assert np.array_equal(found, common) != choice(run, site)["uses_own"]
    question = Question(arms=(Arm(name="study"), Arm(name="plain", set={"method": FEDAVG})))
    todo = cells(study, question, four, 1, "test")
    list(run_cells(todo, tmp_path, 1, 1))
    best, plain = (outcome(cell, tmp_path).found[MERGED] for cell in todo)
    for site in four.cohorts:
        alike = np.array_equal(best[site]["cls"].outputs, plain[site]["cls"].outputs)
        assert alike != choice(run, site)["uses_own"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": {"train": 0.8, "val": 0.0, "test": 0.2}, "evaluate": {"every": 0}}, "split.val is 0"),
        (
            {"method": BEST | {"name": "local_finetuning", "local": LOCAL | {"methods": [{"kind": "feddyn"}]}}},
            "plain work",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(study: Study, make_study, changes: dict[str, Any], words: str) -> None:
    asked = make_study(**{"method": BEST, "split": SPLIT} | changes)
    assert any(words in fault for fault in check(asked, initialise(study).model.tags()))


def test_methods_with_a_model_of_each_sites_own_ask_it_of_that(make_study) -> None:
    plan = make_study(method=BEST | {"name": "ditto"}).plan
    assert [(stage.name, stage.personalise) for stage in plan] == [("train", "always"), ("personal", "best")]


def test_weights_from_far_away_are_let_be_in_a_sites_own_model_too(make_study) -> None:
    """It begins with the solved heads, and its norm statistics stay, as in what all train."""
    plan = make_study(method=BEST | {"name": "probe_finetune", "ood_detection": True}).plan
    assert [stage.name for stage in plan] == ["probe", "alone", "train", "describe", "distances"]
    assert plan[1].local == plan[2].local
    assert plan[1].local.fixed_norm_stats


@pytest.mark.slow
def test_a_sites_own_model_begins_with_the_heads_that_all_have_solved(hospitals, make_study, tmp_path: Path) -> None:
    still = {"name": "probe_finetune", "rounds": 1, "local": {"steps": 1, "batch_size": 8, "lr": 1e-12}}
    run = simulate(make_study(method=still | {"personalise": "best"}, split=SPLIT), hospitals, tmp_path / "run")
    common = load_tensors(run / "model.safetensors")
    for site in hospitals.cohorts:
        (own,) = (run / "sites" / site).glob("local_state/*/personal/*.safetensors")
        kept = load_tensors(own)
        assert np.abs(kept["heads.cls.weight"] - common["heads.cls.weight"]).max() < 1e-6
    assert np.abs(common["heads.cls.weight"]).max() > 1e-3
