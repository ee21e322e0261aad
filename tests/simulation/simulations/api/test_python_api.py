"""`import fedgraft as fg` as a person uses it: a study, hospitals, a run, its figures, its model, a comparison."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedgraft as fg
from conftest import Command
from fedgraft.client.data.cohorts.folders import files
from fedgraft.client.data.cohorts.scan import name_below
from fedgraft.client.enrolment.config import read_site
from fedgraft.simulations.engines.run import Hospitals, simulated_cohort
from helpers.work import MakeStudy

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def scenario(hospitals: Hospitals) -> dict[str, Any]:
    """The hospitals as plain values, as somebody writes them in a notebook."""
    sites = [
        {"name": name, "cohort": spec.model_dump(mode="json", exclude_defaults=True)}
        for name, spec in hospitals.cohorts.items()
    ]
    return {"name": "four", "sites": sites}


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> fg.Study:
    local = {"steps": 2, "batch_size": 8, "lr": 0.001}
    return make_study(method={"name": "fedbn", "rounds": 2, "local": local})


@pytest.fixture(scope="module")
def run(study: fg.Study, scenario: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> fg.Run:
    return fg.simulate(study, scenario, out=tmp_path_factory.mktemp("api") / "run")


def test_a_run_is_a_value(run: fg.Run, study: fg.Study) -> None:
    assert (run.status, run.study.digest, run.headline) == ("completed", study.digest, "4 of 4 sites")
    assert run.metrics == json.loads((run.path / "result.json").read_text())["metrics"]
    assert sorted(run.sites) == ["east", "north", "south", "west"]
    assert run.report.is_file()
    assert [row["stage"] for row in run.history] == [study.plan[0].name, study.plan[0].name, "evaluate"]
    assert run.history[-1]["split"] == "test"
    assert "completed" in repr(run)
    again = fg.load_run(str(run.path))
    assert again.result == run.result


@pytest.mark.slow
def test_the_command_gives_the_same_bits(
    run: fg.Run, study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path, command: Command
) -> None:
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    (tmp_path / "four.yaml").write_text(json.dumps(scenario))
    out = tmp_path / "run"
    code, _, err = command("simulate", tmp_path / "study.yaml", "--scenario", tmp_path / "four.yaml", "--out", out)
    assert code == 0, err
    assert (out / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


def test_the_model_says_of_files_and_arrays_what_the_run_reports(run: fg.Run, hospitals: Hospitals) -> None:
    """Each site's own model, asked about its images: those of its test patients come to the reported accuracy."""
    for site in ("east", "north"):
        model = run.model(site)
        root = hospitals.cohorts[site].root
        said = model.predict(root)
        truth = np.array([model.classes["cls"].index(Path(name).parent.name) for name in said.names])
        right = said.answers["cls"].argmax(axis=1) == truth
        test = files_of_test_cases(run, site)
        cases = np.array([name in test for name in said.names])
        assert cases.sum() == run.metrics["cls"]["sites"][site]["n"]
        assert right[cases].mean() == pytest.approx(run.metrics["cls"]["sites"][site]["accuracy"], abs=1e-6)
        some = [root / name for name in said.names[:3]]
        arrays = np.stack([np.asarray(Image.open(path)) for path in some])
        np.testing.assert_allclose(model.predict(arrays).answers["cls"], said.answers["cls"][:3], atol=1e-6)
        np.testing.assert_allclose(model.predict(some).answers["cls"], said.answers["cls"][:3], atol=1e-6)
        logits = model(model.prepare(arrays.astype(np.float64) / 255))["cls"]
        np.testing.assert_allclose(torch.softmax(logits, 1).detach().numpy(), said.answers["cls"][:3], atol=1e-5)
    assert not np.allclose(run.model("east").predict(arrays).answers["cls"], run.model().predict(arrays).answers["cls"])


def files_of_test_cases(run: fg.Run, site: str) -> set[str]:
    """The files of a site's test cases."""
    cohort, root = simulated_cohort(run.study, run.path, site), read_site(run.path / "sites" / site).cohort.root
    there = files(root)
    return {name_below(there[cohort.origins[at]], root) for at in cohort.splits["test"].tolist()}


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((2, 8, 8), 200.0), "between 0 and 1"),
        (np.full((2, 8, 8), np.nan), "between 0 and 1"),
        (np.zeros((2, 8, 8), dtype=np.int32), "no known white"),
        (np.zeros((2, 3, 8, 8)), "are wanted"),
        (np.zeros((8, 8)), "are wanted"),
        (np.zeros((0, 8, 8)), "are wanted"),
    ],
)
def test_an_array_of_another_scale_or_shape_is_refused(run: fg.Run, images: Any, words: str) -> None:
    with pytest.raises(fg.FedgraftError, match=words):
        run.model().predict(images)


def test_files_that_cannot_be_used_are_named(run: fg.Run, hospitals: Hospitals, tmp_path: Path) -> None:
    good = next(hospitals.cohorts["east"].root.rglob("*.png"))
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:90])
    said = run.model().predict([good, tmp_path / "broken.png"])
    assert said.names == (str(good),)
    assert list(said.problems) == [str(tmp_path / "broken.png")]
    with pytest.raises(fg.FedgraftError, match="nothing in it can be used"):
        run.model().predict([tmp_path / "broken.png"])


def test_tables_of_figures(run: fg.Run) -> None:
    frame = run.history.to_pandas()
    assert list(frame["exchange"]) == [1, 2, 3]
    last = run.metrics["cls"]["pooled"]["accuracy"]
    assert frame["cls/pooled/accuracy"].iloc[-1] == pytest.approx(last)
    said = run.model().predict(np.zeros((2, 8, 8)))
    assert list(said.to_pandas().columns) == ["case", "cls:left", "cls:right", "cls:middle"]


def test_without_pandas_the_error_says_what_to_install(run: fg.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(fg.FedgraftError, match="pip install pandas"):
        run.history.to_pandas()


def test_what_is_wrong_is_an_error_that_a_person_can_read(
    run: fg.Run, study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path
) -> None:
    for call, words in (
        (lambda: fg.simulate(study, scenario, out=run.path), "is not empty"),
        (lambda: fg.simulate(study, out=tmp_path / "new"), "names no scenario"),
        (lambda: fg.simulate(study, "no_such", out=tmp_path / "new"), "no_such"),
        (lambda: fg.simulate(tmp_path / "none.yaml", scenario), "none.yaml"),
        (lambda: fg.Study.parse({"name": "x", "tasks": [], "plan": [], "inptu": {}}), "inptu"),
        (lambda: fg.Scenario.parse({"name": "x", "sites": [{"name": "a", "phantom": {"patients": 0}}]}), "patients"),
        (lambda: fg.load_run(tmp_path), "no run's folder"),
        (lambda: fg.load_comparison(tmp_path), "no finished comparison"),
        (lambda: run.model("nowhere"), "no site 'nowhere'"),
        (lambda: run.model(2), "no site 2"),  # type: ignore[arg-type]
        (lambda: run.model().predict([np.zeros((8, 8), np.uint8)]), "one array"),  # type: ignore[list-item]
        (lambda: fg.simulate(study, scenario, out=tmp_path / "new", engine="dask"), "'ray'"),  # type: ignore[arg-type]
        (lambda: fg.simulate(study, scenario, out=tmp_path / "new", workers=0), "workers"),
        (lambda: fg.compare(study, scenario, out=tmp_path / "new", threads=0), "threads"),
        (lambda: fg.compare(study, scenario, out=tmp_path / "new", arms="fedbnn"), "'fedbnn'; did you mean fedbn"),
        (lambda: fg.simulate(study, scenario, out=tmp_path / "new", track="cvs"), "'cvs'; did you mean csv"),
        (lambda: fg.simulate(3, scenario), "int is no study"),  # type: ignore[arg-type]
        (lambda: fg.simulate(study, 4), "int is no scenario"),  # type: ignore[arg-type]
        (lambda: fg.Study.parse(None), "must be a mapping"),  # type: ignore[arg-type]
        (lambda: fg.Scenario.parse([]), "must be a mapping"),  # type: ignore[arg-type]
        (lambda: fg.Study.read("quickstrt"), "did you mean quickstart"),
        (lambda: fg.Study.read("quickstart", "method.name=fedbnn"), "did you mean fedbn"),
        (lambda: fg.price("quickstart", patients=0), "0 patients"),
        (lambda: fg.explain(study.model_copy(update={"model": study.model.model_copy(update={"backbone": "x"})})), "x"),
    ):
        with pytest.raises(fg.FedgraftError, match=words):
            call()
    assert not (tmp_path / "new").exists()


def test_a_run_that_misses_sites_is_an_error_and_can_be_looked_at_all_the_same(
    study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path
) -> None:
    broken = json.loads(json.dumps(scenario))
    broken["sites"][0]["faults"] = {"kind": "nan", "rounds": [1, 2]}
    with pytest.raises(fg.FedgraftError, match="has not completed"):
        fg.simulate(study, broken, out=tmp_path / "run")
    assert fg.load_run(tmp_path / "run").status == "incomplete"


@pytest.mark.slow
def test_an_interrupted_run_goes_on(
    run: fg.Run, study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedgraft.server.runs.run_folder import RunFolder

    save = RunFolder.save_checkpoint

    def stop(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            fg.simulate(study, scenario, out=tmp_path / "run")
    with pytest.raises(fg.FedgraftError, match="has not ended"):
        fg.load_run(tmp_path / "run")
    whole = fg.resume(tmp_path / "run")
    assert (whole.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_progress_is_shown_where_it_is_asked_for_and_nothing_else_is_printed(
    study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fg.simulate(study, scenario, out=tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    fg.simulate(study, scenario, out=tmp_path / "shown", progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "3/3 evaluate" in said.err


@pytest.mark.slow
def test_a_comparison_is_a_value(study: fg.Study, scenario: Mapping[str, Any], tmp_path: Path) -> None:
    found = fg.compare(study, scenario, arms=("study", "local"), seeds=1, out=tmp_path / "compared", workers=1)
    assert [(row["arm"], row["against"]) for row in found.rows] == [("study", "study"), ("local", "study")]
    assert found.rows[1]["difference"]["value"] is not None
    assert found.report.is_file()
    frame = found.to_pandas()
    assert list(frame["arm"]) == ["study", "local"]
    assert frame["macro.value"].iloc[0] == pytest.approx(found.rows[0]["macro"]["value"])
    assert fg.load_comparison(found.path).result == found.result
    at = (found.path / "compare.json").stat().st_mtime_ns
    again = fg.compare(study, scenario, arms=("study", "local"), seeds=1, out=tmp_path / "compared", workers=1)
    assert [row["macro"] for row in again.rows] == [row["macro"] for row in found.rows]
    assert (found.path / "compare.json").stat().st_mtime_ns > at


def test_what_a_study_does_and_costs_is_known_before() -> None:
    said = fg.explain("private")
    assert said.stages[0]["name"] in str(said)
    assert len(said.sentences) == len(said.study.plan) == len(said.stages)
    few, many = fg.price("private", 200), fg.price("private", 3000)
    assert few.epsilon >= many.epsilon > 0
    assert fg.Study.read("private", "seed=7").seed == 7


@pytest.mark.slow
def test_a_notebook_in_a_folder_with_modules_of_ones_own(
    study: fg.Study, scenario: Mapping[str, Any], run: fg.Run, tmp_path: Path
) -> None:
    """Also worker processes take none of them for the library's; and importing costs nothing."""
    for name in ("random", "common", "client"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else’s module')\n")
    (tmp_path / "notebook.py").write_text(
        "import sys; here = sys.path.pop(0)\n"
        "import fedgraft as fg\n"
        "if __name__ == '__main__':\n"
        "    assert not {'torch', 'flwr', 'numpy'} & set(sys.modules)\n"
        "    import json\n"
        "    study, scenario = json.load(open('asked.json'))\n"
        "    made = fg.simulate(study, scenario, out='run', engine='pool', workers=2)\n"
        "    print(made.status)\n"
    )
    (tmp_path / "asked.json").write_text(json.dumps([study.model_dump(mode="json"), scenario]))
    python = [sys.executable, "notebook.py"]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ})
    assert (done.returncode, done.stdout.strip()) == (0, "completed"), done.stderr
    assert (tmp_path / "run/model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
def test_the_guide_s_own_hospitals_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/python.md, over two folders of images with a table of labels."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    draw = np.random.default_rng(0)
    for site in ("north", "south"):
        folder = tmp_path / "data" / site
        folder.mkdir(parents=True)
        rows = ["path,cls,patient"]
        for number in range(40):
            image = draw.integers(0, 100, (40, 40), dtype=np.uint8)
            image[:, :20] += np.uint8(100 * (number % 2))
            Image.fromarray(image).save(folder / f"{number}.png")
            rows.append(f"{number}.png,{('benign', 'malignant')[number % 2]},P{number}")
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"fg": fg}
    exec(code, known)
    assert known["run"].status == "completed"
    assert (tmp_path / "runs/own/report.html").is_file()
