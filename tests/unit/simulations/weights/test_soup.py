"""The mean of finished models, as weights of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.models.model import build_model, state_arrays
from fedgraft.common.models.weights import load_weights, save_weights, verify
from fedgraft.common.study.inputs import ImageInput
from fedgraft.simulations.weights.soup import soup


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))


def finished(folder: Path, seed: int, batches: int = 10, **more: object) -> str:
    arrays = {
        key: array.copy()
        for key, array in state_arrays(build_model("slim_resnet", {"cls": 2}, channels=1, seed=seed)).items()
    }
    arrays |= {key: np.array(batches) for key in arrays if key.endswith("num_batches_tracked")}
    facts = {"id": folder.name, "backbone": "slim_resnet", "input": ImageInput(), "classes": {"cls": ("a", "b")}}
    facts |= {"trained_on": "noise", "licence": f"L{seed}", "synthetic": True, "how": "by hand", "held_out": "seed 0"}
    save_weights(folder, arrays, facts | more)
    return str(folder)


def test_a_soup_is_the_mean_entry_by_entry(tmp_path: Path) -> None:
    refs = [finished(tmp_path / f"run{seed}", seed, batches) for seed, batches in enumerate((10, 11, 11))]
    manifest, folder = soup(refs, "broth")
    assert verify("broth") == manifest
    assert folder == tmp_path / "home" / "weights" / "broth"
    found, parts = load_weights("broth")[1], [load_weights(ref)[1] for ref in refs]
    for key, array in found.items():
        plain = np.mean([part[key].astype(np.float64) for part in parts], axis=0)
        assert array.dtype == parts[0][key].dtype
        plain = np.rint(plain) if array.dtype.kind == "i" else plain
        np.testing.assert_allclose(array, plain, rtol=1e-6, atol=1e-7)
    assert found["backbone.bn1.num_batches_tracked"] == 11
    assert (manifest.licence, manifest.held_out) == ("L0 and L1 and L2", "seed 0")
    assert "run0 (" in manifest.how


def test_a_soup_of_copies_is_the_model_itself(tmp_path: Path) -> None:
    ref = finished(tmp_path / "run", 5)
    soup([ref, ref, ref], "same")
    for key, array in load_weights(ref)[1].items():
        assert load_weights("same")[1][key].tobytes() == array.tobytes()


def test_models_that_held_out_other_patients_make_a_soup_that_does_not_say(tmp_path: Path) -> None:
    refs = [finished(tmp_path / "a", 1), finished(tmp_path / "b", 2, held_out="seed 9")]
    assert not soup(refs, "mixed")[0].held_out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"backbone": "resnet18"}, "differs from .* in backbone"),
        ({"input": ImageInput(size=96)}, "in input"),
        ({"classes": {"cls": ("b", "a")}}, "in classes"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path: Path, more: dict[str, object], says: str) -> None:
    refs = [finished(tmp_path / "a", 1), finished(tmp_path / "b", 2, **more)]
    with pytest.raises(WeightsError, match=says):
        soup(refs, "odd")
    assert not (tmp_path / "home" / "weights" / "odd").exists()


def test_a_soup_of_one_or_under_a_taken_name_is_refused(tmp_path: Path) -> None:
    refs = [finished(tmp_path / "a", 1), finished(tmp_path / "b", 2)]
    with pytest.raises(WeightsError, match="two finished models"):
        soup(refs[:1], "one")
    soup(refs, "taken")
    with pytest.raises(WeightsError, match="there already"):
        soup(refs, "taken")
