"""Trackers of a real comparison: a run for each arm and seed, one for what is concluded, each told once."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedgraft as fg
from fedgraft.common.base.errors import InputError
from fedgraft.simulations.engines.run import Hospitals
from helpers.work import MakeStudy

METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 2, "batch_size": 8}}
ARMS = [f"{arm}-seed-{seed}" for arm in ("local", "study") for seed in (3, 4)]


@pytest.fixture(scope="module")
def scenario(hospitals: Hospitals) -> dict[str, Any]:
    cohorts = {
        name: hospitals.cohorts[name].model_dump(mode="json", exclude_defaults=True) for name in ("east", "west")
    }
    return {"name": "two", "sites": [{"name": name, "cohort": cohort} for name, cohort in cohorts.items()]}


@pytest.fixture(scope="module")
def study(make_study: MakeStudy) -> fg.Study:
    return make_study(method=METHOD, evaluate={"floor": 1})


@pytest.fixture(scope="module")
def done(study: fg.Study, scenario: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nobody was told of, for tests to go on from: its cells are there."""
    return fg.compare(study, scenario, arms=("study", "local"), seeds=2, out=tmp_path_factory.mktemp("c") / "c").path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow.MlflowClient()


def again(study: fg.Study, scenario: dict[str, Any], out: Path, track: tuple[str, ...]) -> fg.Comparison:
    return fg.compare(study, scenario, arms=("study", "local"), seeds=2, out=out, track=track)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_arms_are_told_round_by_round_and_the_comparison_with_its_figures(
    study: fg.Study, scenario: dict[str, Any], done: Path, store: mlflow.MlflowClient
) -> None:
    out = again(study, scenario, done, ("csv", "tensorboard", "mlflow")).path
    (question,) = json.loads((out / "compare.json").read_text())["questions"]
    rows, runs = {row["arm"]: row for row in question["rows"]}, out / "tracked/study"
    assert sorted(path.name for path in runs.iterdir()) == ARMS

    for at, seed in enumerate((3, 4)):
        rounds = table(runs / f"study-seed-{seed}/rounds.csv")
        assert [row["exchange"] for row in rounds] == ["1", "2", "3"]
        assert float(rounds[-1]["cls/macro/auroc"]) == pytest.approx(rows["study"]["by_replicate"][at], abs=1e-6)
        (alone,) = table(runs / f"local-seed-{seed}/rounds.csv")
        assert float(alone["cls/macro/auroc"]) == pytest.approx(rows["local"]["by_replicate"][at], abs=1e-9)

    events = EventAccumulator(str(runs / "study-seed-4/tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("cls/macro/accuracy")] == [1, 2, 3]
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    (said,) = events.Tensors("compare/study/text_summary")
    text = said.tensor_proto.string_val[0].decode()
    assert "macro AUROC" in text
    assert f"| local | {rows['local']['macro']['value']:.3f} | {rows['local']['difference']['value']:.3f} |" in text

    experiment = store.get_experiment_by_name("fedgraft")
    found = {run.info.run_name: run for run in store.search_runs([experiment.experiment_id])}
    whole = found.pop("test")
    assert set(found) == {f"study: {arm}, seed {seed}" for arm in ("study", "local") for seed in (3, 4)}
    left = {one.path for one in store.list_artifacts(whole.info.run_id)}
    assert left == {"study.yaml", "compare.html", "compare.json", "compare.csv"}
    for run in found.values():
        assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert run.info.status == whole.info.status == "FINISHED"
    one = found["study: local, seed 4"]
    asked = {key: one.data.params[f"compare.{key}"] for key in ("question", "arm", "who", "seed")}
    assert asked == {"question": "study", "arm": "local", "who": "alone", "seed": "4"}
    assert (one.data.params["plan.0.rounds"], one.data.params["seed"]) == ("2", "4")
    steps = store.get_metric_history(found["study: study, seed 3"].info.run_id, "cls/macro/auroc")
    assert [step.step for step in steps] == [1, 2, 3]
    assert steps[-1].value == pytest.approx(rows["study"]["by_replicate"][0], abs=1e-6)

    again(study, scenario, done, ("mlflow",))
    assert len(store.search_runs([experiment.experiment_id])) == 5, "it goes on in the same runs"
    assert len(store.get_metric_history(found["study: study, seed 3"].info.run_id, "cls/macro/auroc")) == 3


MINE = """
class Mine:
    told = []
    def begin(self, run, study):
        self.name = run.name
        self.told.append((run.name, 'begin', study.seed))
    def round(self, row): self.told.append((self.name, 'round', row['exchange'])){fails}
    def end(self, run, result): self.told.append((run.name, 'end', result['status']))
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """A distribution with a tracker called `mine`, as pip leaves it."""
    (folder / "mine.py").write_text(MINE.format(fails="; raise OSError('no space')" if fails else ""))
    facts = folder / "mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fedgraft.trackers]\nmine = mine:Mine\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.slow
def test_a_tracker_of_ones_own_hears_all_of_each_arm_once(
    study: fg.Study, scenario: dict[str, Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, fails=False)
    again(study, scenario, done, ("mine",))
    told = sys.modules["mine"].Mine.told
    by_run = {name: [what for one, *what in told if one == name] for name in ("c", *ARMS)}
    assert by_run["c"] == [["begin", 3], ["end", "completed"]]
    for seed in (3, 4):
        rounds = [["round", 1], ["round", 2], ["round", 3]]
        assert by_run[f"study-seed-{seed}"] == [["begin", seed], *rounds, ["end", "completed"]]
        assert by_run[f"local-seed-{seed}"] == [["begin", seed], ["round", 1], ["end", "completed"]]
    told.clear()
    again(study, scenario, done, ("mine",))
    assert told == [("c", "begin", 3), ("c", "end", "completed")]


@pytest.mark.slow
def test_a_tracker_that_fails_is_heard_of_once_and_the_comparison_goes_on(
    study: fg.Study, scenario: dict[str, Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, fails=True)
    shutil.rmtree(done / "tracked", ignore_errors=True)
    with pytest.warns(UserWarning, match="mine failed and is told no more") as heard:
        found = again(study, scenario, done, ("mine",))
    assert len(found.rows) == 2
    assert len([one for one in heard if "mine failed" in str(one.message)]) == 1
    told = [what for _, what, _ in sys.modules["mine"].Mine.told]
    assert told == ["begin", "begin", "round"], "of the comparison, of the first arm, and no more"


def test_a_tracker_that_is_not_there_is_said_before_anything_is_spent(
    study: fg.Study, scenario: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="did you mean tensorboard"):
        fg.compare(study, scenario, arms=("study", "local"), out=tmp_path / "c", track=("tensorbord",))
    assert not (tmp_path / "c").exists()
