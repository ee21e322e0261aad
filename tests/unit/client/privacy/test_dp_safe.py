"""Networks rewritten for per-sample gradients compute the same, and train in both modes; others are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.privacy.dp.gradients.dp_safe import dp_twin, out_of_place
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.errors import InputError
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.models.model import TransferModel, build_model
from fedgraft.common.study.plan import Gradient, Role, named
from fedgraft.common.study.stages.training import Private
from helpers.work import CPU, NOW, cohort, images, moved, snapshot

BACKBONES = ["slim_resnet", "slim_resnet_gn", "resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small"]
OTHERS = [
    "efficientnet_lite0",
    "resnet50",
    "resnext50_32x4d",
    "googlenet",
    "shufflenet_v2_x0_5",
    "regnet_x_400mf",
    "mnasnet0_5",
    "vgg11",
]


@pytest.mark.parametrize("backbone", BACKBONES + OTHERS)
def test_the_rewritten_network_computes_the_same_from_the_same_entries(backbone: str) -> None:
    model = build_model(backbone, {"cls": 3}, channels=3, seed=1).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = {name: getattr(part, "inplace", None) for name, part in model.named_modules()}
    twin = dp_twin(model, [*dict(model.named_parameters())])
    with torch.no_grad():
        assert (twin(x)["cls"] - model(x)["cls"]).abs().max() < 1e-6
    ours, theirs = model.state_dict(keep_vars=True), twin.state_dict(keep_vars=True)
    assert set(ours) == set(theirs)
    assert all(ours[key] is theirs[key] for key in ours)
    assert not any(getattr(part, "inplace", False) is True for part in twin.modules())
    assert {name: getattr(part, "inplace", None) for name, part in model.named_modules()} == before


class InPlace(nn.Module):
    """Changes its input in every way there is, and reads it again afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.add_(x)
        z = y * 2
        self.relu(z)
        torch.relu_(y)
        torch.nn.functional.relu(y, inplace=True)
        z += y
        return z * y


def test_whoever_reads_what_was_changed_in_place_reads_the_result() -> None:
    x = torch.randn(50)
    was = x.clone()
    assert torch.equal(out_of_place(InPlace())(x), InPlace()(x.clone()))
    assert torch.equal(x, was)
    names = {str(node.target) for node in out_of_place(InPlace()).graph.nodes if node.op == "call_method"}
    assert names == {"add"}


def test_dropout_by_depth_still_asks_whether_it_is_training() -> None:
    model = build_model("efficientnet_b0", {"cls": 3}, channels=3, seed=1).eval()
    twin = dp_twin(model, ["backbone.features.0.0.weight"])
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(twin(x)["cls"], twin(x)["cls"])
        model.train()  # batch norm repeats itself from batch to batch; what differs is the depth
        assert not torch.equal(twin(x)["cls"], twin(x)["cls"])


def test_heads_alone_need_no_rewriting() -> None:
    model = build_model("vit_b_16", {"cls": 3}, channels=3, seed=1)
    assert dp_twin(model, ["heads.cls.weight", "heads.cls.bias"]) is model


@pytest.mark.parametrize(("backbone", "words"), [("convnext_tiny", "LayerNorm2d"), ("vit_b_16", "VisionTransformer")])
def test_what_has_no_per_sample_gradients_is_refused_with_its_layer(backbone: str, words: str) -> None:
    model = build_model(backbone, {"cls": 3}, channels=3, seed=1)
    with pytest.raises(InputError, match=words):
        dp_twin(model, [*dict(model.named_parameters())])


class Forks(nn.Module):
    """Looks at its input's values, and so cannot be recorded."""

    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 1, padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x if x.sum() > 0 else -x).mean((2, 3))


def test_a_network_of_ones_own_is_refused_with_the_reason() -> None:
    model = TransferModel(Backbone(Forks(), 4), {"cls": 2})
    with pytest.raises(InputError, match=r"backbone\.layer pads"):
        dp_twin(model, ["backbone.layer.weight"])
    model.backbone.layer.padding = (0, 0)
    with pytest.raises(InputError, match="Forks depends on its data"):
        dp_twin(model, ["backbone.layer.weight"])
    assert dp_twin(model, ["heads.cls.bias"]) is model


def private(**changes: object) -> Gradient:
    terms = {
        "noise_multiplier": 0.5,
        "max_grad_norm": 1.0,
        "sample_rate": 0.3,
        "unit": "image",
        "expected_units": 6,
    } | changes
    return Gradient(steps=2, batch_size=4, optimiser="sgd", lr=1e-3, fixed_norm_stats=True, private=Private(**terms))


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_parameters_take_private_steps(attack_target, backbone: str, mode: str) -> None:
    local_model, _ = attack_target(backbone)
    inputs, known = images(6)
    loader = Loader(cohort(inputs, {"cls": known}), attack_target()[1]._spec, CPU)
    changes = [key for key, tag in local_model.tags.items() if tag.role is not Role.NORM_STATS]
    before = snapshot(local_model)
    facts = train_private(local_model, loader, [*map(str, range(6))], private(mode=mode), changes, NOW)
    after = snapshot(local_model)
    assert facts == {"steps": 2, "noise_multiplier": 0.5, "sample_rate": 0.3}
    assert moved(before, after) == set(changes)
    assert all(np.isfinite(after[key]).all() for key in changes)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_b_16", "convnext_tiny"])
def test_heads_of_any_backbone_take_private_steps(attack_target, backbone: str) -> None:
    local_model, loader = attack_target(backbone)
    before = snapshot(local_model)
    train_private(local_model, loader, ["one"] * 27, private(), named("heads").keys(local_model.tags), NOW)
    assert moved(before, snapshot(local_model)) == {"heads.cls.weight", "heads.cls.bias"}
