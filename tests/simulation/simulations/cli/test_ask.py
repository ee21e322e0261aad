"""`fedgraft study ask` over simulated hospitals, and a run that is pinned to what they answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.asked import BANDS, PLAIN, SCALE, patients, write

SITES = {
    "north": patients(benign=40, malignant=30),
    "south": patients(benign=30, malignant=30, cyst=12, lupus=3),
    "west": patients(benign=30),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study about three hospitals: one has words of its own, and answers in bands; one knows one class alone."""
    entries = []
    for name, rows in SITES.items():
        write(tmp_path / f"{name}.csv", rows)
        cohort: dict[str, Any] = {
            "kind": "table",
            "root": str(tmp_path / f"{name}.csv"),
            "patient_column": "PatientID",
            "label_columns": {"cls": "finding"},
        }
        entry: dict[str, Any] = {"name": name, "cohort": cohort}
        entries.append(entry | ({"policy": BANDS.model_dump(mode="json")} if name == "south" else {}))
    (tmp_path / "hospitals.yaml").write_text(yaml.safe_dump({"name": "asked", "sites": entries}))
    study = {
        "name": "asked",
        "scenario": "hospitals.yaml",
        "tasks": [{"name": "cls", "classes": ["benign", "malignant"]}],
        "input": {"kind": "table", "numeric": ["age", "dose"], "standardise": {"age": SCALE, "dose": SCALE}},
        "model": {"backbone": "table_linear", "weights": None},
        "plan": PLAIN,
        "rounds": {"quorum": 0.5, "min_sites": 1},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    return tmp_path


def test_one_table_and_a_verdict(command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = command("study", "ask", "study.yaml", "--out", "asked")
    assert code == 0, err
    rows: list[list[str]] = []
    for line in filter(lambda line: line.startswith("│"), out.splitlines()):
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells[0]:
            rows.append(cells)
        else:  # the rest of a row that was too wide
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], cells, strict=True)]
    assert rows[0][:4] == ["north", "70", "40", "30"]
    assert rows[1] == ["south", "70 to 99", "30 to 49", "30 to 49", "fewer than 10", "'cyst' 10 to 14", "–"]
    told = json.loads((folder / "asked" / "agreement.json").read_text())
    assert "lupus" not in json.dumps(told)
    against = [point["text"] for point in told["verdict"] if point["kind"] == "against"]
    assert any("south says 'cyst'" in text for text in against)
    assert any("west has one class of task 'cls' alone" in text for text in against)
    assert all(f"against: {text}\n" in out for text in against)


@pytest.mark.slow
def test_a_pinned_run_stops_before_round_1_when_a_site_has_changed(command, folder: Path) -> None:
    write(folder / "south.csv", patients(benign=30, malignant=30))
    write(folder / "west.csv", patients(benign=30, malignant=20))
    assert command("study", "ask", "study.yaml", "--out", "asked")[0] == 0
    write(folder / "west.csv", patients(benign=30, malignant=21))
    code, _, err = command("simulate", "study.yaml", "--agreement", "asked", "--out", "run")
    assert code == 1
    assert "The agreement does not hold: west has other cases than those over which it answered" in err
    assert "fedgraft study ask" in err
    assert "the cases are not those" in (folder / "run" / "sites" / "west" / "site.log").read_text()
    assert not (folder / "run" / "history.jsonl").exists()
    write(folder / "west.csv", patients(benign=30, malignant=20))
    code, out, err = command("simulate", "study.yaml", "--agreement", "asked", "--out", "again")
    assert code == 0, err
    assert "pinned to agreement" in out
    digest = json.loads((folder / "asked" / "agreement.json").read_text())["digest"]
    remarks = json.loads((folder / "again" / "result.json").read_text())["remarks"]
    assert remarks[0].startswith(f"Pinned to agreement {digest[:12]}: north, south, west began")


@pytest.mark.slow
def test_asked_twice_they_say_the_same(command, folder: Path) -> None:
    for name in ("one", "two"):
        code, _, err = command("study", "ask", "study.yaml", "--out", name, "--json")
        assert code == 0, err
    one, two = (json.loads((folder / name / "agreement.json").read_text())["agreement"] for name in ("one", "two"))
    for site in SITES:
        assert one["answers"][site].pop("state") != two["answers"][site].pop("state"), "who asks twice sees no change"
        assert one["answers"][site].pop("seal") != two["answers"][site].pop("seal")
    assert one["answers"] == two["answers"]
