"""What is reported is what was saved: every figure of a run can be had again from its model, whatever the study.

Each study that ships runs once, short and over a few small hospitals. Its saved model is then loaded by what `predict`
uses, and asked about each site's test cases.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import logit

import fedgraft as fg
from conftest import Command
from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.folders import files
from fedgraft.client.data.cohorts.scan import name_below
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_site
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.files import CONFIGS, read_json
from fedgraft.common.metrics.sums.mask_metrics import mask_rows
from fedgraft.common.metrics.sums.task_metrics import sums_of
from fedgraft.common.models.weights import load_manifest
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.plan import Gradient
from fedgraft.common.study.study import Study, parse_study, read_study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation
from fedgraft.server.report import build_report
from fedgraft.simulations.engines.run import Hospitals, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of, make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario
from helpers.simulated import simulate

SHIPPED = sorted(path.stem for path in (CONFIGS / "studies").glob("*.yaml"))


def shortened(path: Path) -> Study:
    """The study as it stands, but for how long and on how many cases it works."""
    study, _ = read_study(path)
    data = study.model_dump(mode="json")
    for stage, asked in zip(data["plan"], study.plan, strict=True):
        if isinstance(asked.local, Gradient):
            stage["rounds"] = min(asked.rounds, 2)
            stage["local"] |= {"epochs": None, "steps": 2}
    data["split"] = {"train": 0.4, "val": 0.2, "test": 0.4}
    data["evaluate"]["every"] = 0
    return parse_study(data, path.name)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """Three small hospitals, of which one has no masks, and a public source."""
    phantom = {"modality": ["xr", "ct"], "patients": 30, "images_per_patient": [1, 1]}
    names = ("north", "south", "west", "public")
    sites = [{"name": name, "phantom": phantom, "mask_images": name != "west"} for name in names]
    scenario = Scenario.model_validate({"name": "small", "seed": 5, "sites": sites})
    return Hospitals(make_hospitals(scenario, tmp_path_factory.mktemp("small") / "hospitals"))


HEALTHY = {"none": "normal", "smooth": "pneumonia", "spiculated": "pneumonia", "ring": "pneumonia"}
"""What phantoms have, in the words of a study of real images."""


def hospitals(study: Study, phantoms: Hospitals, folder: Path) -> Hospitals:
    """Whom the study needs: tables, or phantoms with the source at each site or as a site of its own."""
    if study.name == "heart":
        return Hospitals({name: made_up_table(study, folder / f"{name}.csv", name) for name in ("a", "b", "c")})
    if study.input.kind == "table":
        return hospitals_of(load_scenario("breast_cancer"))
    mine = {site: spec for site, spec in phantoms.cohorts.items() if site != "public"}
    if study.name == "cxr":
        named = {site: spec.model_copy(update={"label_map": {"label": HEALTHY}}) for site, spec in mine.items()}
        return Hospitals(named)
    source = phantoms.cohorts["public"]
    if any(stage.where == "source" for stage in study.plan):
        return Hospitals(mine | {"public": source}, public_sources={"public"})
    return Hospitals(mine, sources=dict.fromkeys(mine, source))


def made_up_table(study: Study, path: Path, seed: str) -> CohortSpec:
    """A table with the study's columns and labels, of which nothing is true and some is missing."""
    assert isinstance(study.input, TableInput)
    rng = np.random.default_rng(ord(seed))
    task, columns = study.tasks[0], study.input
    rows = [["patient", task.name, *columns.numeric, *columns.categorical]]
    for number in range(60):
        values = [f"{value:.2f}" if rng.random() > 0.2 else "" for value in rng.normal(50, 9, len(columns.numeric))]
        rows.append(
            [
                f"{seed}{number}",
                str(rng.choice(task.names)),
                *values,
                *(str(rng.choice(words)) for words in columns.categorical.values()),
            ]
        )
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    return CohortSpec(kind="table", root=path, patient_column="patient")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_study_that_ships(
    name: str, phantoms: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "cxr":  # whose weights are unpacked where they are looked for
        monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    study = shortened(CONFIGS / "studies" / f"{name}.yaml")
    run = simulate(study, hospitals(study, phantoms, tmp_path), tmp_path / "run")
    result = read_json(run / "result.json")
    for site, cohort in cohorts_of(study, run, result).items():
        reader = LoadedModel(str(run), own_folder(run, site), everything=True)
        found = evaluate(reader.local_model, Loader(cohort, reader.input, reader.local_model.device), "test")
        for task, values in result["metrics"].items():
            assert_same(found[task].values(), values["sites"][site], (site, task))


def cohorts_of(study: Study, run: Path, result: dict[str, Any]) -> dict[str, Cohort]:
    """The sites whose figures the run reports, and what they hold."""
    sites = {site for task in result["metrics"].values() for site in task["sites"]}
    assert len(sites) >= 3
    return {site: simulated_cohort(study, run, site) for site in sorted(sites)}


def own_folder(run: Path, site: str) -> Path | None:
    """The site's folder, if it keeps anything of the study."""
    folder = run / "sites" / site
    return folder if any(folder.glob("local_state/*")) else None


def assert_same(again: Mapping[str, Any], reported: Mapping[str, Any], what: object, but: tuple[str, ...] = ()) -> None:
    assert again.keys() == reported.keys()
    for metric, value in reported.items():
        if metric not in but:
            assert again[metric] == (None if value is None else pytest.approx(value, abs=1e-6)), (what, metric)


SIGNS = {"name": "signs", "kind": "multilabel", "labels": ["any", "hollow"]}
WORDS = {
    "signs.any": {"none": "0", "smooth": "1", "spiculated": "1", "ring": "1"},
    "signs.hollow": {"none": "0", "smooth": "0", "spiculated": "0", "ring": "1"},
}
KEEPING = ("fedavg", "fedbn", "fedper", "local_finetuning")
"""Methods after which a site has nothing of its own, its norm layers, its heads, or a whole model."""


@pytest.fixture(scope="module")
def all_kinds(phantoms: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Study, Path]]:
    """A run of a method with a task of every kind."""
    columns = dict.fromkeys(WORDS, "diagnosis")
    cohorts = {
        site: spec.model_copy(update={"label_columns": columns, "label_map": WORDS})
        for site, spec in phantoms.cohorts.items()
        if site != "public"
    }
    work = {"rounds": 1, "local": {"steps": 2, "batch_size": 8}}

    def run(method: str) -> tuple[Study, Path]:
        study, _ = read_study(CONFIGS / "studies" / "multi_task.yaml")
        data = study.model_dump(mode="json", exclude={"plan"}) | {"method": {"name": method, **work}}
        data["tasks"].append(SIGNS)
        data["evaluate"]["every"] = 0
        study = parse_study(data, method)
        return study, simulate(study, Hospitals(cohorts), tmp_path_factory.mktemp(method) / "run")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", KEEPING)
def test_the_table_of_predict_has_the_figures_of_the_run(
    method: str, all_kinds: Callable[[str], tuple[Study, Path]], command: Command
) -> None:
    """Of tasks of every kind, from the files that the command writes and nothing else, with what each site keeps."""
    study, run = all_kinds(method)
    result = read_json(run / "result.json")
    for site, cohort in cohorts_of(study, run, result).items():
        root = read_site(run / "sites" / site).cohort.root
        own = ("--site", run / "sites" / site) if method != "fedavg" else ()
        code, _, err = command("predict", run, root, "--out", f"said-{site}", *own)
        assert code == 0, err
        with Path(f"said-{site}", "predictions.csv").open(newline="") as file:
            rows = {row["file"]: row for row in csv.DictReader(file)}
        there = files(root)
        cases = cohort.splits["test"].tolist()
        said = [rows[name_below(there[cohort.origins[case]], root)] for case in cases]
        for task in study.tasks:
            target = cohort.targets[task.name][cohort.splits["test"]].numpy()
            spacings = np.array(cohort.spacings)[cases]
            found = sums_of(task, *answered(task, said, target, spacings, Path(f"said-{site}"))).values()
            assert_as_in_python(task, rows, fg.load_run(run).model(site if own else None).predict(root))
            but = ("loss",) if isinstance(task, Segmentation) else ()  # a mask says nothing of how sure it is
            assert_same(found, result["metrics"][task.name]["sites"][site], (site, task.name), but)


def assert_as_in_python(task: AnyTask, rows: dict[str, dict[str, str]], said: fg.Predictions) -> None:
    """The same call from Python says the same of the same files."""
    own = said.answers[task.name]
    for at, name in enumerate(said.names):
        if isinstance(task, Regression):
            assert float(rows[name][f"{task.name} ({task.unit})"]) == pytest.approx(own[at], abs=1e-6)
        elif not isinstance(task, Segmentation):
            shares = [float(rows[name][f"{task.name}:{one}"]) for one in task.names]
            assert own[at] == pytest.approx(shares, abs=1e-6)


def answered(
    task: AnyTask, rows: list[dict[str, str]], target: np.ndarray, spacings: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Answers as metrics take them, from the rows of a table."""
    if isinstance(task, Segmentation):
        masks = np.stack([np.asarray(Image.open(folder / row[task.name])) for row in rows])
        assert set(np.unique(masks)) <= {0, 255}
        return mask_rows(masks / 255 - 0.5, target, spacings), np.minimum(target[:, 0, 0], 0)
    if isinstance(task, Regression):
        return np.array([float(row[f"{task.name} ({task.unit})"]) for row in rows]), target
    shares = np.array([[float(row[f"{task.name}:{name}"]) for name in task.names] for row in rows])
    return (logit(shares) if isinstance(task, Multilabel) else np.log(shares)), target


def test_the_table_of_predict_has_the_figures_of_a_run_over_tables(command: Command, tmp_path: Path) -> None:
    study = shortened(CONFIGS / "studies" / "breast_cancer.yaml")
    run = simulate(study, hospitals_of(load_scenario("breast_cancer")), tmp_path / "run")
    result = read_json(run / "result.json")
    for site, cohort in cohorts_of(study, run, result).items():
        root = read_site(run / "sites" / site).cohort.root
        code, _, err = command("predict", run, root, "--out", f"said-{site}")
        assert code == 0, err
        with Path(f"said-{site}", "predictions.csv").open(newline="") as file:
            said = list(csv.DictReader(file))
        assert [int(row["line"]) for row in said] == list(range(2, len(said) + 2))
        some = [said[case] for case in cohort.splits["test"].tolist()]
        target = cohort.targets["diagnosis"][cohort.splits["test"]].numpy()
        found = sums_of(study.tasks[0], *answered(study.tasks[0], some, target, np.zeros(0), tmp_path)).values()
        assert_same(found, result["metrics"]["diagnosis"]["sites"][site], site)
    code, _, err = command("predict", run, root, "--out", "heat", "--heat", "cam")
    assert code == 2
    assert "this model is for tables" in err


@pytest.mark.parametrize("hidden", [False, True])
def test_the_operating_point_is_chosen_on_validation_cases_kept_and_used(
    hidden: bool, command: Command, tmp_path: Path
) -> None:
    """Held against the cases themselves: validation cases for the choice, test cases for what it gives."""
    study = shortened(CONFIGS / "studies" / "breast_cancer.yaml")
    data = study.model_dump(mode="json") | {"secure_aggregation": hidden}
    data["evaluate"] = {"every": 0, "operating_point": {"sensitivity": 0.9}}
    study = parse_study(data, "point")
    run = simulate(study, hospitals_of(load_scenario("breast_cancer")), tmp_path / "run")
    result = read_json(run / "result.json")
    (kept,) = load_manifest(str(run)).operating_points["diagnosis"]
    reader = LoadedModel(str(run), everything=True)
    names = read_json(run / "sites" / "index.json")
    cohorts = {site: simulated_cohort(study, run, site) for site in names}
    odds, truth = {}, {}
    for site, cohort in cohorts.items():
        odds[site] = logit(reader.answers(Loader(cohort, reader.input, reader.local_model.device))["diagnosis"][:, 1])
        truth[site] = cohort.targets["diagnosis"].numpy() == 1
    near = 0.02 if hidden else 1e-6  # masked scores lie on a coarser grid
    val = {site: cohort.splits["val"].numpy() for site, cohort in cohorts.items()}
    score = np.concatenate([odds[site][val[site]] for site in names])
    yes = np.concatenate([truth[site][val[site]] for site in names])
    assert (kept.name, kept.rule, kept.positives, kept.negatives) == (
        "malignant",
        "a sensitivity of 0.9",
        yes.sum(),
        (~yes).sum(),
    )
    assert kept.sensitivity == pytest.approx((score[yes] >= kept.log_odds).mean(), abs=near)
    assert kept.sensitivity >= 0.9 - near
    assert (score[yes] >= kept.log_odds + 0.02).mean() < 0.9 + near
    (shown,) = result["operating_points"]["diagnosis"]
    assert set(shown["sites"]) == (set() if hidden else set(names))
    test = {site: cohort.splits["test"].numpy() for site, cohort in cohorts.items()}
    for site, own in shown["sites"].items():
        said, true = odds[site][test[site]] >= kept.log_odds, truth[site][test[site]]
        assert (own["found"], own["missed"]) == ((said & true).sum(), (~said & true).sum())
        assert (own["alarms"], own["rejected"]) == ((said & ~true).sum(), (~said & ~true).sum())
    assert shown["pooled"]["found"] + shown["pooled"]["missed"] == sum(truth[s][test[s]].sum() for s in names)
    root = read_site(run / "sites" / names[0]).cohort.root
    code, out, err = command("predict", run, root, "--out", "said")
    assert code == 0, err
    assert f"malignant from a probability of {kept.probability:.3g} on, by a sensitivity of 0.9" in " ".join(
        out.split()
    )
    with Path("said/predictions.csv").open(newline="") as file:
        told = [row["diagnosis"] == "malignant" for row in csv.DictReader(file)]
    assert told == (odds[names[0]] >= kept.log_odds - 1e-9).tolist()
    assert told != (odds[names[0]] > 0).tolist(), "at a half other cases would be positive"
    page = build_report(run).read_text()
    assert "At the operating point, on test cases" in page
    assert "chosen before the test cases were looked at: malignant by a sensitivity of 0.9" in page


@pytest.mark.parametrize("hidden", [False, True])
def test_the_sets_that_predict_names_have_the_runs_own_coverage_and_size(
    hidden: bool, command: Command, tmp_path: Path
) -> None:
    """Counted from the table's rows and the test cases' truth, in which nothing of the run's sums takes part."""
    data = shortened(CONFIGS / "studies" / "breast_cancer.yaml").model_dump(mode="json")
    data["evaluate"] = {"every": 0, "conformal": 0.8}
    study = parse_study(data | {"secure_aggregation": hidden}, "sets")
    run = simulate(study, hospitals_of(load_scenario("breast_cancer")), tmp_path / "run")
    shown = read_json(run / "result.json")["conformal"]["diagnosis"][""]
    site, *others = read_json(run / "sites" / "index.json")
    named = "all" if hidden else site
    count = hit = size = 0
    for one in [site, *others] if hidden else [site]:
        cohort = simulated_cohort(study, run, one)
        root = read_site(run / "sites" / one).cohort.root
        code, out, err = command("predict", run, root, "--out", f"said-{one}", "--sets", named)
        assert code == 0, err
        assert f"in 80% of new cases of {named}" in " ".join(out.split())
        with Path(f"said-{one}", "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for at in cohort.splits["test"].tolist():
            inside = [name for name in rows[at]["diagnosis set"].split("; ") if name]
            true = study.tasks[0].names[int(cohort.targets["diagnosis"][at])]
            count, hit, size = count + 1, hit + (true in inside), size + len(inside)
    test = shown["" if hidden else site]["test"]
    near = 2 / count if hidden else 1e-9  # masked scores lie on a coarser grid
    assert test["n"] == count
    assert hit / count == pytest.approx(test["coverage"], abs=near)
    assert size / count == pytest.approx(test["size"], abs=near)
    code, _, err = command("predict", run, root, "--out", "other", "--sets", "nowhere")
    assert code == 2
    assert named in err
    (run / "result.json").unlink()
    code, _, err = command("predict", run, root, "--out", "none", "--sets", named)
    assert code == 2
    assert "has no conformal sets" in " ".join(err.split())
