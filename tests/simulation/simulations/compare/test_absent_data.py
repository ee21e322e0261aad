"""A question whose data are not on this machine is left out with a word; one that is asked for by name is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from conftest import Command
from fedgraft.common.base.files import CONFIGS


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two questions: one about a table that ships, one about hospitals that are elsewhere."""
    monkeypatch.delenv("FEDGRAFT_REAL_DATA", raising=False)
    content = yaml.safe_load((CONFIGS / "studies/breast_cancer.yaml").read_text())
    content["method"] = "logistic_probe"
    content["evaluate"] = {"every": 0}
    content["model"] = {"backbone": "table_linear", "weights": None}
    arms = ["study", {"name": "ridge", "method": "ridge_probe"}]
    questions = [
        {"name": "here", "arms": arms},
        {"name": "elsewhere", "arms": arms, "scenario": "heart"},
    ]
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump(content | {"name": "both", "compare": {"questions": questions}}))
    return path


@pytest.mark.slow
def test_a_question_without_its_data_is_left_out_with_a_word(command: Command, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = command("compare", study, "--seeds", 1, "--out", out, "--workers", 1, "--json")
    words = " ".join(err.split())
    assert code == 0, words
    assert "Question elsewhere is left out. cleveland: $FEDGRAFT_REAL_DATA" in words
    assert "fedgraft data convert uci-heart" in words
    (question,) = json.loads(said)["questions"]
    assert question["name"] == "here"
    assert [one["work"]["words"] for one in question["arms"]] == ["no gradient", "no gradient"]
    code, _, err = command("compare", study, "--only", "elsewhere", "--out", tmp_path / "other")
    assert code == 2
    assert "cleveland: $FEDGRAFT_REAL_DATA, the folder with its data, is not set" in " ".join(err.split())
