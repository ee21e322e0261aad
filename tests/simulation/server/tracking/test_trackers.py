"""Trackers of a real run: a table, TensorBoard, MLflow, one that a package brings, and one that fails."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedgraft as fg
from fedgraft.common.base.errors import InputError
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.tracking.tracker import trackers
from fedgraft.simulations.engines.run import Hospitals
from helpers.work import MakeStudy

METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 2, "batch_size": 8}}


@pytest.fixture(scope="module")
def scenario(hospitals: Hospitals) -> dict[str, Any]:
    cohorts = {
        name: hospitals.cohorts[name].model_dump(mode="json", exclude_defaults=True) for name in ("east", "west")
    }
    return {"name": "two", "sites": [{"name": name, "cohort": cohort} for name, cohort in cohorts.items()]}


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> fg.Study:
    return make_study(method=METHOD, evaluate={"floor": 1})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow.MlflowClient()


@pytest.mark.slow
def test_all_are_told_what_the_run_says(
    study: fg.Study, scenario: dict[str, Any], tmp_path: Path, store: mlflow.MlflowClient
) -> None:
    run = fg.simulate(study, scenario, out=tmp_path / "run", track=("csv", "tensorboard", "mlflow"))
    macro = run.metrics["cls"]["macro"]["accuracy"]

    with (run.path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["exchange"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["cls/macro/accuracy"]) == macro
    assert float(rows[0]["train/east/loss"]) == run.history[0]["train"]["east"]["loss"]

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("cls/macro/accuracy")
    assert [one.step for one in scalars] == [1, 2, 3]
    assert scalars[-1].value == pytest.approx(macro)

    experiment = store.get_experiment_by_name("fedgraft")
    (there,) = store.search_runs([experiment.experiment_id])
    assert there.info.status == "FINISHED"
    assert there.data.params["model.backbone"] == "slim_resnet"
    assert there.data.params["plan.0.rounds"] == "2"
    steps = store.get_metric_history(there.info.run_id, "cls/macro/accuracy")
    assert [(one.step, one.value) for one in steps][-1] == (3, macro)
    left = {one.path for one in store.list_artifacts(there.info.run_id)}
    assert left == {"model.safetensors", "model.json", "report.html", "result.json", "study.yaml"}


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run(
    study: fg.Study,
    scenario: dict[str, Any],
    tmp_path: Path,
    store: mlflow.MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = RunFolder.save_checkpoint

    def stop(folder: RunFolder, *rest: Any) -> None:
        save(folder, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            fg.simulate(study, scenario, out=tmp_path / "run", track=("csv", "mlflow"))
    experiment = store.get_experiment_by_name("fedgraft")
    (half,) = store.search_runs([experiment.experiment_id])
    assert half.info.status == "FAILED"
    fg.resume(tmp_path / "run", track=("csv", "mlflow"))
    (whole,) = store.search_runs([experiment.experiment_id])
    assert (whole.info.run_id, whole.info.status) == (half.info.run_id, "FINISHED")
    assert [one.step for one in store.get_metric_history(whole.info.run_id, "sites")] == [1, 2, 3]
    assert len((tmp_path / "run/rounds.csv").read_text().splitlines()) == 4


def test_a_round_that_is_done_again_is_told_again_and_stands_there_once(
    study: fg.Study, scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between a round's line in the history and its checkpoint: the line is taken back, and written anew."""
    save = RunFolder.save_checkpoint

    def stop(folder: RunFolder, done: int, *rest: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt
        save(folder, done, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            fg.simulate(study, scenario, out=tmp_path / "run", track=("csv",))
    assert len((tmp_path / "run/rounds.csv").read_text().splitlines()) == 3
    run = fg.resume(tmp_path / "run", track=("csv",))
    with (run.path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["exchange"] for row in rows] == ["1", "2", "3"]
    assert [float(row["seconds"]) for row in rows] == [row["seconds"] for row in run.history]


def install(folder: Path, body: str) -> None:
    """A distribution with a tracker called `mine`, as pip leaves it."""
    (folder / "mine.py").write_text(body)
    facts = folder / "mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fedgraft.trackers]\nmine = mine:Mine\n")


MINE = """
class Mine:
    told = []
    def begin(self, run, study): self.told.append(('begin', study.name))
    def round(self, row): self.told.append(('round', row['exchange'])){fails}
    def end(self, run, result): self.told.append(('end', result['status']))
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_tracker_of_ones_own_and_what_becomes_of_a_run_whose_tracker_fails(
    fails: bool, study: fg.Study, scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, MINE.format(fails="; raise OSError('no space')" if fails else ""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    if fails:
        with pytest.warns(UserWarning, match="Mine failed and is told no more"):
            run = fg.simulate(study, scenario, out=tmp_path / "run", track=("mine",))
    else:
        run = fg.simulate(study, scenario, out=tmp_path / "run", track=("mine",))
    assert run.status == "completed"
    told = sys.modules["mine"].Mine.told
    rounds = [("round", 1)] if fails else [("round", 1), ("round", 2), ("round", 3), ("end", "completed")]
    assert told == [("begin", "test"), *rounds]


def test_what_is_not_there_is_said_before_anything_is_spent(
    study: fg.Study, scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="did you mean tensorboard"):
        fg.simulate(study, scenario, out=tmp_path / "run", track=("tensorbord",))
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "fedgraft.server.tracking.mlflow_run", raising=False)
    with pytest.raises(InputError, match=r"mlflow is not installed.*pip install mlflow"):
        trackers(("mlflow",))
