"""Public data as their owners publish them, made up in small here: what comes out is what the scenarios read."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Command
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.data.tables.table import read_table
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.study import find_study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.real_data.convert.heart import COLUMNS, HOSPITALS


def picture(path: Path, size: tuple[int, int] = (300, 200), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode == "L" else (90, 100, 110)).save(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def nih(root: Path) -> Path:
    entries = ["Image Index,Finding Labels,Follow-up #,Patient ID"]
    findings = ["Pneumonia", "Mass|Pneumonia", "Effusion"] + ["No Finding"] * 5 + ["Pneumonia"]
    for number, finding in enumerate(findings):
        entries.append(f"{number:08d}_000.png,{finding},0,{number // 2}")
        if number < 8:  # the last one's file is not there
            picture(root / f"images_{number % 2:03d}/images/{number:08d}_000.png", mode="RGB")
    (root / "Data_Entry_2017.csv").write_text("\n".join(entries) + "\n")
    return root


def kermany(root: Path) -> Path:
    for name in ("train/PNEUMONIA/person1_bacteria_1", "test/PNEUMONIA/person1_virus_7", "train/NORMAL/IM-0115-0001"):
        picture(root / "chest_xray" / f"{name}.jpeg")
    picture(root / "chest_xray/train/NORMAL/NORMAL2-IM-0285-0001.jpeg")
    picture(root / "elsewhere/person9_virus_9.jpeg")
    (root / "chest_xray/train/NORMAL/IM-0001-0001.jpeg").write_bytes(b"no image")
    return root


def test_chest_x_rays_of_two_owners_become_one_collection_of_four_sites(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data/cxr-pneumonia"
    code, said, err = command("data", "convert", "nih-cxr14", nih(tmp_path / "nih"), "--out", out, "--size", 64)
    assert code == 0, err
    words = " ".join(said.split())
    assert "nih, 4 cases of" in words
    assert "normal 2, pneumonia 2" in words
    assert "1 left out: in the table, and no file." in words
    code, said, err = command("data", "convert", "kermany", kermany(tmp_path / "gz"), "--out", out, "--size", 64)
    assert code == 0, err
    assert "1 left out: unreadable." in said
    assert "1 left out: of another folder, or without a patient's number." in " ".join(said.split())
    table = rows(out / "labels.csv")
    assert [row["label"] for row in table if row["site"] == "nih"] == ["pneumonia", "pneumonia", "normal", "normal"]
    children = {row["file"]: (row["patient"], row["label"], row["detail"]) for row in table if row["site"] != "nih"}
    assert children == {
        "guangzhou/pneumonia_person1_bacteria_1.png": ("gz-person1", "pneumonia", "bacteria"),
        "guangzhou/pneumonia_person1_virus_7.png": ("gz-person1", "pneumonia", "virus"),
        "guangzhou/normal_IM-0115-0001.png": ("gz-im115", "normal", ""),
        "guangzhou/normal_NORMAL2-IM-0285-0001.png": ("gz-im285", "normal", ""),
    }
    for row in table:
        image = Image.open(out / "images" / row["file"])
        assert (image.mode, image.size) == ("L", (64, 43))
    monkeypatch.setenv("FEDGRAFT_REAL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    found = hospitals_of(load_scenario("cxr")).cohorts
    there = [row["file"] for spec in found.values() for row in rows(Path(str(spec.labels)))]
    assert sorted(there) == sorted(row["file"] for row in table)
    code, _, err = command("data", "convert", "kermany", tmp_path / "gz", "--out", out)
    assert code == 2
    assert "has images of guangzhou already" in " ".join(err.split())


def uci(root: Path) -> Path:
    """Four files with `?`, of which the third hospital has one healthy patient."""
    root.mkdir()
    for seed, name in enumerate(HOSPITALS):
        rng, lines = np.random.default_rng(seed), []
        for number in range(40):
            sick = number > 0 if name == "switzerland" else number % 2
            cells = [f"{value:.1f}" for value in rng.integers(1, 4, 13)] + [str(int(sick) * 3)]
            cells[11] = "?"
            if number % 8 == 7:
                cells[4] = "?"
            lines.append(",".join(cells))
        (root / f"processed.{name}.data").write_text("\n".join(lines) + "\n\n")
    return root


def test_heart_tables_have_empty_cells_for_what_is_missing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data/heart-disease"
    code, said, err = command("data", "convert", "uci-heart", uci(tmp_path / "uci"), "--out", out)
    assert code == 0, err
    assert "160 cases of 160 patients (no 61, yes 99)" in " ".join(said.split())
    table = rows(out / "hungarian.csv")
    assert list(table[0]) == ["patient", *COLUMNS, "disease"]
    assert (table[1]["patient"], table[1]["ca"], table[1]["num"], table[1]["disease"]) == (
        "hungarian-002",
        "",
        "3",
        "yes",
    )
    assert (table[7]["chol"], "." in "".join(table[7].values())) == ("", False)
    monkeypatch.setenv("FEDGRAFT_REAL_DATA", str(tmp_path / "data"))
    study, _ = find_study(Path("heart"))
    assert isinstance(study.input, TableInput)
    task = study.tasks[0]
    assert isinstance(task, Task)
    for spec in hospitals_of(load_scenario("heart")).cohorts.values():
        inputs, _, patients, _ = read_table(spec, (task,), study.input)
        assert (len(patients), int(np.isnan(inputs[:, study.input.numeric.index("ca")]).sum())) == (40, 40)


def test_flamby_s_patients_are_complete_and_their_split_is_a_column(command: Command, tmp_path: Path) -> None:
    code, said, err = command("data", "convert", "flamby-heart", uci(tmp_path / "uci"), "--out", tmp_path / "out")
    assert code == 0, err
    assert "20 left out: a value is missing." in said
    for name in HOSPITALS:
        table = rows(tmp_path / "out" / f"{name}.csv")
        assert (len(table), {row["chol"] for row in table} & {""}) == (35, set())
        assert not {"ca", "thal", "slope"} & table[0].keys()
        assert [row["split"] for row in table].count("test") == 12
        tested = [row["disease"] for row in table if row["split"] == "test"]
        assert tested.count("no") == (7 if name != "switzerland" else tested.count("no"))


@pytest.mark.skipif("FEDGRAFT_REAL_DATA" not in os.environ, reason="$FEDGRAFT_REAL_DATA is not set")
def test_the_real_tables_come_back_as_they_are_and_with_flamby_s_numbers(command: Command, tmp_path: Path) -> None:
    """Its published sizes: 199 of 303, 172 of 261, 30 of 46 and 85 of 130 patients train."""
    real, source = Path(os.environ["FEDGRAFT_REAL_DATA"], "heart-disease"), tmp_path / "uci"
    source.mkdir()
    for name in HOSPITALS:
        lines = [",".join(row[column] or "?" for column in COLUMNS) for row in rows(real / f"{name}.csv")]
        (source / f"processed.{name}.data").write_text("\n".join(lines) + "\n")
    assert command("data", "convert", "uci-heart", source, "--out", tmp_path / "uci-out")[0] == 0
    assert all(rows(tmp_path / "uci-out" / f"{name}.csv") == rows(real / f"{name}.csv") for name in HOSPITALS)
    assert command("data", "convert", "flamby-heart", source, "--out", tmp_path / "flamby")[0] == 0
    sizes = []
    for name in HOSPITALS:
        splits = [row["split"] for row in rows(tmp_path / "flamby" / f"{name}.csv")]
        sizes.append((splits.count("train"), splits.count("test")))
    assert sizes == [(199, 104), (172, 89), (30, 16), (85, 45)]


def test_medmnist_keeps_its_split_and_says_that_nobody_is_known(command: Command, tmp_path: Path) -> None:
    file, images = tmp_path / "PneumoniaMNIST.npz", np.random.default_rng(0).integers(0, 255, (6, 28, 28), np.uint8)
    arrays = {f"{split}_images": images[at : at + 2] for at, split in ((0, "train"), (2, "val"), (4, "test"))}
    arrays |= {f"{split}_labels": np.array([[0], [1]], np.uint8) for split in ("train", "val", "test")}
    np.savez(file, **arrays)
    code, _, err = command("data", "convert", "medmnist", file, "--out", tmp_path / "out")
    assert code == 0, err
    table = rows(tmp_path / "out/labels.csv")
    assert [(row["label"], row["split"]) for row in table] == [
        *(("0", "train"), ("1", "train"), ("0", "val")),
        *(("1", "val"), ("0", "test"), ("1", "test")),
    ]
    written = np.asarray(Image.open(tmp_path / "out/images" / table[3]["file"]))
    np.testing.assert_array_equal(written, images[3])
    spec = CohortSpec(
        kind="images",
        root=tmp_path / "out/images",
        labels=tmp_path / "out/labels.csv",
        join="path",
        key_column="file",
        patient_column="patient",
        split_column="split",
    )
    assert spec.split_column == "split"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("uci-heart", "there is no processed.cleveland.data"),
        ("nih-cxr14", "there is no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv"),
        ("kermany", "No image of guangzhou could be read"),
        ("medmnist", "is no file of MedMNIST"),
        ("chexpert", "No data are called 'chexpert'; there are: nih-cxr14, kermany, uci-heart, medmnist, flamby-heart"),
    ],
)
def test_a_source_of_another_kind_is_refused_and_nothing_is_written(
    kind: str, words: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = command("data", "convert", kind, tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2
    assert words in " ".join(err.split())
    assert not (tmp_path / "out/labels.csv").exists()
