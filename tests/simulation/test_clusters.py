"""Clusters of sites, each with a model of its own: against runs of each cluster's sites by themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedgraft
from conftest import write_images
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.models.weights import load_manifest
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.compare.measures.answers import MERGED
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.compare.running.cells import cells, outcome
from fedgraft.simulations.compare.running.cells import run as run_cells
from fedgraft.simulations.compare.running.models import carry_out
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from helpers.runs import page_of
from helpers.simulated import resume, simulate

PAIRS = {"one": ["east", "north"], "two": ["south", "west"]}
FEDAVG = {"name": "fedavg", "rounds": 2, "local": {"steps": 2, "batch_size": 8, "lr": 0.003}}


def alone(hospitals: Hospitals, *names: str) -> Hospitals:
    return replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in names})


def model(run: Path, cluster: str = "") -> dict[str, np.ndarray]:
    return load_tensors((run / "models" / cluster if cluster else run) / "model.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def break_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run that ends after its first exchange."""
    save = RunFolder.save_checkpoint

    def once(self: RunFolder, *facts: Any) -> None:
        save(self, *facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_checkpoint", once)
    with pytest.raises(KeyboardInterrupt):
        resume(run)
    monkeypatch.undo()


@pytest.fixture(scope="module")
def named(hospitals, make_study, tmp_path_factory) -> Path:
    study = make_study(method=FEDAVG, clusters={"by": "name", "sites": PAIRS})
    return simulate(study, hospitals, tmp_path_factory.mktemp("clusters") / "told")


def test_a_cluster_ends_with_the_model_of_its_sites_alone(named: Path, hospitals, make_study, tmp_path: Path) -> None:
    for name, sites in PAIRS.items():
        by_itself = simulate(make_study(method=FEDAVG), alone(hospitals, *sites), tmp_path / name)
        assert same(model(named, name), model(by_itself))
        ours, theirs = (read_json(run / "result.json")["metrics"]["cls"]["sites"] for run in (named, by_itself))
        assert {site: ours[site] for site in sites} == theirs
    assert read_json(named / "result.json")["status"] == "completed"


@pytest.mark.slow
def test_a_run_with_clusters_that_was_broken_off_ends_with_the_same_bits(
    hospitals, make_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the coordinator's momentum remembers is each cluster's own for its heads, and all sites' for the rest."""
    momentum = FEDAVG | {"name": "fedavgm"}
    study = make_study(method=momentum, clusters={"by": "name", "sites": PAIRS, "own": "heads"})
    whole = simulate(study, hospitals, tmp_path / "whole")
    prepare(study, hospitals, tmp_path / "run")
    break_off(tmp_path / "run", monkeypatch)
    resume(tmp_path / "run", Engine(name="pool", workers=2))
    assert all(same(model(whole, name), model(tmp_path / "run", name)) for name in PAIRS)
    keys = ("exchange", "sites_aggregated", "metrics")
    assert [[row[key] for key in keys] for row in history(whole)] == [
        [row[key] for key in keys] for row in history(tmp_path / "run")
    ]


@pytest.mark.slow
def test_clusters_share_the_backbone_and_keep_heads(hospitals, make_study, tmp_path: Path) -> None:
    """One round: the heads are those of each cluster by itself, and all else what all sites make together."""
    one_round = FEDAVG | {"rounds": 1}
    study = make_study(method=one_round, clusters={"by": "name", "sites": PAIRS, "own": "heads"})
    run = simulate(study, hospitals, tmp_path / "run")
    together = model(simulate(make_study(method=one_round), hospitals, tmp_path / "together"))
    for name, sites in PAIRS.items():
        apart = model(simulate(make_study(method=one_round), alone(hospitals, *sites), tmp_path / name))
        found = model(run, name)
        heads = {key for key in found if key.startswith("heads.")}
        assert heads
        assert all(np.array_equal(found[key], apart[key]) for key in heads)
        assert all(np.array_equal(found[key], together[key]) for key in found.keys() - heads)


@pytest.mark.slow
def test_clusters_can_begin_after_a_stage_of_all_sites(hospitals, make_study, tmp_path: Path) -> None:
    """Heads solved from all sites' sums, then a cluster's rounds from there."""
    lp_ft = {"name": "graft", "rounds": 1, "local": FEDAVG["local"]}
    study = make_study(method=lp_ft, clusters={"by": "name", "sites": PAIRS, "begin": "train"})
    run = simulate(study, hospitals, tmp_path / "run")
    only = make_study(plan=[study.plan[0].model_dump(mode="json")])
    probe = simulate(only, hospitals, tmp_path / "probe")
    rest = [stage.model_dump(mode="json") for stage in study.plan[1:]]
    weights = {"backbone": "slim_resnet", "weights": str(probe), "heads": "weights"}
    for name, sites in PAIRS.items():
        twin = simulate(make_study(plan=rest, model=weights), alone(hospitals, *sites), tmp_path / name)
        assert same(model(run, name), model(twin))


def test_whoever_uses_the_run_is_asked_which_model(named: Path, hospitals) -> None:
    with pytest.raises(WeightsError, match=r"a model for each cluster of sites: one \(east, north\); two"):
        load_manifest(str(named))
    run = fedgraft.load_run(named)
    with pytest.raises(WeightsError, match="A hospital that is new takes that of the sites"):
        run.model()
    image = np.random.default_rng(0).integers(0, 255, (2, 32, 32), dtype=np.uint8)
    for name, sites in PAIRS.items():
        wanted = fedgraft.TrainedModel(str(named / "models" / name)).predict(image).answers["cls"]
        assert all(np.array_equal(run.model(site).predict(image).answers["cls"], wanted) for site in sites)
    with pytest.raises(InputError, match="has no site 'elsewhere'"):
        run.model("elsewhere")


@pytest.mark.slow
def test_masked_clusters_end_as_clusters_in_the_open(hospitals, make_study, tmp_path: Path) -> None:
    """Six sites of three hospitals' images, so that each cluster has the three that a masked sum needs."""
    names = ("east", "south", "west")
    cohorts = {f"{half}_{name}": hospitals.cohorts[name] for half in ("a", "b") for name in names}
    clusters = {"by": "name", "sites": {half: [f"{half}_{name}" for name in names] for half in ("a", "b")}}
    gentle = FEDAVG | {"local": {"steps": 2, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}}
    runs = {}
    for masks in (False, True):
        study = make_study(method=gentle, clusters=clusters, secure_aggregation=masks, evaluate={"floor": 1})
        runs[masks] = simulate(study, replace(hospitals, cohorts=cohorts), tmp_path / str(masks))
    for half in ("a", "b"):
        one, other = (model(run, half) for run in runs.values())
        assert all(np.abs(one[key].astype(float) - other[key]).max() < 1e-6 for key in one)
    plain, hidden = (read_json(run / "result.json")["metrics"]["cls"] for run in runs.values())
    for key in ("n", "accuracy", "brier", "loss"):
        assert hidden["pooled"][key] == pytest.approx(plain["pooled"][key], rel=1e-3)
    assert hidden["macro"]["auroc"] == pytest.approx(plain["macro"]["auroc"], rel=1e-3)
    theirs, ours = (history(run)[0] for run in runs.values())
    seen = {site: own["loss"] * own["examples"] for site, own in theirs["train"].items()}
    cases = sum(own["examples"] for own in theirs["train"].values())
    assert ours["train_pooled"]["loss"] == pytest.approx(sum(seen.values()) / cases, rel=1e-5)


def darkened(root: Path, name: str) -> CohortSpec:
    """The same kind of images from another scanner: bars are dark, and all is brighter."""
    for path in sorted((root / name).glob("*/*.png")):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return CohortSpec(kind="images", root=root / name, labels=root / name / "images.csv", patient_column="patient")


@pytest.mark.slow
def test_sites_that_are_alike_find_each_other_by_their_sums(
    hospitals, make_study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scanners at four sites, in a run taken up again after the sums; the models are those of clusters told."""
    cohorts = dict(hospitals.cohorts)
    for number, name in enumerate(("north", "west")):
        write_images(tmp_path / "images" / name, 7 + number, 48)
        cohorts[name] = darkened(tmp_path / "images", name)
    there = replace(hospitals, cohorts=cohorts)
    asked = {
        "method": {"name": "graft", "rounds": 1, "local": FEDAVG["local"]},
        "input": {"kind": "image", "size": 32, "normalise": "fixed"},
    }
    prepare(make_study(**asked, clusters={"by": "sums", "stage": "probe"}), there, tmp_path / "run")
    break_off(tmp_path / "run", monkeypatch)
    run = resume(tmp_path / "run")
    found = read_json(run / "result.json")["clusters"]
    assert found["sites"] == {"cluster_1": ["east", "south"], "cluster_2": ["north", "west"]}
    apart = {(pair["one"], pair["other"]): pair["distance"] for pair in found["likeness"]}
    assert min(apart["east", "north"], apart["south", "west"]) > 3 * max(apart["east", "south"], apart["north", "west"])
    told = {"by": "name", "begin": "train", "sites": {"a": ["east", "south"], "b": ["north", "west"]}}
    twin = simulate(make_study(**asked, clusters=told), there, tmp_path / "twin")
    assert same(model(run, "cluster_1"), model(twin, "a"))
    assert same(model(run, "cluster_2"), model(twin, "b"))
    page = page_of(run)
    assert "made from the sums" in page.text
    assert f"{apart['east', 'north']:.3f}" in page.cells


@pytest.mark.slow
def test_an_arm_of_a_comparison_can_have_clusters(hospitals, make_study, tmp_path: Path) -> None:
    """What it says of each site is what that cluster's model says; `pooled` pools each cluster."""
    study = make_study(method=FEDAVG | {"rounds": 1}, evaluate={"every": 0})
    apart = {"clusters": {"by": "name", "sites": PAIRS}}
    question = Question(
        arms=(Arm(name="study"), Arm(name="clusters", set=apart), Arm(name="pooled", who="pooled", set=apart))
    )
    todo = cells(study, question, hospitals, 1, "test")
    list(run_cells(todo, tmp_path / "cells", 1, 1))
    found = {cell.arm: outcome(cell, tmp_path / "cells").found[MERGED] for cell in todo}
    for name, sites in PAIRS.items():
        job = replace(todo[0].job, cohorts={site: todo[0].job.cohorts[site] for site in sites})
        by_itself, _ = carry_out(job, tmp_path / name)
        at_one, _ = carry_out(replace(job, who="pooled"), tmp_path / f"{name}_pooled")
        for arm, wanted in (("clusters", by_itself), ("pooled", at_one)):
            for site in sites:
                assert np.array_equal(found[arm][site]["cls"].outputs, wanted[MERGED][site]["cls"].outputs)
    assert not np.array_equal(found["study"]["east"]["cls"].outputs, found["clusters"]["east"]["cls"].outputs)


def test_the_page_shows_the_clusters(named: Path) -> None:
    page = page_of(named)
    assert "named by the study" in page.text
    assert {"one", "east, north", "two", "south, west"} <= set(page.cells)


def test_a_site_in_no_cluster_takes_no_part_and_says_so(hospitals, make_study, tmp_path: Path) -> None:
    clusters = {"by": "name", "sites": {"one": ["east", "north"], "two": ["south"]}}
    run = simulate(make_study(method=FEDAVG | {"rounds": 1}, clusters=clusters), hospitals, tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["status"] == "incomplete"
    assert "missing: west, no_cluster" in result["headline"]
    assert set(result["metrics"]["cls"]["sites"]) == {"east", "north", "south"}
