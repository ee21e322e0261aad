"""Choosing before training: what the ranks say is what training then finds, and sites alike are not told apart."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Command

QUICKSTART = "quickstart"


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
