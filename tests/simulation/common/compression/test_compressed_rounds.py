"""Rounds in which changes come back in fewer bytes: what is learnt, what travels, and what kills and liars do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.compression import changes
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Engine, Hospitals
from helpers.simulated import resume, simulate, stopped_at
from helpers.work import MakeStudy

LOCAL = {"epochs": 1, "batch_size": 8, "lr": 0.003}


def asked(make_study: MakeStudy, compress: object, rounds: int = 4, **local: object) -> Study:
    plan = make_study(method={"name": "fedavg", "rounds": rounds, "local": LOCAL | local}).plan[0]
    return make_study(plan=[plan.model_dump(mode="json") | {"compress": compress}])


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(hospitals: Hospitals, make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(asked(make_study, "none"), hospitals, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("bf16", 0.52), ("int8", 0.28), ("topk", 0.11)])
def test_as_much_is_learnt_from_fewer_bytes(
    whole: Path, hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, kind: str, most: float
) -> None:
    run = simulate(asked(make_study, kind), hospitals, tmp_path / "run")
    share = sum(row["bytes_up"] for row in rows(run)[:4]) / sum(row["bytes_up"] for row in rows(whole)[:4])
    assert share < most
    figures = [read_json(one / "result.json")["metrics"]["cls"]["pooled"]["auroc"] for one in (run, whole)]
    assert figures[0] > figures[1] - 0.02
    state, other = load_tensors(run / "model.safetensors"), load_tensors(whole / "model.safetensors")
    assert any((state[key] != other[key]).any() for key in state)
    assert rows(run)[-1]["bytes_down"] == rows(whole)[-1]["bytes_down"], "what comes down is whole"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_was_left_out(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = asked(make_study, "topk")
    one = load_tensors(simulate(study, hospitals, tmp_path / "one") / "model.safetensors")
    cut = stopped_at(study, hospitals, tmp_path / "cut", exchange=2)
    other = load_tensors(resume(cut, Engine(name="pool")) / "model.safetensors")
    assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_private_changes_are_rounded_after_the_noise(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    local = {"epochs": None, "steps": 2, "fixed_norm_stats": True, "private": {"epsilon": 8.0, "sample_rate": 0.2}}
    run = simulate(asked(make_study, "int8", 2, **local), hospitals, tmp_path / "run")
    assert read_json(run / "result.json")["status"] == "completed"
    assert sum(row["bytes_up"] for row in rows(run)[:2]) < 0.3 * sum(row["bytes_down"] for row in rows(run)[:2])


@pytest.mark.slow
def test_who_sends_what_nobody_can_have_written_loses_its_own_round(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = changes.written, []

    def lying(*args: object) -> tuple[dict[str, np.ndarray], changes.Residual]:
        sent, residual = honest(*args)  # type: ignore[arg-type]
        seen.append(len(seen))
        if len(seen) == 2:  # the second site of the first round
            sent = {k: np.full_like(a, np.inf) if "compress-scales" in k else a for k, a in sent.items()}
        return sent, residual

    monkeypatch.setattr("fedgraft.client.runtime.visit.work.written", lying)
    run = simulate(asked(make_study, "int8", 2), hospitals, tmp_path / "run", Engine(name="inprocess"))
    first, second = rows(run)[:2]
    assert list(first["missing"].values()) == ["garbage"]
    assert len(first["sites_aggregated"]) == 3
    assert not second["missing"]
