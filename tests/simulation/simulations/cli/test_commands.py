"""The front door, as a person uses it: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.models.model import build_model
from fedgraft.simulations.engines.run import Hospitals


@pytest.fixture
def study_file(tmp_path, hospitals: Hospitals) -> Path:
    """A study file with a scenario file beside it that lists folders of images."""
    sites = [{"name": name, "cohort": {"kind": "images", "root": str(c.root)}} for name, c in hospitals.cohorts.items()]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "sites": sites}))
    study = {
        "name": "tiny",
        "scenario": "mine.yaml",
        "tasks": [{"name": "cls", "classes": ["left", "right", "middle"]}],
        "input": {"kind": "image", "size": 32},
        "split": {"train": 0.5, "val": 0.25, "test": 0.25},
        "model": {"backbone": "slim_resnet", "weights": None},
        "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_help_is_quick_because_it_imports_little():
    code = """
import sys
from fedgraft import cli
sys.argv = ["fedgraft", "--help"]
try:
    cli.main()
except SystemExit:
    pass
print([name for name in ("torch", "flwr", "numpy", "pydicom", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "simulate" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_simulation_from_the_command_line(command, study_file, tmp_path):
    code, out, err = command("simulate", study_file, "--out", tmp_path / "run", "--set", "method.rounds=1")
    assert (code, err) == (0, "")
    assert "completed: 4 of 4 sites" in out
    assert "4 sites ready" in out
    assert "1/2 train" in out  # one round and the evaluation at the end, as plain lines
    for name in ("east", "north", "south", "west", "macro mean", "all cases", "report.html"):
        assert name in out
    assert "Phantoms" not in out  # these images are no phantoms
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {
        "study.yaml",
        "environment.json",
        "history.jsonl",
        "result.json",
        "model.safetensors",
        "model.json",
        "sites",
        "checkpoint",
        "report.html",
    }
    assert read_json(tmp_path / "run" / "result.json")["plan"][0]["rounds"] == 1
    (tmp_path / "run" / "report.html").unlink()
    code, out, _ = command("report", tmp_path / "run")
    assert (code, out.strip()) == (0, str(tmp_path / "run" / "report.html"))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_json_on_stdout_is_json_alone(command, study_file, tmp_path):
    code, out, err = command("simulate", study_file, "--out", tmp_path / "run", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["status"] == "completed"
    assert result["run"] == str(tmp_path / "run")
    assert set(result["metrics"]["cls"]["sites"]) == {"east", "north", "south", "west"}
    assert "sites ready" in err


@pytest.mark.slow
def test_a_run_serves_as_weights_of_the_next_study(command, study_file, tmp_path):
    assert command("simulate", study_file, "--out", tmp_path / "first")[0] == 0
    code, out, _ = command(
        "simulate",
        study_file,
        "--out",
        tmp_path / "second",
        "--set",
        f"model.weights={tmp_path / 'first'}",
        "--set",
        "method={name: linear_probe, rounds: 1}",
    )
    assert code == 0, out
    first, second = (load_tensors(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert all((first[key] == second[key]).all() for key in first if key.startswith("backbone."))
    assert any((first[key] != second[key]).any() for key in first if key.startswith("heads."))


@pytest.mark.slow
def test_a_stopped_run_is_continued_by_resume(command, study_file, tmp_path):
    text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    text["sites"][0]["faults"] = {"kind": "silent", "rounds": [2]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
    code, _, err = command("simulate", study_file, "--out", tmp_path / "run", "--set", "rounds.quorum=1.0")
    assert code == 1
    assert "3 of 4 sites; missing: east, deadline" in err
    assert "--resume" in err
    assert "Traceback" not in err
    settings = tmp_path / "run" / "simulation.json"
    settings.write_text(json.dumps(read_json(settings) | {"faults": {}}))
    code, out, _ = command("simulate", "--resume", tmp_path / "run")
    assert code == 0, out
    assert "completed" in out


WRONG = {
    "no study": (["simulate"], "Which study?"),
    "no such file": (["simulate", "absent.yaml"], "absent.yaml: 1 fault"),
    "unknown engine": (["simulate", "quickstart", "--engine", "warp"], "inprocess"),
    "no run to resume": (["simulate", "--resume", "."], "is no simulated run"),
    "resume with a study": (["simulate", "quickstart", "--resume", "x"], "--resume takes no other study"),
    "bad override": (["study", "check", "quickstart", "--set", "seed"], "must look like key=value"),
    "no run to report": (["report", "."], "no run"),
    "unknown weights": (["weights", "show", "imagenet-by-magic"], "imagenet-by-magic"),
    "unknown scenario": (["data", "make", "nowhere", "--out", "x"], "xray5"),
    "unknown option": (["simulate", "--fast"], "--fast"),
    "no file for the enum": (
        ["weights", "import", "ResNet18_Weights.X", "--backbone", "resnet18", "--id", "a", "--licence", "b"],
        "ResNet18_Weights.X",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_exit_2_with_a_reason_and_no_traceback(command, case: str):
    words, reason = WRONG[case]
    code, out, err = command(*words)
    assert code == 2, (out, err)
    assert reason in err
    assert "Traceback" not in out + err


def test_all_faults_of_a_study_are_told_at_once(command, study_file):
    study = yaml.safe_load(study_file.read_text())
    study["tasks"][0]["classes"] = ["one"]
    study["input"]["size"] = 4
    study["modle"] = {}
    study["method"] = {"name": "fedavgg"}
    study_file.write_text(yaml.safe_dump(study))
    code, _, err = command("study", "check", study_file)
    assert code == 2
    assert f"{study_file}: 4 faults" in err
    for key in ("tasks.0.classes", "input.image.size", "modle", "method"):
        assert f"- {key}" in err, err


def test_a_used_folder_is_left_alone(command, study_file, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    code, _, err = command("simulate", study_file, "--out", tmp_path / "run")
    assert code == 2
    assert "not empty" in err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_site_whose_data_cannot_be_read_is_named_and_the_others_go_on(command, study_file, tmp_path):
    text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    text["sites"][1]["cohort"]["root"] = str(tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text | {"allow_missing_sites": True}))
    code, out, err = command("simulate", study_file, "--out", tmp_path / "run")
    assert code == 1, "the scenario lets it begin; the study does not say that three will do"
    assert "1 of 4 sites may not take part, which the scenario allows:\n  - north: " in out
    assert "incomplete: 3 of 4 sites" in out
    assert "bad_data" in out
    assert f"{tmp_path / 'run'} has not completed: 3 of 4 sites; missing: north, bad_data" in err
    assert "rounds.min_sites" in err
    assert command("simulate", "--resume", tmp_path / "run")[0] == 1, "nor is it a success the second time"
    log = tmp_path / "run" / "sites" / "north" / "site.log"
    assert "nowhere: is no folder" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("rule", ["rounds.min_sites=3", "rounds.quorum=0.75"])
def test_a_study_that_says_how_few_will_do_is_content_with_them_and_says_so(command, study_file, tmp_path, rule):
    text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    text["sites"][1]["cohort"]["root"] = str(tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text | {"allow_missing_sites": True}))
    words = ("--out", tmp_path / "run", "--set", "method.rounds=1", "--set", rule)
    code, out, err = command("simulate", study_file, *words)
    assert (code, err) == (0, "")
    assert "incomplete: 3 of 4 sites; missing: north, bad_data" in out


def test_one_of_several_sites_is_no_federation_unless_the_study_says_so(command, study_file, tmp_path):
    text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    for site in text["sites"][1:]:
        site["cohort"]["root"] = str(tmp_path / "nowhere")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text | {"allow_missing_sites": True}))
    code, _, err = command("simulate", study_file, "--out", tmp_path / "run")
    assert code == 1
    assert "round 1: 1 of 4 sites; missing: north, bad_data; south, bad_data; west, bad_data; 2 are needed" in err
    words = ("--out", tmp_path / "other", "--set", "rounds.min_sites=1", "--set", "rounds.quorum=0.25")
    code, out, _ = command("simulate", study_file, *words)
    assert code == 0
    assert "incomplete: 1 of 4 sites" in out


def test_no_site_with_usable_data_begins_nothing(command, study_file, tmp_path):
    text = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    for site in text["sites"]:
        site["cohort"]["root"] = str(tmp_path / "nowhere")
    for allowed, words in ((False, "4 of 4 sites cannot take part"), (True, "No site can take part")):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text | {"allow_missing_sites": allowed}))
        code, _, err = command("simulate", study_file, "--out", tmp_path / "run")
        assert code == 2
        assert words in err
        assert err.count("nowhere: is no folder") == 4
        assert not (tmp_path / "run").exists()


def test_explain_says_what_travels(command):
    code, out, _ = command("study", "explain", "quickstart")
    assert code == 0
    assert "slim-ctmr-synthetic" in out
    assert "No differential privacy" in out
    code, out, _ = command("study", "explain", "quickstart", "--json")
    rows = json.loads(out)["plan"]
    assert [row["name"] for row in rows] == ["probe", "finetune", "adapt"]
    assert rows[1]["shared_parameters"] > 100_000
    assert rows[2]["shared_parameters"] == 0


def test_show_can_be_run_as_it_is(command, tmp_path):
    code, out, _ = command("study", "show", "quickstart", "--set", "seed=5")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    digest = command("study", "check", tmp_path / "shown.yaml")[1].split()[-1]
    assert digest == command("study", "check", "quickstart", "--set", "seed=5")[1].split()[-1]
    assert digest != command("study", "check", "quickstart")[1].split()[-1]


def test_the_weights_that_ship_are_listed_shown_and_verified(command):
    code, out, _ = command("weights", "list", "--json")
    assert code == 0
    assert "slim-ctmr-synthetic" in [manifest["id"] for manifest in json.loads(out)]
    code, out, _ = command("weights", "show", "slim-ctmr-synthetic")
    shown = json.loads(out)
    assert shown["synthetic"] is True
    assert shown["licence"] == "Apache-2.0"
    code, out, _ = command("weights", "verify", "slim-ctmr-synthetic")
    assert code == 0
    assert "as its manifest says" in out


@pytest.mark.slow
def test_weights_come_in_from_a_file_and_start_a_study(command, study_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    model = build_model("slim_resnet", {"cls": 3}, channels=1, seed=8, size=32)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    words = [
        "weights",
        "import",
        tmp_path / "mine.pth",
        "--backbone",
        "slim_resnet",
        "--id",
        "mine",
        "--licence",
        "MIT",
    ]
    code, out, err = command(*words)
    assert code == 0, err
    assert "mine: " in out
    assert command("weights", "verify", "mine")[0] == 0
    code, _, err = command("simulate", study_file, "--out", tmp_path / "run", "--set", "model.weights=mine")
    assert code == 0, err
    assert "mine" in read_json(tmp_path / "run" / "model.json")["how"]
    code, _, err = command(*words)
    assert code == 2  # what is there is not overwritten
    (tmp_path / "evil.pth").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    words[2], words[6] = tmp_path / "evil.pth", "evil"
    code, _, err = command(*words)
    assert code == 2
    assert "evil.pth" in err


def test_phantoms_are_written_once(command, tmp_path):
    scenario = {"name": "two", "sites": [{"name": "a", "phantom": {"modality": "xr", "patients": 4}}]}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(scenario))
    code, out, _ = command("data", "make", tmp_path / "two.yaml", "--out", tmp_path / "data")
    assert code == 0
    assert "a: dicom in" in out
    assert list((tmp_path / "data" / "a").rglob("*.dcm"))


def test_doctor(command):
    code, out, _ = command("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["problems"] == []
    assert facts["packages"]["torch"]
