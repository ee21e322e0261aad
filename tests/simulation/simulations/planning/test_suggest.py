"""Choosing before training: what the ranks say is what training then finds, and sites alike are not told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import Command, write_images
from fedgraft.common.models.weights import load_weights, save_weights
from fedgraft.simulations.planning.suggest import Candidate, first_choice

QUICKSTART = "quickstart"


@pytest.mark.slow
def test_the_source_model_is_ranked_before_random_entries(command: Command) -> None:
    code, out, err = command("study", "suggest", QUICKSTART, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["weights"] for one in found["candidates"]] == ["slim-ctmr-synthetic", None]
    best, fresh = found["candidates"]
    assert best["log_me"] > fresh["log_me"] + 0.02
    assert best["h_score"] > fresh["h_score"]
    assert set(found["cases"]) == {"north", "harbour", "valley", "lakeside", "hilltop"}
    assert any(pair["apart"] for pair in found["sites"])  # their scanners differ
    code, out, _ = command("study", "suggest", QUICKSTART)
    assert "Start from slim-ctmr-synthetic" in out
    assert "Keep norm statistics at the sites" in " ".join(out.split())


@pytest.mark.slow
def test_weights_from_elsewhere_are_advised_with_two_steps(command: Command, tmp_path: Path) -> None:
    """The source model once more, as somebody has brought it who did not train it here."""
    manifest, arrays = load_weights("slim-ctmr-synthetic")
    facts = manifest.model_dump(exclude={"sha256", "keys", "format"})
    save_weights(tmp_path / "far", arrays, facts | {"id": "far", "trained_on": "photographs", "how": "imported"})
    code, out, err = command("study", "suggest", QUICKSTART, "--weights", tmp_path / "far")
    assert code == 0, err
    said = " ".join(out.split())
    assert "method: probe_finetune" in said
    assert "Keep norm statistics at the sites" not in said
    code, out, _ = command(
        "study", "explain", QUICKSTART, "--set", f"model.weights={tmp_path / 'far'}", "--set", "method.name=fedavg"
    )
    assert code == 0
    assert "comes from elsewhere (photographs)" in " ".join(out.split())


@pytest.mark.parametrize(("apart", "said"), [(True, "cannot be told"), (False, "by LogME and by H-score")])
def test_ranks_that_do_not_agree_are_not_hidden(apart: bool, said: str) -> None:
    one, other = Candidate("one", "slim_resnet", 2.0, 1.0), Candidate(None, "slim_resnet", 1.0, 2.0 if apart else 0.5)
    assert said in first_choice([one, other])


@pytest.mark.slow
def test_sites_alike_are_not_told_apart(command: Command) -> None:
    code, out, err = command("study", "suggest", QUICKSTART, "--scenario", "alike", "--json")
    assert code == 0, err
    assert not any(pair["apart"] for pair in json.loads(out)["sites"])


def test_what_does_not_fit_is_said(command: Command, tmp_path: Path) -> None:
    code, _, err = command("study", "suggest", QUICKSTART, "--weights", "nothing")
    assert code == 2
    assert "nothing does not fit study quickstart" in " ".join(err.split())
    code, _, err = command(
        "study", "suggest", QUICKSTART, "--set", "input.normalise=fixed", "--weights", "slim-ctmr-synthetic"
    )
    assert code == 2
    assert "normalise" in err


def hospitals_that_differ(tmp_path: Path, *names: str) -> tuple[object, ...]:
    """What is typed to look at some of four hospitals; `north` and `west` call the sides the other way round."""
    sites = []
    for number, name in enumerate(names):
        write_images(tmp_path / name, number, 60)
        turned = {"left": "right", "right": "left"} if name in ("north", "west") else {}
        cohort = {"kind": "images", "root": str(tmp_path / name), "labels": str(tmp_path / name / "images.csv")}
        sites.append({"name": name, "cohort": cohort | {"patient_column": "patient", "label_map": {"cls": turned}}})
    (tmp_path / "four.yaml").write_text(yaml.safe_dump({"name": "four", "sites": sites}))
    study = {"name": "who", "tasks": [{"name": "cls", "classes": ["left", "right", "middle"]}], "method": "fedavg"}
    study |= {"input": {"kind": "image", "size": 32}, "split": {"train": 0.8, "val": 0.1, "test": 0.1}}
    (tmp_path / "who.yaml").write_text(yaml.safe_dump(study | {"model": {"backbone": "slim_resnet", "weights": None}}))
    return ("study", "suggest", tmp_path / "who.yaml", "--scenario", tmp_path / "four.yaml")


def test_it_advises_who_trains_together_and_what_to_write(command: Command, tmp_path: Path) -> None:
    """Two hospitals call the sides the other way round: one model of all could only guess."""
    words = hospitals_that_differ(tmp_path, "east", "north", "south", "west")
    code, out, err = command(*words, "--json")
    assert code == 0, err
    found = json.loads(out)["grouping"]
    assert (found["verdict"], found["clusters"]) == ("clusters", [["east", "south"], ["north", "west"]])
    code, out, _ = command(*words)
    (line,) = [line for line in out.splitlines() if line.startswith("In the study: ")]
    advised = yaml.safe_load(line.removeprefix("In the study: "))
    assert advised["clusters"]["sites"] == {"cluster_1": ["east", "south"], "cluster_2": ["north", "west"]}
    code, out, err = command(
        "study", "explain", tmp_path / "who.yaml", "--set", f"clusters={json.dumps(advised['clusters'])}"
    )
    assert code == 0, err
    assert "cluster_2 (north, west)" in " ".join(out.split())


def test_hospitals_that_have_nothing_in_common_are_told_not_to_federate(command: Command, tmp_path: Path) -> None:
    words = hospitals_that_differ(tmp_path, "east", "north")
    code, out, err = command(*words)
    assert code == 0, err
    said = " ".join(out.split())
    assert "Let each site train alone, and do not federate" in said
    assert "clusters:" not in said


@pytest.mark.slow
def test_values_are_ranked_and_grouped_by_and_masks_alone_are_refused(command: Command, tmp_path: Path) -> None:
    """By the first task that sums over features can solve; in the table stands the error, with its unit."""
    sites = []
    for number, name in enumerate(("east", "west")):
        write_images(tmp_path / name, number, 48)
        head, *lines = (tmp_path / name / "images.csv").read_text().splitlines()
        place = head.split(",").index("cls")
        sizes = [10 + 5 * ["left", "middle", "right"].index(line.split(",")[place]) for line in lines]
        sized = [f"{line},{size}" for line, size in zip(lines, sizes, strict=True)]
        (tmp_path / name / "images.csv").write_text("\n".join([f"{head},size", *sized]) + "\n")
        cohort = {"kind": "images", "root": str(tmp_path / name), "labels": str(tmp_path / name / "images.csv")}
        sites.append({"name": name, "cohort": cohort | {"patient_column": "patient"}})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"name": "two", "sites": sites}))
    mask, size = {"name": "lesion", "kind": "segmentation"}, {"name": "size", "kind": "regression", "unit": "mm"}
    study = {
        "name": "sizes",
        "tasks": [mask, size | {"mean": 15, "std": 5}],
        "method": "fedavg",
        "scenario": "two.yaml",
    }
    study |= {"input": {"kind": "image", "size": 32}, "model": {"backbone": "slim_resnet", "weights": None}}
    (tmp_path / "sizes.yaml").write_text(yaml.safe_dump(study))
    code, out, err = command("study", "suggest", tmp_path / "sizes.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["grouping"]["metric"]) == ("size", "MAE (mm)")
    assert [one["h_score"] for one in found["candidates"]] == [None] * len(found["candidates"])
    tried = found["grouping"]["tried"]
    assert all(0 < one["value"] < 5 for one in tried), "heads on features of the bars are better than the mean"
    code, out, _ = command("study", "suggest", tmp_path / "sizes.yaml")
    assert code == 0
    assert "its frozen features tell most of the values, by LogME" in " ".join(out.split())
    (tmp_path / "masks.yaml").write_text(yaml.safe_dump(study | {"tasks": [mask]}))
    code, _, err = command("study", "suggest", tmp_path / "masks.yaml")
    assert code == 2
    assert "sums over features, which solve no masks" in " ".join(err.split())


def test_a_linear_model_of_a_table_is_advised_heads_from_sums(command: Command) -> None:
    """It has no norm statistics that could stay at the sites, and nothing was pretrained for it."""
    code, out, err = command("study", "suggest", "breast_cancer", "--set", "model.backbone=table_linear")
    assert code == 0, err
    said = " ".join(out.split())
    assert "method: logistic_probe" in said
    assert "nothing else at hand fits the study" in said
    assert "silobn" not in said
    code, out, err = command(
        "study", "check", "breast_cancer", "--set", "model.backbone=table_linear", "--set", "method=logistic_probe"
    )
    assert code == 0, err
    code, out, _ = command("study", "suggest", "breast_cancer", "--set", "model.backbone=table_mlp")
    assert "no norm statistics that could stay" in " ".join(out.split())
