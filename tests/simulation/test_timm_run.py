"""A run on one of timm's networks: from a file of weights to answers, with adapters alone on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

import fedgraft as fg
from fedgraft.common.models.weights import load_weights
from fedgraft.simulations.engines.run import Hospitals
from fedgraft.simulations.weights.weights_import import WeightsSource, import_weights
from helpers.simulated import simulate
from helpers.work import MakeStudy


@pytest.mark.slow
def test_weights_from_a_file_are_trained_by_adapters_saved_and_asked(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    network = timm.create_model("test_vit", pretrained=False, num_classes=7)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    import_weights(WeightsSource(tmp_path / "w.safetensors", "timm/test_vit", "MIT"), "my-vit")
    model = {"backbone": "timm/test_vit", "weights": "my-vit", "adapters": {"rank": 2}}
    method = {"name": "lora", "rounds": 1, "local": {"steps": 2, "batch_size": 8, "lr": 0.01}}
    two = Hospitals({name: hospitals.cohorts[name] for name in ("north", "west")})
    run = simulate(make_study(model=model, method=method, evaluate={"every": 0, "floor": 1}), two, tmp_path / "run")
    manifest, entries = load_weights(str(run))
    assert (manifest.backbone, manifest.adapters is not None) == ("timm/test_vit", True)
    key = "blocks.3.attn.qkv.weight"
    assert np.array_equal(entries[f"backbone.{key}"], network.state_dict()[key].numpy())
    assert any(array.any() for key, array in entries.items() if "lora_b" in key)
    assert entries["backbone.pos_embed"].shape == (1, 1 + 2 * 2, 64), "32 pixels are 2 x 2 patches"
    answers = fg.load_run(run).model().predict(sorted(two.cohorts["west"].root.rglob("*.png"))[:4]).answers["cls"]
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
