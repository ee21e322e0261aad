"""Sites that choose, of several models, the one that fits them (IFCA): against NumPy, and on two populations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedgraft
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.review import in_words, review
from fedgraft.client.governance.verdict import judge
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.files import load_tensors, read_json, write_json
from fedgraft.common.base.seeds import derive
from fedgraft.common.models.initialise import initialise, make_model
from fedgraft.common.protocol.choosing import chosen, side_by_side
from fedgraft.common.protocol.instructions import Answer, Code, Instruction, Update
from fedgraft.simulations.compare.measures.answers import MERGED
from fedgraft.simulations.compare.question import Arm, Question
from fedgraft.simulations.compare.running.cells import cells, outcome
from fedgraft.simulations.compare.running.cells import run as run_cells
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from helpers.runs import page_of
from helpers.simulated import resume, simulate, stopped_at
from helpers.tables import Floats, Trial, head, populations, sgd, slope, study, trial
from helpers.work import CPU, OPEN, a_site, cohort, images

STEPS, LR, ROUNDS = 3, 0.5, 4
TWO = {"by": "loss", "count": 2}
TRAIN = {"name": "train", "local": sgd(STEPS, LR), "rounds": ROUNDS, "share": "all", "aggregate": {"kind": "mean"}}


def model(run: Path, cluster: str) -> dict[str, np.ndarray]:
    return load_tensors(run / "models" / cluster / "model.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def loss(w: Floats, z: Floats, y: Floats) -> float:
    scores = z @ w
    return float(np.mean(np.log(np.exp(scores).sum(1)) - (scores * y).sum(1)))


def ifca(t: Trial, begin: list[Floats]) -> tuple[list[Floats], list[dict[str, int]]]:
    """Ghosh et al. 2020, algorithm 1 with model averaging: the models, and by round who took which."""
    models, taken = [w.copy() for w in begin], []
    for _ in range(ROUNDS):
        choice, ends = {}, {}
        for site, (z, y) in t.cases.items():
            choice[site] = int(np.argmin([loss(w, z, y) for w in models]))
            v = models[choice[site]].copy()
            for _ in range(STEPS):
                v = v - LR * slope(v, z, y)
            ends[site] = v
        for at in range(len(models)):
            mine = [site for site in choice if choice[site] == at]
            if mine:
                counts = np.array([len(t.cases[site][1]) for site in mine], float)
                models[at] = np.einsum("k,kij->ij", counts / counts.sum(), [ends[site] for site in mine])
        taken.append(choice)
    return models, taken


def test_a_run_follows_the_paper(tmp_path: Path) -> None:
    """Round by round who takes which model, and the models in the end; each begins with heads of its own."""
    asked = study(TRAIN, clusters=TWO | {"own": "heads"}, seed=5)
    t = trial(asked, tmp_path, populations(tmp_path / "data"))
    other = head(initialise(asked, derive(asked.seed, "clusters", "cluster_2")).state())
    models, taken = ifca(t, [t.first, other])
    said = [row["chosen"] for row in rows(t.run) if row["stage"] == "train"]
    assert said == [{site: f"cluster_{at + 1}" for site, at in choice.items()} for choice in taken]
    assert {at for choice in taken for at in choice.values()} == {0, 1}
    for at in {*taken[-1].values()}:
        assert np.abs(head(model(t.run, f"cluster_{at + 1}")) - models[at]).max() < 2e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("found")
    return simulate(study(TRAIN, clusters=TWO), populations(root / "data"), root / "run")


def test_two_populations_are_found(found: Path, tmp_path: Path) -> None:
    result = read_json(found / "result.json")
    assert sorted(result["clusters"]["sites"].values()) == [["east", "south"], ["north", "west"]]
    one = simulate(study(TRAIN), populations(tmp_path / "data"), tmp_path / "one")
    apart, together = (read_json(run / "result.json")["metrics"]["cls"] for run in (found, one))
    assert apart["pooled"]["auroc"] > 0.9
    assert together["pooled"]["auroc"] < 0.8


def test_what_left_a_site_says_which_model_it_took_and_only_with_what_it_had_trained(found: Path) -> None:
    (log,) = (found / "sites" / "east").glob("**/egress.jsonl")
    entries = list(EgressLog(log.parent).entries())
    took = [entry.words["cluster"] for entry in entries if "cluster" in entry.words]
    assert took == [row["chosen"]["east"] for row in rows(found) if row["stage"] == "train"]
    assert all(entry.tensors for entry in entries if "cluster" in entry.words)


def test_the_page_says_that_sites_chose(found: Path) -> None:
    page = page_of(found)
    assert "chosen by the sites" in page.text
    assert {"east, south", "north, west"} <= set(page.cells)


def test_who_chooses_gets_all_models_and_who_is_measured_his_own(found: Path, tmp_path: Path) -> None:
    """The heads of two models go down in a round, and what they share once; up goes one."""
    one = simulate(study(TRAIN), populations(tmp_path / "data"), tmp_path / "one")
    twice, once = (rows(run) for run in (found, one))
    for ours, theirs in zip(twice[2:-1], once[2:-1], strict=True):
        assert theirs["bytes_down"] < ours["bytes_down"]
        assert abs(ours["bytes_up"] - theirs["bytes_up"]) < 4 * 40  # the name of the model that was taken
    assert twice[-1]["chosen"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [2, 4])
def test_a_run_that_was_broken_off_ends_with_the_same_bits(found: Path, tmp_path: Path, exchange: int) -> None:
    asked = study(TRAIN, clusters=TWO)
    run = stopped_at(asked, populations(tmp_path / "data"), tmp_path / "run", exchange)
    resume(run, Engine(name="pool", workers=2))
    for name in ("cluster_1", "cluster_2"):
        whole, again = model(found, name), model(run, name)
        assert all(np.array_equal(whole[key], again[key]) for key in whole)
    assert read_json(run / "result.json")["clusters"] == read_json(found / "result.json")["clusters"]


@pytest.mark.ray
def test_ray_gives_the_same_bits(found: Path, tmp_path: Path) -> None:
    run = simulate(study(TRAIN, clusters=TWO), populations(tmp_path / "data"), tmp_path / "run", Engine(name="ray"))
    for name in ("cluster_1", "cluster_2"):
        assert all(np.array_equal(model(found, name)[key], array) for key, array in model(run, name).items())


@pytest.mark.slow
def test_models_may_begin_apart_by_sums(tmp_path: Path) -> None:
    """Heads from all sites' sums fit nobody; whoever is alike begins together, and chooses from the second round on."""
    probe = {"name": "probe", "local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}}
    asked = study(probe, TRAIN, clusters=TWO | {"stage": "probe"})
    run = simulate(asked, populations(tmp_path / "data"), tmp_path / "run")
    chosen = [row["chosen"] for row in rows(run) if row["stage"] == "train"]
    assert chosen[0] == {}
    groups = {"east": "cluster_1", "north": "cluster_2", "south": "cluster_1", "west": "cluster_2"}
    assert chosen[1:] == [groups] * (ROUNDS - 1)
    assert read_json(run / "result.json")["clusters"]["likeness"]


@pytest.mark.parametrize("observes", [False, True])
def test_who_has_no_labelled_training_cases_takes_no_part(make_study, tmp_path: Path, observes: bool) -> None:
    asked = make_study(clusters=TWO)
    inputs, labels = images(24)
    targets = {"cls": labels if observes else torch.full_like(labels, -1)}
    guard = None if observes else PrivacyGuard(asked, OPEN, tmp_path, 24)
    site = Site(asked, cohort(inputs, targets), LocalModel(asked, CPU), tmp_path, guard)
    with pytest.raises(Refused) as refused:
        site.greet()
    assert refused.value.code is Code.NO_CLUSTER


def test_a_site_may_have_a_model_of_its_own_besides(tmp_path: Path) -> None:
    """What it trains for itself alone comes first, when there is nothing to choose, and is held against its choice."""
    alone = {"name": "alone", "local": sgd(STEPS, LR), "keep": "all", "personalise": "best"}
    run = simulate(study(alone, TRAIN, clusters=TWO), populations(tmp_path / "data"), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["status"] == "completed"
    assert [bool(row["chosen"]) for row in rows(run)] == [False, False, *[True] * ROUNDS, False]
    assert sorted(result["clusters"]["sites"].values()) == [["east", "south"], ["north", "west"]]


def test_a_model_that_nobody_took_in_the_end_is_not_there(tmp_path: Path) -> None:
    there = populations(tmp_path / "data")
    alike = replace(there, cohorts={name: there.cohorts[name] for name in ("east", "south")})
    run = simulate(study(TRAIN, clusters=TWO), alike, tmp_path / "run")
    result = read_json(run / "result.json")
    ((name, sites),) = result["clusters"]["sites"].items()
    assert sites == ["east", "south"]
    assert [path.name for path in (run / "models").iterdir() if path.is_dir()] == [name]
    assert any("no site has" in remark for remark in result["remarks"])


@pytest.mark.slow
def test_an_arm_of_a_comparison_can_choose(tmp_path: Path) -> None:
    question = Question(arms=(Arm(name="study"), Arm(name="ifca", set={"clusters": TWO})))
    todo = cells(study(TRAIN), question, populations(tmp_path / "data"), 1, "test")
    list(run_cells(todo, tmp_path / "cells", 1, 1))
    right = {}
    for cell in todo:
        answers = [own["cls"] for own in outcome(cell, tmp_path / "cells").found[MERGED].values()]
        right[cell.arm] = np.mean([np.mean(a.outputs.argmax(1) == a.targets) for a in answers])
    assert right["ifca"] > right["study"] + 0.2


def test_training_cases_decide_and_a_model_without_numbers_is_not_taken(tmp_path: Path) -> None:
    """Validation cases say the opposite; a hand-made instruction to a real site, since rounds cannot be told apart."""
    asked = study(TRAIN, clusters=TWO)
    inputs = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))
    labels = (inputs.sum(1) > 0).long()
    labels[16:] = 1 - labels[16:]
    state = initialise(asked).state()
    models = {name: dict(state) for name in ("cluster_1", "cluster_2")}
    for name, sign in (("cluster_1", -1.0), ("cluster_2", 1.0)):
        models[name]["heads.cls.weight"] = np.array([[-sign, -sign], [sign, sign]], np.float32)
    for number, expected in enumerate(("cluster_2", "cluster_1")):
        folder = tmp_path / str(number)
        folder.mkdir()
        together = Instruction(asked.digest, 2, 1, 1, True, None, side_by_side(models, state))
        answer = a_site(asked, cohort(inputs, {"cls": labels}, held_out=8), folder).visit(together)
        assert isinstance(answer, Update)
        assert answer.cluster == expected
        models["cluster_2"]["heads.cls.bias"] = np.full(2, np.nan, np.float32)


def test_statistics_of_norm_layers_that_lag_behind_do_not_decide(make_study: Any, tmp_path: Path) -> None:
    """A model that has learnt, and for one round has statistics of another time, is not left for one that errs."""
    local = {"steps": 40, "batch_size": 16, "lr": 0.01}
    one = make_study(method={"name": "fedavg", "rounds": 2, "local": local})
    asked = make_study(method={"name": "fedavg", "rounds": 2, "local": local}, clusters=TWO)
    inputs, labels = images(48)
    ours = cohort(inputs, {"cls": labels})
    for name in ("learns", "chooses"):
        (tmp_path / name).mkdir()
    first = Instruction(one.digest, 1, 0, 1, True, None, initialise(one).state())
    learnt = a_site(one, ours, tmp_path / "learns").visit(first)
    assert isinstance(learnt, Update)
    right = {**initialise(one).state(), **learnt.tensors}
    errs = {key: -array if key == "heads.cls.weight" else array for key, array in right.items()}
    lags = {key: array / 1000 if key.endswith("running_var") else array for key, array in right.items()}
    both = side_by_side({"cluster_1": lags, "cluster_2": errs}, right)
    together = Instruction(asked.digest, 1, 0, 1, True, None, both)
    answer = a_site(asked, ours, tmp_path / "chooses").visit(together)
    assert isinstance(answer, Update)
    assert answer.cluster == "cluster_1"


@pytest.mark.slow
@pytest.mark.parametrize("own", ["all", "heads"])
def test_nobody_leaves_what_learnt_on_frozen_features_for_what_never_trained(
    hospitals: Hospitals, make_study: Any, tmp_path: Path, own: str
) -> None:
    """Heads on a frozen backbone, then all entries: the features that decide are those that heads have learnt on.

    Whether a hospital keeps its features or computes them anew changes no choice, and no bit.
    """
    local = {"steps": 8, "batch_size": 8, "lr": 0.01}
    asked = make_study(method={"name": "lp_ft", "rounds": 4, "local": local}, clusters=TWO | {"own": own})
    models = []
    for keeps in (True, False):
        run = tmp_path / f"keeps-{keeps}"
        prepare(asked, hospitals, run)
        for path in run.glob("sites/*/site.json"):
            content = read_json(path)
            content["policy"]["keep_features"] = keeps
            write_json(path, content)
        resume(run)
        taken = [{*row["chosen"].values()} for row in rows(run)[:-1]]
        assert len(taken[0]) == 1  # the other model's heads are as random as they began
        assert taken == [taken[0]] * 4
        models.append(model(run, *taken[0]))
    assert all(np.array_equal(array, models[1][key]) for key, array in models[0].items())


def test_what_models_share_travels_once() -> None:
    models = {"cluster_1": {"a": 1, "b": 2}, "cluster_2": {"a": 1, "b": 3}}
    together = side_by_side(models, {"b"})
    assert sorted(together.values()) == [1, 2, 3]
    assert {name: chosen(together, name, ("a", "b"), {"b"}) for name in models} == models


@pytest.mark.parametrize("said", ["cluster_9", ""])
def test_a_site_that_names_no_model_that_is_there_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    visit = Site.visit

    def lying(self: Site, instruction: Instruction) -> Answer:
        answer = visit(self, instruction)
        lies = self.name == "west" and isinstance(answer, Update) and answer.cluster != ""
        return replace(answer, cluster=said) if lies else answer

    monkeypatch.setattr(Site, "visit", lying)
    run = simulate(study(TRAIN, clusters=TWO), populations(tmp_path / "data"), tmp_path / "run")
    assert {row["missing"]["west"] for row in rows(run) if row["stage"] == "train"} == {"garbage"}
    result = read_json(run / "result.json")
    assert sorted(result["clusters"]["sites"].values()) == [["east", "south"], ["north"]]


def test_a_study_and_its_review_say_what_a_choice_costs_and_tells(tmp_path: Path) -> None:
    """Before anything runs: bytes and passes for whoever asks, and for the hospital that a choice leaves it."""
    asked = study(TRAIN, clusters=TWO)
    said = str(fedgraft.explain(asked))
    assert "gets all 2 models in 4 rounds" in said
    assert "MB down in each in place of" in said
    prepare(asked, populations(tmp_path / "data"), tmp_path / "run")
    config, model_ = read_site(tmp_path / "run" / "sites" / "east"), make_model(asked)
    found = judge(config, asked, model_.tags(), 36)
    told = " ".join(in_words(review(asked, model_, config, found, approved=False) | {"data": None}))
    assert "which of 2 models fits its training cases best, 4 times" in told
