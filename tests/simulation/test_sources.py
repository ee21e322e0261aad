"""Plans with a source, end to end: who is asked, what travels, who is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.run import Engine, Hospitals
from helpers.simulated import resume, simulate

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.003}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def method(name: str, **more: Any) -> dict[str, Any]:
    return {"method": {"name": name, "rounds": 2, "local": LOCAL}} | more


@pytest.fixture
def with_public(hospitals: Hospitals) -> Hospitals:
    """One of the sites stands for the coordinator, with public data."""
    return replace(hospitals, public_sources={"south"})


@pytest.fixture
def with_folders(hospitals: Hospitals, tmp_path: Path) -> Hospitals:
    """Every site has the cases of another beside its own, and one has no labels of its own."""
    root = hospitals.cohorts["west"].root
    table = tmp_path / "west.csv"
    table.write_text("path,cls\n" + "".join(f"{p.relative_to(root)},\n" for p in sorted(root.rglob("*.png"))))
    blank = CohortSpec(kind="images", root=root, labels=table, join="path")
    south = hospitals.cohorts["south"]
    names = [name for name in hospitals.cohorts if name != "south"]
    cohorts = {name: hospitals.cohorts[name] for name in names} | {"west": blank}
    return replace(hospitals, cohorts=cohorts, sources=dict.fromkeys(names, south))


def test_three_steps_source_then_sites_then_each_site(with_public, make_study, tmp_path):
    run = simulate(make_study(**method("three_step")), with_public, tmp_path / "run")
    asked = {row["stage"]: row["sites_asked"] for row in rows(run)}
    others = ["east", "north", "west"]
    assert asked == {"pretrain": ["south"], "finetune": others, "adapt": others, "evaluate": others}
    assert set(read_json(run / "result.json")["metrics"]["cls"]["sites"]) == set(others)


def test_a_hospital_that_allows_nothing_plain_is_not_asked_by_a_stage_for_the_source(with_public, make_study, tmp_path):
    """The source's stage needs no leave of the hospitals: nothing of theirs leaves in it."""
    strict = SitePolicy(allow_non_dp=False, metrics="exact", min_patients=1)
    hospitals = replace(with_public, policies=dict.fromkeys(("east", "north", "west"), strict))
    adapt = {"name": "adapt", "local": {"kind": "recalibrate"}, "keep": "norm_stats", "aggregate": {"kind": "nothing"}}
    pretrain = {"name": "pretrain", "where": "source", "local": {"kind": "gradient", **LOCAL}, "share": "all"}
    run = simulate(make_study(plan=[pretrain | {"aggregate": {"kind": "mean"}}, adapt]), hospitals, tmp_path / "run")
    assert read_json(run / "result.json")["status"] == "completed"


def test_moments_of_the_source_reach_the_sites_and_no_image_does(with_public, make_study, tmp_path):
    run = simulate(make_study(**method("moment_alignment")), with_public, tmp_path / "run")
    stages = {row["stage"]: row for row in rows(run)}
    assert stages["release"]["sites_aggregated"] == ["south"]
    assert stages["align"]["sites_aggregated"] == ["east", "north", "west"]
    assert (run / "model.safetensors").stat().st_size > 0
    assert set(load_tensors(run / "model.safetensors")) == set(_released(run))


def _released(run: Path) -> set[str]:
    """Names in the final model, which has no moments in it."""
    return {name for name in load_tensors(run / "model.safetensors") if name.startswith(("backbone.", "heads."))}


@pytest.mark.parametrize("name", ["dann", "cdan", "coral", "mmd", "joint_at_sites"])
def test_sites_with_a_source_beside_their_cases_take_part_with_labels_or_without(
    with_folders, make_study, tmp_path, name: str
):
    run = simulate(make_study(**method(name)), with_folders, tmp_path / "run")
    trained = [row for row in rows(run) if row["stage"] != "evaluate"]
    want = ["east", "north"] if name == "joint_at_sites" else ["east", "north", "west"]
    assert all(row["sites_aggregated"] == want for row in trained)
    if name in ("dann", "cdan"):
        assert any(key.startswith("domain_discriminators.") for key in load_tensors(run / "model.safetensors"))


@pytest.mark.parametrize("name", ["shot_im", "pseudo_label"])
def test_sites_that_teach_themselves_share_nothing_of_it(hospitals, make_study, tmp_path, name: str):
    run = simulate(make_study(**method(name)), hospitals, tmp_path / "run")
    adapted = [row for row in rows(run) if row["stage"] == "adapt"]
    assert len(adapted) == 2
    assert all(set(figures) >= {"undone"} for row in adapted for figures in row["train"].values())
    assert max(row["bytes_up"] for row in adapted) < 20_000
    common = load_tensors(run / "model.safetensors")
    for site in hospitals.cohorts:
        kept = load_tensors(sorted((run / "sites" / site / "local_state").rglob("*.safetensors"))[-1])
        assert kept.keys() == {key for key in common if not key.startswith("heads.")}
        undone = all(row["train"][site]["undone"] for row in adapted)
        assert undone == all(np.array_equal(kept[key], common[key]) for key in kept)


def test_a_plan_for_a_source_that_nobody_holds_stops_before_its_first_round(hospitals, make_study, tmp_path):
    with pytest.raises(QuorumError, match=r"pretrain.*holds the source"):
        simulate(make_study(**method("three_step")), hospitals, tmp_path / "run")
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_a_pool_gives_the_same_with_critics(with_folders, make_study, tmp_path):
    one = simulate(make_study(**method("dann")), with_folders, tmp_path / "one")
    two = simulate(make_study(**method("dann")), with_folders, tmp_path / "two", Engine(name="pool", workers=2))
    assert _same(one, two)


class Stopped(Exception):
    """A run that is stopped from outside."""


@pytest.mark.slow
@pytest.mark.parametrize("last", [3, 4])
def test_moments_outlast_a_run_that_is_stopped(with_public, make_study, tmp_path, monkeypatch, last: int):
    """They are released in exchange 3, and sent to the sites in 4 and 5."""
    study = make_study(**method("moment_alignment"))
    whole = simulate(study, with_public, tmp_path / "whole")
    save = RunFolder.save_checkpoint

    def interrupted(self: RunFolder, exchange: int, *rest: Any) -> None:
        if exchange > last:
            raise Stopped
        save(self, exchange, *rest)

    monkeypatch.setattr(RunFolder, "save_checkpoint", interrupted)
    with pytest.raises(Stopped):
        simulate(study, with_public, tmp_path / "cut")
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    resume(tmp_path / "cut")
    assert _same(whole, tmp_path / "cut")


def _same(left: Path, right: Path) -> bool:
    one, other = (load_tensors(run / "model.safetensors") for run in (left, right))
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
