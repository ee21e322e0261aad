"""Where real data lie, and one hospital's images as several sites: on images and tables that are made up here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from conftest import Command
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import Scenario


@pytest.fixture
def collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hospitals' images in one folder: nine patients of `here` with two images each, three of `there`."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    root, rows = tmp_path / "data", []
    for number in range(12):
        site = "here" if number < 9 else "there"
        for image in range(2 if number < 9 else 1):
            name = f"{site}/{number}_{image}.png"
            (root / "images" / site).mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), number * 10 + image).save(root / "images" / name)
            rows.append({"patient": f"p{number}", "file": name, "label": "ab"[number % 2], "site": site})
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setenv("SOME_DATA", str(root))
    return root


def scenario(*parts: dict[str, object], **cohort: object) -> Scenario:
    spec = {
        "kind": "images",
        "root": "$SOME_DATA/images",
        "labels": "$SOME_DATA/labels.csv",
        "join": "path",
        "key_column": "file",
        "patient_column": "patient",
    }
    sites = [{"name": f"s{number}", "cohort": spec | cohort, "part": part} for number, part in enumerate(parts)]
    return Scenario.parse({"name": "parts", "sites": sites, "originals": "Ask the archive for it."})


def patients(spec: CohortSpec) -> set[str]:
    assert spec.labels is not None
    with spec.labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {
        path.relative_to(spec.root).as_posix() for path in spec.root.rglob("*.png")
    }
    return {row["patient"] for row in rows}


def test_each_patient_of_a_hospital_is_at_one_of_its_sites(collection: Path) -> None:
    asked = [{"column": "site", "value": "here", "number": number, "of": 2} for number in (1, 2)]
    found = hospitals_of(scenario(*asked, {"column": "site", "value": "there"})).cohorts
    first, second, other = (patients(found[name]) for name in ("s0", "s1", "s2"))
    assert not first & second
    assert first | second == {f"p{number}" for number in range(9)}
    assert (len(first), len(second), other) == (5, 4, {"p9", "p10", "p11"})
    again = hospitals_of(scenario(*asked)).cohorts
    assert again["s0"] == found["s0"]


def test_what_a_table_has_not_is_told(collection: Path) -> None:
    with pytest.raises(InputError, match=r"no row has 'elsewhere' in column 'site'; there are: here, there"):
        hospitals_of(scenario({"column": "site", "value": "elsewhere"}))
    with pytest.raises(InputError, match="has no column 'hospital'"):
        hospitals_of(scenario({"column": "hospital", "value": "here"}))


def test_a_part_without_patients_or_beyond_the_last_is_refused() -> None:
    with pytest.raises(StudyError, match="patient_column"):
        scenario({"column": "site", "value": "here"}, patient_column=None)
    with pytest.raises(StudyError, match="number 3 is above of: 2"):
        scenario({"column": "site", "value": "here", "number": 3, "of": 2})


def test_data_that_are_not_there_are_told_with_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    part = {"column": "site", "value": "here"}
    monkeypatch.delenv("SOME_DATA", raising=False)
    with pytest.raises(InputError, match=r"s0: \$SOME_DATA, the folder with its data, is not set.*Ask the archive"):
        hospitals_of(scenario(part))
    monkeypatch.setenv("SOME_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"s0: there is no .*nowhere/images.*Ask the archive"):
        hospitals_of(scenario(part))


def test_a_benchmark_without_its_data_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.delenv("FEDGRAFT_REAL_DATA", raising=False)
    for words in (("simulate", "heart", "--out", tmp_path / "run"), ("compare", "heart", "--out", tmp_path / "other")):
        code, _, err = command(*words)
        said = " ".join(err.split())
        assert code == 2
        assert "cleveland: $FEDGRAFT_REAL_DATA, the folder with its data, is not set" in said
        assert "fedgraft data convert uci-heart FOLDER --out DIR/heart-disease" in said
