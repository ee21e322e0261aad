"""A comparison run for real: every arm on the same patients, resumable, and what it says is what the runs say."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import Command
from fedgraft.common.base.disk import oldest_first
from fedgraft.common.base.errors import InputError, RunError, StudyError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.models.initialise import initialise
from fedgraft.common.protocol.routing import is_private
from fedgraft.common.study.schedule import schedule
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.bootstrap import ONE_SEED
from fedgraft.simulations.compare.measures.answers import MERGED
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.running import progress
from fedgraft.simulations.compare.running.cells import (
    Cell,
    cells,
    outcome,
    run,
)
from fedgraft.simulations.compare.running.models import ModelJob, carry_out, prepared
from fedgraft.simulations.compare.running.progress import as_they_end, time_left
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.engines.run import OPEN, Hospitals, simulated_cohort
from helpers.simulated import simulate
from helpers.work import MakeStudy

ARMS = ("study", "local", "pooled", "new_site")


@pytest.fixture(scope="module")
def asked(make_study: MakeStudy, hospitals: Hospitals) -> list[Cell]:
    question = Question(arms=tuple(BUILT_IN[name] for name in ARMS))
    study = make_study(evaluate={"every": 0})
    return cells(study, question, hospitals, 1, "test")


@pytest.fixture(scope="module")
def done(asked: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    assert [(done, of) for _, done, of in run(asked, out, 2, 1)] == [(n, 4) for n in range(1, 5)]
    return out


def accuracy(answers) -> float:
    return float((answers.outputs.argmax(axis=1) == answers.targets).mean())


def test_the_study_s_arm_is_the_study_s_run(
    asked: list[Cell], done: Path, hospitals: Hospitals, tmp_path: Path
) -> None:
    """With norm statistics that stay at the sites: what they keep counts."""
    job = asked[0].job
    made = simulate(job.study, Hospitals(job.cohorts), tmp_path / "run")
    result, ended = read_json(made / "result.json"), outcome(asked[0], done)
    assert ended.model == read_json(made / "model.json")["sha256"], "not the same bits"
    found = ended.found[MERGED]
    for site, values in result["metrics"]["cls"]["sites"].items():
        assert len(found[site]["cls"].targets) == values["n"]
        assert accuracy(found[site]["cls"]) == pytest.approx(values["accuracy"])


@pytest.mark.slow
def test_hospitals_have_their_rules_and_their_faults_in_a_comparison_too(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path
) -> None:
    """Else the arm `study` would be another run than `simulate` of the same file, which has them."""
    some = {site: hospitals.cohorts[site] for site in ("east", "north", "west")}
    closed = OPEN.model_copy(update={"min_patients": 1000})
    crash = {"east": Fault(kind="nan", rounds=(1,))}
    there = Hospitals(some, crash, policies={"north": closed}, synthetic=False)
    study = make_study(
        rounds={"min_sites": 1, "quorum": 0.3},
        evaluate={"every": 0},
        method={"name": "fedavg", "rounds": 2, "local": {"steps": 2}},
    )
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["local"]))
    cell = next(cell for cell in cells(study, question, there, 1, "test") if cell.arm == "study")
    list(run([cell], tmp_path, 1, 1))
    ended, made = outcome(cell, tmp_path), simulate(study, there, tmp_path / "run")
    assert ended.model == read_json(made / "model.json")["sha256"]
    assert ended.troubles == (read_json(made / "result.json")["headline"],)
    own = read_json(tmp_path / cell.digest[:16] / "result.json")
    assert own["synthetic"] is read_json(made / "result.json")["synthetic"] is False
    bare = simulate(study, Hospitals(some), tmp_path / "bare")
    assert ended.model != read_json(bare / "model.json")["sha256"]


def test_alone_is_a_federation_of_one(asked: list[Cell], done: Path, hospitals: Hospitals, tmp_path: Path) -> None:
    job = asked[1].job
    found = outcome(asked[1], done).found
    assert set(found) == set(hospitals.cohorts)
    for site in ("east", "north"):
        alone, _ = carry_out(ModelJob(job.study, "together", {site: job.cohorts[site]}), tmp_path / site)
        one, other = alone[MERGED][site]["cls"], found[site][site]["cls"]
        assert one.outputs.tobytes() == other.outputs.tobytes()
        assert one.patients.tolist() == other.patients.tolist()
    assert set(found["east"]) == set(hospitals.cohorts)  # its model is tried at all sites


def test_all_arms_are_tested_on_the_same_cases(asked: list[Cell], done: Path) -> None:
    targets = {}
    for cell in asked:
        found = outcome(cell, done).found
        for site in ("east", "north", "south", "west"):
            own = found.get(site, found.get(MERGED, {}))[site]["cls"]
            targets.setdefault(site, []).append((own.targets.tolist(), own.patients.tolist()))
    for seen in targets.values():
        assert len(seen) == 4
        assert all(one == seen[0] for one in seen)


def test_a_new_site_has_not_been_trained_on(asked: list[Cell], done: Path, tmp_path: Path) -> None:
    """Its model is that of a federation without it, byte for byte."""
    job = asked[3].job
    others = {site: spec for site, spec in job.cohorts.items() if site != "west"}
    without, _ = carry_out(ModelJob(job.study, "together", others), tmp_path / "run")
    assert without[MERGED].keys() == others.keys()
    assert outcome(asked[3], done).found.keys() == job.cohorts.keys()
    assert list(outcome(asked[3], done).found["west"]) == ["west"]


def test_pooled_training_saw_all_sites_and_no_test_case(asked: list[Cell], done: Path) -> None:
    found = outcome(asked[2], done).found
    assert list(found) == [MERGED]
    assert len(found[MERGED]) == 4


@pytest.mark.slow
def test_a_public_source_teaches_whole_and_is_never_tested(make_study, hospitals, tmp_path: Path) -> None:
    """However few cases the hospitals may train on."""
    question = Question(arms=(BUILT_IN["joint"], BUILT_IN["fedavg"], BUILT_IN["local"]), against="fedavg", cases=(12,))
    sites = Hospitals({site: hospitals.cohorts[site] for site in ("east", "south")}, public_sources={"south"})
    asked = cells(make_study(evaluate={"every": 0}), question, sites, 1, "test")
    assert {cell.job.cohorts["south"].train_cases for cell in asked} == {None}
    assert {cell.job.cohorts["east"].train_cases for cell in asked} == {12}
    assert len(list(run(asked, tmp_path, 1, 1))) == 3
    found = {cell.arm: outcome(cell, tmp_path) for cell in asked}
    assert {arm: (one.troubles, next(iter(one.found.values())).keys()) for arm, one in found.items()} == {
        arm: ((), {"east"}) for arm in ("joint", "fedavg", "local")
    }
    logits = {arm: one.found[MERGED]["east"]["cls"].outputs for arm, one in found.items() if arm != "local"}
    assert not np.array_equal(logits["joint"], logits["fedavg"]), "the source had a say"
    with pytest.raises(InputError, match="no site is called south"):
        cells(make_study(), question.model_copy(update={"measure": ("south",)}), sites, 1, "test")


@pytest.mark.slow
def test_a_source_that_lies_at_a_site_teaches_there(make_study, hospitals, tmp_path: Path) -> None:
    """Where the site's own labels are hidden, all that it can learn comes from the source beside it."""
    work = {"name": "dann", "rounds": 1, "local": {"steps": 3, "batch_size": 8}}
    study = make_study(method=work, evaluate={"every": 0})
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["scratch"]), hide=("east",))
    mine, beside = {"east": hospitals.cohorts["east"]}, {"east": hospitals.cohorts["south"]}
    cell, bare = (cells(study, question, Hospitals(mine, sources=sources), 1, "test")[0] for sources in (beside, {}))
    assert cell.digest != bare.digest
    with pytest.raises(RunError, match="1 of 1 runs failed"):
        list(run([bare], tmp_path / "bare", 1, 1))
    assert len(list(run([cell], tmp_path / "out", 1, 1))) == 1
    found = outcome(cell, tmp_path / "out").found[MERGED]["east"]["cls"]
    made = simulate(study, Hospitals(cell.job.cohorts, sources=beside), tmp_path / "run")
    said = read_json(made / "result.json")["metrics"]["cls"]["sites"]["east"]
    assert (len(found.targets), accuracy(found)) == (said["n"], pytest.approx(said["accuracy"]))
    begun, ended = initialise(study).state(), load_tensors(made / "model.safetensors")
    assert not np.array_equal(begun["heads.cls.weight"], ended["heads.cls.weight"]), "the source was learnt from"


def test_it_is_said_what_is_at_work_while_nothing_ends(asked: list[Cell], tmp_path: Path) -> None:
    cell, lines = asked[0], []
    runs = tmp_path / cell.digest[:16] / "runs" / "all"
    runs.mkdir(parents=True)
    (runs / "history.jsonl").write_text("{}\n{}\n")
    never, ends = Future(), Future()
    never.set_running_or_notify_cancel()
    futures = {never: cell, ends: asked[1]}

    def tell(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            ends.set_result(None)
            never.set_result(None)

    assert set(as_they_end(futures, tmp_path, tell, beat_s=0.02)) == {never, ends}
    total = sum(1 for _ in schedule(cell.job.study))
    assert lines == [f"at work: study: study, seed {cell.seed} (exchange 2 of {total})"] * 2
    assert time_left(3, 9, time.monotonic() - 40, already=1) == ", about 2 min left"
    assert time_left(1, 9, time.monotonic(), already=1) == time_left(9, 9, 0.0, already=0) == ""
    assert (
        time_left(4, 99, time.monotonic() - 40, already=1, workers=4) == ""
    )  # four began together: one has yet to end
    assert time_left(5, 25, time.monotonic() - 40, already=1, workers=4) == ", about 3 min left"


def test_a_cell_that_ends_while_it_is_looked_at_takes_nothing_down(
    asked: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process removes the runs between a look at their names and one into them."""
    history = tmp_path / asked[0].digest[:16] / "runs" / "all" / "history.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text("{}\n")
    ends: Future[None] = Future()

    def found(paths: Iterable[Path]) -> list[Path]:
        there = oldest_first(paths)
        shutil.rmtree(history.parents[1])
        return there

    monkeypatch.setattr(progress, "oldest_first", found)
    lines = []
    assert [*as_they_end({ends: asked[0]}, tmp_path, lambda line: [lines.append(line), ends.set_result(None)], 0.02)]
    assert lines == [f"at work: study: study, seed {asked[0].seed}"]


def test_what_is_done_is_not_done_again(asked: list[Cell], done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    assert list(run(asked, done, 2, 1)) == []
    assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}


def test_a_run_that_was_cut_off_goes_on(asked: list[Cell], done: Path, tmp_path: Path) -> None:
    """The cell's run is there, half done, as a kill would leave it; its outcome is the same."""
    from fedgraft.simulations.engines.run import prepare

    cell = asked[0]
    half = tmp_path / cell.digest[:16] / "runs" / "all"
    prepare(cell.job.study, Hospitals(cell.job.cohorts), half)
    list(run([cell], tmp_path, 1, 1))
    again, first = outcome(cell, tmp_path).found, outcome(cell, done).found
    for site, tasks in first[MERGED].items():
        assert np.array_equal(tasks["cls"].outputs, again[MERGED][site]["cls"].outputs)


@pytest.fixture
def files(hospitals: Hospitals, tmp_path: Path) -> Path:
    sites = [{"name": name, "cohort": spec.model_dump(mode="json")} for name, spec in hospitals.cohorts.items()]
    (tmp_path / "sites.yaml").write_text(yaml.safe_dump({"name": "four", "sites": sites}))
    study = {
        "name": "bars",
        "scenario": "sites.yaml",
        "tasks": [{"name": "cls", "classes": ["left", "right", "middle"]}],
        "input": {"kind": "image", "size": 32},
        "split": {"train": 0.5, "val": 0.0, "test": 0.5},
        "evaluate": {"every": 0, "floor": 1},
        "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 2, "batch_size": 8, "lr": 0.003}},
        "compare": {
            "seeds": 2,
            "quick": 1,
            "questions": [
                {
                    "name": "labels",
                    "asks": "Do <labels> matter?",
                    "arms": ["study", "shuffled"],
                    "metric": "accuracy",
                    "cases": [8, 24],
                    "expect": [{"arm": "study", "over": "shuffled", "cases": 24, "at_least": 0.9}],
                },
                {"name": "folds", "arms": ["study", "local"], "folds": 2, "seeds": 1, "measure": ["east", "west"]},
            ],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path / "study.yaml"


@pytest.mark.slow
def test_the_command_says_what_the_files_say(command: Command, files: Path) -> None:
    code, out, err = command("compare", files, "--quick", "--out", "c", "--json")
    assert code == 0, err
    result = json.loads(out)
    labels, folds = result["questions"]
    assert [(row["arm"], row["cases"]) for row in labels["rows"]] == [
        ("study", 8),
        ("shuffled", 8),
        ("study", 24),
        ("shuffled", 24),
    ]
    assert labels["replicates"] == 1
    assert labels["scenario"], "the page says whose hospitals these are"
    assert folds["replicates"] == 2
    assert set(folds["rows"][0]["sites"]) == {"east", "west"}
    (expected,) = labels["expectations"]
    assert not expected["reached"]  # nobody gains .9
    assert {row["difference"]["verdict"] for row in labels["rows"] if row["difference"]} == {ONE_SEED}
    assert folds["seeds"] == 1, "the folds of one seed are one seed"
    assert [row["difference"]["verdict"] for row in folds["rows"] if row["difference"]] == [ONE_SEED]
    assert [(arm["arm"], arm["differs"]) for arm in labels["arms"]] == [
        ("study", []),
        ("shuffled", ["labels: shuffled (not known)"]),
    ]
    assert labels["arms"][1]["plan"][0]["local"]["lr"] == 0.003
    with Path("c/compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in labels["rows"]:
        own = [r for r in rows if (r["question"], r["arm"], r["cases"]) == ("labels", row["arm"], str(row["cases"]))]
        assert row["macro"]["value"] == pytest.approx(np.mean([float(r["accuracy"]) for r in own]))
    tested = [int(row["n"]) for row in rows if row["question"] == "folds" and row["arm"] == "study"]
    assert sum(tested) == 48 + 36  # each patient of east and west once
    page = Path("c/compare.html").read_text(encoding="utf-8")
    assert "Do &lt;labels&gt; matter?" in page
    assert "labels: shuffled (not known)" in page
    assert page.count("its whole model and plan") == 4
    assert "<labels>" not in page
    assert "//" not in page.replace("http://www.w3.org", "")
    code, out, _ = command("compare", files, "--quick", "--out", "c")
    assert code == 0
    assert "MISSED: study - shuffled at 24 cases" in out
    assert "shuffled, 24 cases" in out, "the name of an arm is not cut"
    assert ", on one seed alone" in " ".join(out.split())
    assert "missed on one seed alone" in page
    assert "1/6" not in out  # nothing was run again


@pytest.mark.slow
def test_it_is_said_before_and_after_whose_losses_arms_have(command: Command, files: Path) -> None:
    study = yaml.safe_load(files.read_text())
    losses = [{"kind": "supervised"}, {"kind": "proximal", "to": "round", "weight": 3.0}]
    study["method"] |= {"rounds": 1, "local": {"steps": 1, "batch_size": 4, "lr": 0.003, "losses": losses}}
    arms = {"arms": ["fedavg", "fedbn"], "against": "fedavg", "metric": "accuracy"}
    files.write_text(yaml.safe_dump(study | {"compare": {"questions": [arms]}}))
    code, out, err = command("compare", files, "--seeds", "1", "--out", "d")
    assert code == 0, err
    line = "Without the study's loss (proximal weight 3.0"
    before, _, after = " ".join(out.split()).partition(" runs, ")
    assert (line in before, line in after) == (True, True)
    assert "(proximal weight 3.0" in Path("d/compare.html").read_text(encoding="utf-8")


def test_what_cannot_be_asked_is_refused_before_anything_runs(command: Command, files: Path) -> None:
    for words, fault in (
        (("--arm", "study", "--arm", "fedwhat"), "no arm is called 'fedwhat'"),
        (("--only", "nothing"), "No question is called nothing"),
        (("--arm", "study", "--arm", "source_only"), "needs `weights`"),
        (("--arm", "study", "--arm", "scratch", "--set", "plan.0.rounds=0"), "plan"),
    ):
        code, _, err = command("compare", files, "--out", "none", *words)
        assert code == 2
        assert fault in " ".join(err.split())
        assert not Path("none").exists()


def test_sites_that_do_not_exist_are_named(make_study: MakeStudy, hospitals: Hospitals) -> None:
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["local"]), measure=("nowhere",))
    with pytest.raises(InputError, match="no site is called nowhere"):
        cells(make_study(), question, hospitals, 1, "test")


def test_a_source_without_a_head_cannot_be_asked(make_study: MakeStudy, hospitals: Hospitals) -> None:
    study = make_study(model={"backbone": "slim_resnet", "weights": "slim-ctmr-synthetic"})
    question = Question(arms=(BUILT_IN["study"], BUILT_IN["source_only"]))
    with pytest.raises(StudyError, match="have no head for task 'cls' with its classes"):
        cells(study, question, hospitals, 1, "test")


@pytest.fixture(scope="module")
def put_together(make_study: MakeStudy, hospitals: Hospitals) -> list[Cell]:
    """Two arms, a stack of their models and a student of them."""
    steps = {"steps": 4, "batch_size": 8, "lr": 0.003}
    study = make_study(evaluate={"every": 0}, method={"name": "fedavg", "rounds": 1, "local": steps})
    arms = [
        {"name": "stacked", "method": "stacked_ensemble", "base_models": ["fedavg", "ridge_probe"]},
        "fedavg",
        "ridge_probe",
        {"name": "student", "method": "distill", "base_models": ["fedavg"]},
    ]
    question = Question.model_validate({"arms": arms, "against": "fedavg", "folds": 2})
    return cells(study, question, hospitals, 2, "test")


def test_members_are_the_arms_of_the_same_seed_and_fold(put_together: list[Cell]) -> None:
    assert [cell.arm for cell in put_together[:5]] == ["stacked"] * 4 + ["fedavg"]
    for cell in put_together:
        wanted = {"stacked": ["fedavg", "ridge_probe"], "student": ["fedavg"]}.get(cell.arm, [])
        assert [(one.arm, one.seed, one.fold) for one in cell.base_models] == [
            (n, cell.seed, cell.fold) for n in wanted
        ]
    assert len({cell.digest for cell in put_together}) == len(put_together)


@pytest.mark.slow
def test_an_ensemble_is_made_of_its_arms_models(put_together: list[Cell], tmp_path: Path) -> None:
    """Its members are to the last bit what their own arms ended with; a kept model that is gone is made anew."""
    some = [cell for cell in put_together if cell.replicate == put_together[0].replicate]
    order = [cell.arm for cell, _, _ in run(some, tmp_path, 1, 1)]
    assert set(order[:2]) == {"fedavg", "ridge_probe"}
    assert set(order[2:]) == {"stacked", "student"}
    stacked, fedavg = some[0], some[1]
    kept = tmp_path / fedavg.digest[:16] / "model"
    again, troubles = carry_out(replace(stacked.job, study=placed(stacked, tmp_path)), tmp_path / "again")
    assert not troubles
    state = load_tensors(tmp_path / "again" / "all" / "model.safetensors")
    for key, array in load_tensors(kept / "model.safetensors").items():
        assert state[f"backbone.base_models.0.{key}"].tobytes() == array.tobytes()
    for site, tasks in outcome(stacked, tmp_path).found[MERGED].items():
        assert again[MERGED][site]["cls"].outputs.tobytes() == tasks["cls"].outputs.tobytes()
    shutil.rmtree(kept)
    assert [cell.arm for cell, _, _ in run(some, tmp_path, 1, 1)] == ["fedavg"]
    assert (kept / "model.json").is_file()


def placed(cell: Cell, out: Path) -> Study:
    """The cell's study, with its base models' folders in it."""
    folders = {one.arm: str(out / one.digest[:16] / "model") for one in cell.base_models}
    model = cell.job.study.model
    base_models = [one.model_copy(update={"weights": folders[str(one.weights)[4:]]}) for one in model.base_models]
    placed = cell.job.study.model_copy(update={"model": model.model_copy(update={"base_models": tuple(base_models)})})
    return Study.model_validate(placed.model_dump())  # a copy would keep the digest of what it was copied from


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["fedavg", {"name": "x", "method": "stacked_ensemble"}], "stacked_ensemble needs `base_models`"),
        (
            ["fedavg", {"name": "x", "method": "distill", "base_models": ["nobody"]}],
            "its base model nobody is none of the arms",
        ),
        (["local", {"name": "x", "method": "distill", "base_models": ["local"]}], "that sites train together"),
        (
            ["fedavg", {"name": "x", "who": "alone", "method": "distill", "base_models": ["fedavg"]}],
            "only an arm that is carried out together",
        ),
    ],
)
def test_ensembles_of_what_is_no_model_are_refused(arms, says) -> None:
    with pytest.raises(ValueError, match=says):
        Question.model_validate({"arms": arms, "against": "x"})


def private_question(**changes: object) -> Question:
    """A study without noise against one with."""
    local = {"kind": "gradient", "train": "heads", "steps": 1, "fixed_norm_stats": True}
    terms = {"noise_multiplier": 1.0, "sample_rate": 0.5}
    stage = {"name": "heads", "local": local | {"private": terms}, "share": "heads", "aggregate": {"kind": "mean"}}
    arms = [BUILT_IN["study"], {"name": "private", "set": {"plan": [stage]}}]
    return Question.model_validate({"name": "price", "arms": arms} | changes)


def test_one_private_arm_has_all_arms_tested_on_patients_who_stand_alone(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path
) -> None:
    jobs = [cell.job for cell in cells(make_study(), private_question(folds=3), hospitals, 1, "test")]
    tested: dict[str, list[set[str]]] = {"study": [], "private": []}
    for at, job in enumerate(jobs):
        home = prepared(job, job.cohorts, tmp_path / str(at))
        cohort = simulated_cohort(job.study, home, "east")
        assert cohort.split_rule == "independent"
        name = "private" if is_private(job.study) else "study"
        tested[name].append({cohort.patients[case] for case in cohort.splits["test"].tolist()})
    assert tested["study"] == tested["private"]
    assert sum(map(len, tested["study"])) == len(set.union(*tested["study"])) == 48


def test_a_private_arm_refuses_what_ties_patients_together(make_study: MakeStudy, hospitals: Hospitals) -> None:
    with pytest.raises(InputError, match="the first so many patients"):
        cells(make_study(), private_question(cases=[12]), hospitals, 1, "test")
    arms = [*private_question().arms, BUILT_IN["shuffled"]]
    with pytest.raises(InputError, match="labels are those of other patients"):
        cells(make_study(), private_question(arms=arms), hospitals, 1, "test")
