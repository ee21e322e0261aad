"""Pretrained weights: kept whole, grafted entry by entry, taken in from torch's and torchvision's files."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer

from fedgraft.common.base.errors import WeightsError
from fedgraft.common.models.initialise import graft
from fedgraft.common.models.model import TransferModel, build_model, state_arrays
from fedgraft.common.models.weights import (
    find,
    list_weights,
    load_manifest,
    load_weights,
    save_weights,
    verify,
)
from fedgraft.common.study.inputs import ImageInput
from fedgraft.simulations.weights.weights_import import WeightsSource, import_weights

FACTS = {
    "id": "mine",
    "backbone": "slim_resnet",
    "input": ImageInput(),
    "classes": {},
    "trained_on": "noise",
    "licence": "CC0-1.0",
    "synthetic": True,
    "how": "by hand",
}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))


def entries(seed: int, channels: int = 3, backbone: str = "slim_resnet") -> dict[str, np.ndarray]:
    model = build_model(backbone, {"cls": 2}, channels=channels, seed=seed)
    rng = np.random.default_rng(seed)
    arrays = {key: value.copy() for key, value in state_arrays(model).items()}
    for key, value in arrays.items():
        if key.endswith(("running_mean", "running_var")):
            value[...] = rng.uniform(0.5, 2, value.shape)
        if key.endswith("num_batches_tracked"):
            value[...] = 11
    return arrays


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    arrays = entries(1) | {"backbone.turned": np.arange(6.0).reshape(2, 3).T}
    saved = save_weights(tmp_path / "w", arrays, FACTS)
    manifest, back = load_weights(str(tmp_path / "w"))
    assert manifest == saved == verify(str(tmp_path / "w"))
    assert set(back) == set(arrays)
    for key, array in arrays.items():
        assert (back[key].shape, back[key].dtype) == (array.shape, array.dtype)
        assert np.array_equal(back[key], array)
    counter = back["backbone.bn1.num_batches_tracked"]
    assert (counter.shape, counter.dtype, int(counter)) == ((), np.int64, 11)


def test_weights_are_found_by_id_and_by_folder(tmp_path: Path) -> None:
    save_weights(tmp_path / "home" / "weights" / "mine", entries(1), FACTS)
    assert find("mine") == tmp_path / "home" / "weights" / "mine"
    assert load_manifest(str(tmp_path / "home" / "weights" / "mine")).id == "mine"
    assert "mine" in {manifest.id for manifest in list_weights()}
    with pytest.raises(WeightsError, match=r"No weights are called 'others'\. Known ids: .*mine"):
        find("others")


def test_the_weights_that_ship_are_whole() -> None:
    shipped = [path.parent.name for path in Path("configs/weights").glob("*/model.json")]
    assert shipped
    for name in shipped:
        manifest = verify(name)
        size, channels = manifest.input.size, manifest.input.channels
        model = build_model(manifest.backbone, {}, channels=channels, seed=0, size=size)
        assert graft(model, load_weights(name)[1], name).adapted == ()


def test_all_that_does_not_fit_is_said_at_once() -> None:
    arrays = entries(1)
    del arrays["backbone.bn1.bias"]
    del arrays["backbone.blocks.0.bn1.num_batches_tracked"]
    arrays["backbone.more.weight"] = np.zeros(2, np.float32)
    arrays["backbone.blocks.1.conv1.weight"] = np.zeros((1, 1), np.float32)
    arrays["backbone.bn1.weight"] = np.zeros(17, np.float32)
    model = build_model("slim_resnet", {"cls": 2}, channels=3, seed=0)
    before = {key: value.copy() for key, value in state_arrays(model).items()}
    with pytest.raises(WeightsError) as caught:
        graft(model, arrays, "their.file")
    assert str(caught.value).splitlines() == [
        "their.file: does not fit the backbone:",
        "  - backbone.blocks.0.bn1.num_batches_tracked: missing",
        "  - backbone.bn1.bias: missing",
        "  - backbone.more.weight: not in this backbone",
        "  - backbone.blocks.1.conv1.weight: is (1, 1), must be (32, 16, 3, 3)",
        "  - backbone.bn1.weight: is (17,), must be (16,)",
    ]
    assert all(np.array_equal(before[key], value) for key, value in state_arrays(model).items())


@pytest.mark.parametrize("shape", [(16,), (16, 7, 3, 3), (16, 2, 3, 3), (16, 1, 5, 5), (8, 3, 3, 3), ()])
def test_a_stem_that_cannot_be_adapted_is_named(shape: tuple[int, ...]) -> None:
    arrays = entries(1) | {"backbone.conv1.weight": np.zeros(shape, np.float32)}
    with pytest.raises(WeightsError, match=r"backbone\.conv1\.weight: is \("):
        graft(build_model("slim_resnet", {}, channels=3, seed=0), arrays, "theirs")


def test_a_stems_bias_of_the_wrong_shape_is_named() -> None:
    arrays = entries(1, backbone="convnext_tiny") | {"backbone.features.0.0.bias": np.zeros(3, np.float32)}
    with pytest.raises(WeightsError, match=r"features\.0\.0\.bias: is \(3,\), must be \(96,\)"):
        graft(build_model("convnext_tiny", {}, channels=3, seed=0), arrays, "theirs")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_no_finite_numbers_are_named(bad: float) -> None:
    arrays = entries(1)
    arrays["backbone.bn1.weight"][3] = bad
    arrays["backbone.bn1.bias"] = arrays["backbone.bn1.bias"] > 0
    with pytest.raises(WeightsError) as caught:
        graft(build_model("slim_resnet", {}, channels=3, seed=0), arrays, "theirs")
    for key in ("backbone.bn1.weight", "backbone.bn1.bias"):
        assert f"{key}: must hold finite real numbers" in str(caught.value)


@pytest.mark.parametrize("backbone", ["slim_resnet", "resnet18", "densenet121"])
@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (1, 3), (3, 3), (1, 1)])
def test_a_grey_image_looks_the_same_to_an_adapted_stem(backbone: str, given: int, wanted: int) -> None:
    source = build_model(backbone, {"other": 4}, channels=given, seed=1).eval()
    target = build_model(backbone, {"cls": 2}, channels=wanted, seed=2).eval()
    fresh = state_arrays(target)["heads.cls.weight"].copy()
    report = graft(target, state_arrays(source), "theirs")
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        theirs, ours = (m.features(grey.expand(-1, c, -1, -1)) for m, c in ((source, given), (target, wanted)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(report.adapted) == (given != wanted)
    assert report.fresh == ("heads.cls.weight", "heads.cls.bias")
    assert report.ignored == ("heads.other.bias", "heads.other.weight")
    assert len(report.loaded) + len(report.adapted) + 2 == len(target.tags())
    assert np.array_equal(state_arrays(target)["heads.cls.weight"], fresh)


# Files from elsewhere.


def torchvision_state(name: str) -> tuple[OrderedDict[str, Tensor], torch.nn.Module]:
    torch.manual_seed(3)
    model = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
    return model.state_dict(), model


def same_features(network: torch.nn.Module, backbone: str, name: str, size: int = 64) -> TransferModel:
    """The imported backbone, after seeing that a head put on it answers as the whole network does."""
    model = build_model(backbone, {}, channels=3, seed=0, size=size).eval()
    graft(model, load_weights(name)[1], name)
    head = [part for part in network.modules() if isinstance(part, torch.nn.Linear)][-1]
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(head(model.features(x)), network(x), rtol=1e-4, atol=1e-4)
    return model


@pytest.mark.parametrize("form", ["plain", "state_dict", "module", "safetensors", "bfloat16"])
def test_resnet_in_every_wrapping(tmp_path: Path, form: str) -> None:
    state, network = torchvision_state("resnet18")
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(dict(state), path)
    elif form == "bfloat16":
        halved = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
        network.load_state_dict(halved)
        torch.save(halved, path)
    else:
        prefix = "module." if form == "module" else ""
        content = {prefix + key: value for key, value in state.items()}
        torch.save({"state_dict": content, "epoch": 3} if form == "state_dict" else content, path)
    manifest, report = import_weights(WeightsSource(path, "resnet18", "BSD-3-Clause"), "theirs")
    assert report.ignored == ("backbone.fc.bias", "backbone.fc.weight")
    assert (len(report.loaded), report.adapted, manifest.keys) == (120, (), 120)
    assert (manifest.licence, manifest.backbone, manifest.classes) == ("BSD-3-Clause", "resnet18", {})
    assert not any("fc." in key for key in load_weights("theirs")[1])
    same_features(network, "resnet18", "theirs")


def as_published(name: str, state: OrderedDict[str, Tensor]) -> dict[str, Tensor]:
    """The entries with the names that they have in the files that torchvision gave out at first."""
    if name.startswith("densenet"):
        return {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        }
    if name.startswith("vit"):
        old = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        return {re.sub(r"\.mlp\.[03]\.", lambda found: old[found.group()], key): value for key, value in state.items()}
    return dict(state)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("densenet121", "pth"),
        ("googlenet", "safetensors"),
        ("regnet_x_400mf", "pth"),
        ("mobilenet_v3_small", "safetensors"),
        ("shufflenet_v2_x0_5", "safetensors"),
    ],
)
def test_other_families(tmp_path: Path, name: str, suffix: str) -> None:
    state, network = torchvision_state(name)
    published, path = as_published(name, state), tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(published, path)
    else:
        save_file(published, path)
    _, report = import_weights(WeightsSource(path, name, "BSD-3-Clause"), "theirs")
    assert report.adapted == ()
    assert {key.split(".")[1] for key in report.ignored} <= {"fc", "classifier", "aux1", "aux2"}
    same_features(network, name, "theirs")


def by_number(network: torch.nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As RadImageNet's files have them: the parts of the network as a list, without the last, which is the head."""
    numbers = {name: str(at) for at, (name, _) in enumerate(list(network.named_children())[:-1])}
    split = {key: key.partition(".") for key in state}
    return {f"backbone.{numbers[part]}.{rest}": state[key] for key, (part, _, rest) in split.items() if part in numbers}


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_a_network_in_a_list_of_its_parts_as_radimagenet_has_it(tmp_path: Path, name: str) -> None:
    state, network = torchvision_state(name)
    torch.save(by_number(network, state), tmp_path / "w.pt")
    _, report = import_weights(WeightsSource(tmp_path / "w.pt", name, "CC BY-NC-SA 4.0"), "theirs")
    assert (report.adapted, report.ignored) == ((), ())
    same_features(network, name, "theirs")


def test_parts_by_number_of_another_network_are_refused(tmp_path: Path) -> None:
    state, network = torchvision_state("densenet121")
    torch.save(by_number(network, state), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="missing"):
        import_weights(WeightsSource(tmp_path / "w.pt", "resnet18", "CC BY-NC-SA 4.0"), "theirs")


def test_a_densenet_as_monai_has_it(tmp_path: Path) -> None:
    state, network = torchvision_state("densenet121")
    theirs = {re.sub(r"(denselayer\d+)\.", r"\1.layers.", key): value for key, value in state.items()}
    theirs = {key.replace("classifier.", "class_layers.out."): value for key, value in theirs.items()}
    assert "features.denseblock1.denselayer1.layers.norm1.weight" in theirs
    torch.save(theirs, tmp_path / "w.pt")
    _, report = import_weights(WeightsSource(tmp_path / "w.pt", "densenet121", "Apache-2.0"), "theirs")
    assert report.ignored == ("backbone.class_layers.out.bias", "backbone.class_layers.out.weight")
    same_features(network, "densenet121", "theirs")


def test_a_vision_transformer_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(name: str, weights: None, image_size: int = 224) -> torch.nn.Module:
        return VisionTransformer(image_size, 32, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)

    monkeypatch.setattr(torchvision.models, "get_model", smaller)
    state, network = torchvision_state("vit_b_32")
    torch.nn.init.normal_(state["heads.head.weight"])
    published = as_published("vit_b_32", state)
    assert "encoder.layers.encoder_layer_3.mlp.linear_2.bias" in published
    torch.save(published, tmp_path / "w.pth")
    _, report = import_weights(WeightsSource(tmp_path / "w.pth", "vit_b_32", "BSD-3-Clause"), "theirs")
    assert report.ignored == ("heads.head.bias", "heads.head.weight")
    same_features(network, "vit_b_32", "theirs", size=224)
    small = build_model("vit_b_32", {}, channels=3, seed=0, size=64)
    entries = load_weights("theirs")[1]
    assert graft(small, entries, "theirs").adapted == ("backbone.encoder.pos_embedding",)
    entries["backbone.encoder.pos_embedding"] = np.zeros((1, 51, 32), np.float32)
    with pytest.raises(WeightsError, match=r"pos_embedding: is \(1, 51, 32\), must be \(1, 5, 32\)"):
        graft(small, entries, "theirs")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_our_own_backbone_for_grey_images(tmp_path: Path, suffix: str) -> None:
    model = build_model("slim_resnet", {"cls": 2}, channels=1, seed=4)
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    manifest, report = import_weights(WeightsSource(path, "slim_resnet", "CC0-1.0", normalise="imagenet"), "ours")
    assert report.ignored == ("heads.cls.bias", "heads.cls.weight")
    assert manifest.input is not None
    assert manifest.input.channels == 1
    back = load_weights("ours")[1]
    assert all(np.array_equal(back[key], value) for key, value in state_arrays(model).items() if "heads" not in key)


def test_the_wrong_backbone_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    torch.save(torchvision_state("resnet18")[0], tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        import_weights(WeightsSource(tmp_path / "w.pth", "resnet34", "BSD-3-Clause"), "theirs")
    assert "backbone.layer1.2.conv1.weight: missing" in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_an_import_leaves_torchs_randomness_alone(tmp_path: Path) -> None:
    torch.save(build_model("slim_resnet", {}, channels=3, seed=4).state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0"), "ours")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_manifest_says_where_the_file_came_from(tmp_path: Path) -> None:
    torch.save(build_model("slim_resnet", {}, channels=3, seed=4).state_dict(), tmp_path / "w.pth")
    import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0", "a thousand knees"), "ours")
    manifest = json.loads((tmp_path / "home" / "weights" / "ours" / "model.json").read_text())
    assert manifest["trained_on"] == "a thousand knees"
    assert re.search(r"imported from w\.pth, sha256 [0-9a-f]{64}", manifest["how"])
    assert manifest["input"] is None  # nobody said how the images were prepared
    import_weights(WeightsSource(tmp_path / "w.pth", "slim_resnet", "CC0-1.0", normalise="imagenet"), "imagenet")
    manifest = json.loads((tmp_path / "home" / "weights" / "imagenet" / "model.json").read_text())
    assert manifest["input"]["mean"] == [0.485, 0.456, 0.406]
