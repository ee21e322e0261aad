"""A comparison of a study that asks for classes, labels, a value and a mask: what it says is what it saved."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import Command
from fedgraft.common.base.files import load_tensors
from fedgraft.simulations.compare.running.models import pool
from fedgraft.simulations.phantoms.hospitals import make_hospitals
from fedgraft.simulations.phantoms.scenario import Scenario
from helpers.work import cohort, images

WORDS = {"signs.any": {"none": "no", "smooth": "yes", "spiculated": "yes", "ring": "yes"}}
TASKS: list[dict[str, Any]] = [
    {"name": "diagnosis", "classes": ["none", "smooth", "spiculated", "ring"]},
    {"name": "lesion", "kind": "segmentation"},
    {"name": "size_mm", "kind": "regression", "unit": "mm", "mean": 26, "std": 16},
    {"name": "signs", "kind": "multilabel", "labels": ["any"]},
]
HEADLINES = {"diagnosis": "AUROC", "lesion": "Dice", "size_mm": "MAE (mm)", "signs": "AUROC"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    phantom = {"patients": 16, "images_per_patient": [1, 2], "modality": "ct"}
    sites = [{"name": name, "phantom": phantom} for name in ("north", "south")]
    made = make_hospitals(Scenario.model_validate({"name": "kinds", "seed": 2, "sites": sites}), folder / "hospitals")
    cohorts = [
        spec.model_copy(update={"label_columns": {"signs.any": "diagnosis"}, "label_map": WORDS})
        for spec in made.values()
    ]
    there = [
        {"name": name, "cohort": spec.model_dump(mode="json", exclude_defaults=True)}
        for name, spec in zip(made, cohorts, strict=True)
    ]
    (folder / "sites.yaml").write_text(yaml.safe_dump({"name": "two", "sites": there}))
    questions = [{"name": task, "task": task, "arms": ["study", "local", "pooled"]} for task in HEADLINES]
    shortcuts = {
        "name": "shortcuts",
        "task": "size_mm",
        "set": {"tasks": [task for task in TASKS if task["name"] in ("size_mm", "signs")]},
        "arms": ["study", "thumbnail", "intensity"],
        "seeds": 1,
    }
    study = {
        "name": "kinds",
        "scenario": "sites.yaml",
        "tasks": TASKS,
        "input": {"kind": "image", "size": 32},
        "split": {"train": 0.5, "val": 0.0, "test": 0.5},
        "evaluate": {"every": 0, "floor": 1},
        "method": {"name": "fedavg", "rounds": 1, "local": {"steps": 3, "batch_size": 8}},
        "compare": {"seeds": 2, "questions": [*questions, shortcuts]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def naive(task: str, outputs: np.ndarray, targets: np.ndarray) -> float:
    """The headline by its definition, case by case."""
    if task == "size_mm":
        return float(np.mean([abs(float(a) - float(b)) for a, b in zip(outputs, targets, strict=True)]))
    if task == "lesion":
        found = [row for row in outputs if row[2] > 0]
        return float(np.mean([2 * row[0] / (row[1] + row[2]) for row in found]))
    if task == "signs":
        score, yes = outputs[:, 0].astype(float), targets[:, 0] == 1
        return pairs(score, yes)
    logits = outputs.astype(float)
    rows = []
    for label in range(4):
        rest = np.delete(logits, label, axis=1)
        score = logits[:, label] - np.log(np.exp(rest).sum(axis=1))
        if 0 < (targets == label).sum() < len(targets):
            rows.append(pairs(score, targets == label))
    return float(np.mean(rows))


def pairs(score: np.ndarray, yes: np.ndarray) -> float:
    ours, theirs = score[yes], score[~yes]
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]))


def saved(out: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """By who trained, the saved answers of every cell of the study that has masks, from seed to seed."""
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for facts in sorted(out.glob("cells/*/cell.json"), key=lambda path: json.loads(path.read_text())["words"]):
        arrays = load_tensors(facts.parent / "answers.safetensors")
        if any("/lesion/" in key for key in arrays):
            found.setdefault(json.loads(facts.read_text())["who"], []).append(arrays)
    return found


@pytest.mark.slow
def test_each_kind_is_compared_by_its_headline_and_as_the_saved_answers_say(command: Command, files: Path) -> None:
    code, out, err = command("compare", files, "--out", "c", "--json", "--workers", "1")
    assert code == 0, err
    result = json.loads(out)
    cells = saved(Path("c"))
    assert {who: len(own) for who, own in cells.items()} == {"together": 2, "alone": 2, "pooled": 2}
    page = Path("c/compare.html").read_text(encoding="utf-8")
    for question in result["questions"][:4]:
        task = question["name"]
        assert question["title"] == HEADLINES[task]
        rows = {row["arm"]: row for row in question["rows"]}
        figures: dict[str, list[list[float]]] = {}
        for arm, who in {"study": "together", "local": "alone", "pooled": "pooled"}.items():
            for arrays in cells[who]:
                sites = []
                for site in ("north", "south"):
                    place = f"{site if who == 'alone' else '*'}/{site}/{task}"
                    sites.append(naive(task, arrays[f"{place}/outputs"], arrays[f"{place}/targets"]))
                figures.setdefault(arm, []).append(sites)
            assert rows[arm]["macro"]["value"] == pytest.approx(np.mean(figures[arm]), abs=1e-6), (task, arm)
        for arm in ("local", "pooled"):
            wanted = np.mean(figures[arm]) - np.mean(figures["study"])
            assert rows[arm]["difference"]["value"] == pytest.approx(wanted, abs=1e-6)
        gained = np.mean(figures["study"], axis=0) - np.mean(figures["local"], axis=0)
        found = rows["study"]["gains"]
        assert [found[site]["value"] for site in ("north", "south")] == pytest.approx(gained.tolist(), abs=1e-6)
        assert f"macro {HEADLINES[task]}" in page
        assert f"{HEADLINES[task]}, minus study" in page
    for question in result["questions"][4:]:
        row = question["rows"][0]
        assert row["control"]["control"] in ("thumbnail", "intensity")
        assert {row["arm"] for row in question["rows"]} == {"study", "thumbnail", "intensity"}
        assert ("study is not clearly below the control" in page) is not row["control"]["clear"]
    with Path("c/compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    by_task = {task: [line for line in lines if line["task"] == task] for task in HEADLINES}
    assert all(line["mae"] and not line["auroc"] for line in by_task["size_mm"])
    assert all(line["dice"] and not line["mae"] for line in by_task["lesion"])
    code, out, _ = command("compare", files, "--out", "c", "--only", "size_mm")
    assert code == 0
    assert {"MAE", "(mm)"} <= set(out.replace("┃", " ").split())
    assert "AUROC" not in out


@pytest.mark.slow
def test_masks_are_held_against_what_says_them_without_a_model(command: Command, files: Path) -> None:
    """Three steps teach nothing, so that where lesions usually lie is as good, and the report says so."""
    data = yaml.safe_load(files.read_text())
    data["tasks"] = [task for task in TASKS if task["name"] in ("lesion", "diagnosis")]
    arms = ["study", "mean_mask", "mean_shade", "local"]
    data["compare"] = {"seeds": 1, "questions": [{"name": "masks", "task": "lesion", "arms": arms}]}
    files.with_name("masks.yaml").write_text(yaml.safe_dump(data))
    code, out, err = command("compare", files.with_name("masks.yaml"), "--out", "m", "--json", "--workers", "1")
    assert code == 0, err
    (question,) = json.loads(out)["questions"]
    rows = {row["arm"]: row for row in question["rows"]}
    assert rows["mean_mask"]["macro"]["value"] > 0.05
    assert rows["study"]["control"]["control"] in ("mean_mask", "mean_shade")
    assert rows["study"]["control"]["clear"] is False
    assert question["alone"] == "local", "a control is nobody's own model"
    plans = {one["arm"]: one for one in question["arms"]}
    assert plans["mean_mask"]["work"]["words"] == "nobody trains"
    assert plans["mean_mask"]["differs"][0] == "answers: mean mask of training cases, no model"
    assert "study is not clearly above the control" in Path("m/compare.html").read_text(encoding="utf-8")


def test_what_a_kind_cannot_be_asked_is_refused_before_anything_is_made(command: Command, files: Path) -> None:
    data = yaml.safe_load(files.read_text())
    for question, fault in (
        ({"task": "lesion", "arms": ["study", "ridge_probe"]}, "sums over features solve no masks"),
        ({"task": "lesion", "arms": ["study", "thumbnail"]}, "sums over features solve no masks"),
        ({"task": "size_mm", "arms": ["study", "mean_mask"]}, "mean_mask answers masks, and size_mm asks for none"),
        (
            {"task": "lesion", "arms": ["study", {"name": "mine", "shortcut": "mean_mask"}]},
            "who: mean_mask is counted at each site, alone",
        ),
        ({"task": "size_mm", "metric": "auroc", "arms": ["study", "local"]}, "auroc is for multiclass and multilabel"),
        ({"task": "sizes", "arms": ["study", "local"]}, "there is no task 'sizes'"),
        (
            {
                "task": "signs",
                "metric": "accuracy",
                "shots": [3],
                "arms": ["new_site", {"name": "none", "who": "nobody"}],
                "against": "none",
            },
            "shots: are so many cases of each class",
        ),
    ):
        asked = data | {"compare": {"questions": [{"name": "q", **question}]}}
        other = files.with_name("other.yaml")
        other.write_text(yaml.safe_dump(asked))
        code, _, err = command("compare", other, "--out", "none")
        assert code == 2
        assert fault in " ".join(err.split())
        assert not Path("none").exists()


def test_pooled_cases_keep_the_size_of_their_pixels() -> None:
    """Of a site that does not know them it is 0, which gives no distance."""
    inputs, targets = images(3)
    cohorts = [cohort(inputs, {"cls": targets}, name=name) for name in ("one", "two", "three")]
    cohorts = [replace(one, spacings=sizes) for one, sizes in zip(cohorts, ((1.0,) * 3, (), (2.5,) * 3), strict=True)]
    assert pool(cohorts).spacings == (1.0,) * 3 + (0.0,) * 3 + (2.5,) * 3
