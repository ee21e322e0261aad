"""A hospital that took no part fits a finished model to its own few cases, offline, and predicts with that."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Command, write_images
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate
from helpers.work import MakeStudy


@pytest.fixture(scope="module")
def run(hospitals: Hospitals, make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites that have trained together, with the sums that others can start from."""
    some = replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in ("east", "south", "west")})
    local = {"epochs": 2, "batch_size": 8, "lr": 0.003}
    study = make_study(
        method={"name": "fedavg", "rounds": 3, "local": local, "ood_detection": True}, evaluate={"every": 0}
    )
    return simulate(study, some, tmp_path_factory.mktemp("adapt") / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new hospital's images."""
    root = tmp_path_factory.mktemp("new") / "images"
    write_images(root, 77, 60)
    return root


def answers(command: Command, run: Path, images: Path, out: str, *more: object) -> list[dict[str, str]]:
    code, _, err = command("predict", run, images, "--out", out, *more)
    assert code == 0, err
    with Path(out, "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", ["tune", "ridge", "ncm", "lda"])
def test_what_was_fitted_is_what_predict_uses(how: str, command: Command, run: Path, images: Path) -> None:
    words = ("site", "adapt", run, "--home", "here", "--data", images, "--kind", "images", "--shots", 5, "--fit", how)
    code, out, err = command(*words, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["cases"], facts["shots"]) == (15, 5)
    assert facts["common_sums"] == (how != "tune")
    plain = answers(command, run, images, "plain")
    own = answers(command, run, images, "own", "--site", "here")
    assert [row["cls:left"] for row in plain] != [row["cls:left"] for row in own]
    # The figures that were shown are those of the model that is used.
    with Path("here/splits.csv").open() as file:
        tested = sum(line.strip().endswith(",test") for line in file)
    assert facts["after"]["cls"]["n"] == tested == facts["before"]["cls"]["n"]
    for figures, rows in ((facts["before"], plain), (facts["after"], own)):
        right = sum(row["cls"] == row["file"].split("/")[0] for row in rows) / len(rows)
        assert abs(figures["cls"]["accuracy"] - right) < 0.35
    assert ("distance" in own[0]) == (how != "tune")  # heads leave the features as they were described
    entries = next(Path("here/adapted").glob("*.safetensors"))
    assert entries.stat().st_mode & 0o077 == 0
    assert set(load_tensors(entries)) == (
        set(load_tensors(run / "model.safetensors")) if how == "tune" else {"heads.cls.weight", "heads.cls.bias"}
    )
    assert not Path("here/egress").exists()


def test_no_more_cases_are_used_than_asked_for(command: Command, run: Path, images: Path) -> None:
    def entries(*more: object) -> bytes:
        words = ("--home", "here", "--data", images, "--kind", "images", "--fit", "ridge")
        assert command("site", "adapt", run, *words, *more)[0] == 0
        return next(Path("here/adapted").glob("*.safetensors")).read_bytes()

    few = entries("--shots", 2)
    assert few == entries("--shots", 2, "--seed", 0)
    assert few != entries("--shots", 2, "--seed", 1)
    assert few != entries("--shots", 9)
    assert entries("--shots", 10) == entries()  # these are all there are


def test_a_class_with_fewer_cases_is_said(command: Command, run: Path, images: Path) -> None:
    words = ("site", "adapt", run, "--home", "here", "--data", images, "--kind", "images")
    code, _, err = command(*words, "--shots", 11)
    assert code == 2
    assert "--shots 11: the site's training patients have only 10 of left, 10 of right, 10 of middle" in err
    assert "Ask for 10 or fewer" in err
    assert not Path("here/adapted").exists()
    code, out, _ = command(*words, "--fit", "ridge")
    assert code == 0
    assert "to 30 training cases." in out
    assert "Nothing left the site" in out


def test_another_model_is_not_taken_for_the_one_it_was_fitted_to(
    command: Command, run: Path, images: Path, hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    words = ("--home", "here", "--data", images, "--kind", "images", "--fit", "ridge")
    other = simulate(make_study(method="ridge_probe", evaluate={"every": 0}), hospitals, tmp_path / "other")
    code, out, _ = command("site", "adapt", other, *words)
    assert code == 0
    assert "heads are from the site's cases alone" in out
    code, _, err = command("predict", run, images, "--out", "p", "--site", "here")
    assert code == 2
    assert "keeps nothing of study test" in err
    path = next(Path("here/adapted").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, _, err = command("predict", other, images, "--out", "q", "--site", "here")
    assert code == 2
    assert "is not as it was written" in err
    assert "Run `fedgraft site adapt` again." in err


def test_a_site_of_the_run_uses_its_own_configuration_and_splits(command: Command, run: Path) -> None:
    home = run / "sites" / "east"
    before = (home / "splits.csv").read_bytes()
    code, out, err = command("site", "adapt", run, "--home", home, "--fit", "lda", "--json")
    assert code == 0, err
    assert json.loads(out)["before"]["cls"] == pytest.approx(
        {k: v for k, v in read_json(run / "result.json")["metrics"]["cls"]["sites"]["east"].items()
         if k in json.loads(out)["before"]["cls"]}
    )  # fmt: skip
    assert (home / "splits.csv").read_bytes() == before
