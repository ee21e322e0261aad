"""Runs that train low-rank adapters: what travels, what is saved, and what becomes of it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedgraft as fg
from fedgraft.client.inference.export import export
from fedgraft.client.inference.model import LoadedModel
from fedgraft.common.base.errors import StudyError
from fedgraft.common.checks.explain import explain, sentence
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import load_weights
from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.api.trained_model import TrainedModel
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate
from helpers.work import MakeStudy

MODEL = {"backbone": "slim_resnet", "weights": None, "adapters": {"rank": 2, "where": "all"}}
LOCAL = {"steps": 4, "batch_size": 8, "lr": 0.02}


def a_study(make_study: MakeStudy, method: str, rounds: int = 2, **more: Any) -> Study:
    own = {} if "plan" in more else {"method": {"name": method, "rounds": rounds, "local": LOCAL}}
    return make_study(**({"model": MODEL, "evaluate": {"every": 0, "floor": 1}} | own | more))


@pytest.fixture(scope="module")
def two(hospitals: Hospitals) -> Hospitals:
    return Hospitals({name: hospitals.cohorts[name] for name in ("north", "west")})


@pytest.fixture(scope="module")
def run(make_study: MakeStudy, two: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(a_study(make_study, "lora", 3), two, tmp_path_factory.mktemp("lora") / "run")


@pytest.fixture(scope="module")
def images(two: Hospitals) -> list[Path]:
    return sorted(two.cohorts["west"].root.rglob("*.png"))[:9]


def test_the_body_stays_and_travels_once(run: Path, make_study: MakeStudy) -> None:
    study = a_study(make_study, "lora", 3)
    start, (_, end) = initialise(study).state(), load_weights(str(run))
    moved = {key for key, array in end.items() if not np.array_equal(array, start[key])}
    assert moved == {key for key in end if "lora" in key or key.startswith("heads.")}
    rows = RunFolder(run).history()
    body = sum(array.nbytes for key, array in end.items() if key not in moved)
    first, *others = [row["bytes_down"] for row in rows if row["stage"] == "train"]
    assert first > 2 * body, "to two sites"
    assert max(others) < body / 2
    assert max(row["bytes_up"] for row in rows) < body / 2


def test_merged_weights_are_plain_and_answer_as_the_run_does(
    run: Path, images: list[Path], make_study: MakeStudy, two: Hospitals, tmp_path: Path
) -> None:
    wanted = fg.load_run(run).model().predict(images).answers["cls"]
    plain = export(LoadedModel(str(run)), str(run), "safetensors", tmp_path / "plain")
    manifest, entries = load_weights(str(plain))
    assert manifest.adapters is None
    assert not any("lora" in key for key in entries)
    found = TrainedModel(str(plain), None).predict(images).answers["cls"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    study = make_study(model={"backbone": "slim_resnet", "weights": str(run), "heads": "weights"}, method="fedavg")
    taken = initialise(study).state()
    assert all(np.array_equal(taken[key], array) for key, array in entries.items())


def test_a_later_study_with_the_same_adapters_goes_on_with_them(run: Path, make_study: MakeStudy) -> None:
    _, entries = load_weights(str(run))
    again = initialise(a_study(make_study, "lora", model=MODEL | {"weights": str(run)})).state()
    assert all(np.array_equal(again[key], array) for key, array in entries.items() if key.startswith("backbone."))
    other = MODEL | {"weights": str(run), "adapters": {"rank": 3, "where": "all"}}
    fresh = initialise(a_study(make_study, "lora", model=other)).state()
    weight = "backbone.blocks.0.conv1.weight"
    assert not np.array_equal(fresh[weight], entries[weight]), "others are merged, and new ones begin"
    assert not any(array.any() for key, array in fresh.items() if "lora_b" in key)


def test_with_a_alone_shared_each_site_has_its_own_model(
    make_study: MakeStudy, two: Hospitals, images: list[Path], tmp_path: Path
) -> None:
    run = fg.load_run(simulate(a_study(make_study, "fedsa_lora"), two, tmp_path / "run"))
    _, entries = load_weights(str(tmp_path / "run"))
    assert not any(array.any() for key, array in entries.items() if "lora_b" in key), "B never left a site"
    own = [run.model(site).predict(images).answers["cls"] for site in ("north", "west")]
    common = run.model().predict(images).answers["cls"]
    assert min(float(np.abs(a - b).max()) for a, b in ((own[0], own[1]), (own[0], common))) > 1e-3


def test_products_are_averaged_in_a_run_and_hidden_from_nobody(
    make_study: MakeStudy, two: Hospitals, tmp_path: Path
) -> None:
    run = simulate(a_study(make_study, "lora_product"), two, tmp_path / "run")
    _, entries = load_weights(str(run))
    rows = entries["backbone.blocks.0.conv1.lora_a.weight"].reshape(2, -1)
    assert abs(float(rows[0] @ rows[1])) < 1e-5 * float(rows[0] @ rows[0]), "at right angles"
    with pytest.raises(StudyError, match="adapters_product looks at the sites one by one"):
        explain(a_study(make_study, "lora_product", secure_aggregation=True), "here")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("lora", "A and B each for itself (FedIT), which is not the mean of what they add, B A"),
        (
            "lora_product",
            "aggregated by adapters_product (weight examples), of adapters what they add, B A, split again",
        ),
        ("fedsa_lora", "of adapters A alone, each site has its own B (FedSA-LoRA)"),
        ("ffa_lora", "A stays as it was drawn, so that the mean of B is that of what they add (FFA-LoRA)"),
    ],
)
def test_what_is_averaged_is_said(make_study: MakeStudy, method: str, says: str) -> None:
    study = a_study(make_study, method)
    (row,) = explain(study, "here").rows
    assert says in sentence(study.plan[0], row)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"backbone": "slim_resnet"}}, "selects adapters, and the model has none"),
        ({"plan": [{"name": "t", "local": {"steps": 1, "kind": "gradient"}}]}, "no stage trains them; train"),
        (
            {"plan": [{"name": "t", "local": {"steps": 1, "train": "adapters_b", "kind": "gradient"}}]},
            "adapters_product averages what A and B give together",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make_study: MakeStudy, changes: dict[str, Any], says: str) -> None:
    for stage in changes.get("plan", []):
        adapts = "train" in stage["local"]
        stage |= {"share": "adapters" if adapts else "all"}
        stage |= {"aggregate": {"kind": "adapters_product" if adapts else "mean"}}
    with pytest.raises(StudyError) as caught:
        explain(a_study(make_study, "lora", **changes), "here")
    assert says in str(caught.value)


@pytest.mark.slow
def test_a_vision_transformer_may_be_trained_privately_by_its_adapters_alone(make_study: MakeStudy) -> None:
    private = {"noise_multiplier": 1.0, "sample_rate": 0.5}
    local = {"steps": 1, "private": private, "fixed_norm_stats": True}
    model = {"backbone": "vit_b_32", "weights": None, "adapters": {"rank": 2}}
    explain(make_study(model=model, method={"name": "lora", "local": local}), "here")
    more = {"name": "t", "local": local | {"kind": "gradient", "train": {"roles": ["body", "adapter_a", "adapter_b"]}}}
    with pytest.raises(StudyError, match=r"vit_b_32 has attention .* give it adapters"):
        explain(make_study(model=model, plan=[more | {"keep": "all"}]), "here")
