"""Backbones: what they take, what they give, and what is said when they cannot."""

from __future__ import annotations

import socket

import pytest
import torch

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.backbones.named import (
    build_image_backbone,
    build_table_backbone,
    image_backbones,
    table_backbones,
)
from fedgraft.common.models.model import TransferModel, build_model
from fedgraft.common.study.plan import Role

SMALL = (
    "slim_resnet",
    "googlenet",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "regnet_x_400mf",
    "convnext_tiny",
)
"""The lightest of every family but the next ones."""

GROUPED = (("slim_resnet_gn", 1), ("resnet18_gn", 3))


LARGE = ("alexnet", "vgg11_bn", "vit_b_32")
"""Families of which every member has some 60 million entries or more: here without memory for them."""


def test_every_family_is_there() -> None:
    assert {*SMALL, *LARGE} <= set(image_backbones())
    families = ("resnext", "wide_resnet", "regnet_y", "efficientnet_v2", "vit_l", "vgg19_bn", "densenet201")
    for family in families:
        assert any(name.startswith(family) for name in image_backbones()), family
    assert table_backbones() == ("table_linear", "table_mlp")


@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, 1) for name in SMALL] + [("slim_resnet", 3), ("resnet18", 3), ("densenet121", 3), *GROUPED],
)
def test_features_of_small_images(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a backbone reached for the network")

    monkeypatch.setattr(socket, "socket", no_network)
    model = build_model(name, {"cls": 3, "side": 2}, channels=channels, seed=0, size=64).eval()
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        features = model.features(x)
        logits = model(x)
    assert features.shape == (2, model.feature_dim)
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])
    assert {task: tuple(scores.shape) for task, scores in logits.items()} == {"cls": (2, 3), "side": (2, 2)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LARGE)
def test_shapes_of_large_networks(name: str, channels: int) -> None:
    with torch.device("meta"):
        model = TransferModel(build_image_backbone(name, channels, 64), {"cls": 3}).eval()
        x = torch.zeros(2, channels, 64, 64)
        assert model.features(x).shape == (2, model.feature_dim)
        assert model(x)["cls"].shape == (2, 3)


@pytest.mark.parametrize(("name", "channels"), GROUPED)
def test_with_group_norm_no_case_knows_of_the_others_and_nothing_is_remembered(name: str, channels: int) -> None:
    model = build_model(name, {"cls": 3}, channels=channels, seed=0, size=32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(4, channels, 32, 32)
    together, alone = model(x)["cls"], torch.cat([model(one[None])["cls"] for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    roles = {tag.role for tag in model.tags().values()}
    assert Role.NORM_AFFINE in roles
    assert Role.NORM_STATS not in roles
    plain = build_model(name.removesuffix("_gn"), {"cls": 3}, channels=channels, seed=0, size=32).train()
    assert not torch.allclose(plain(x)["cls"], torch.cat([plain(torch.stack([one, x[0]]))["cls"][:1] for one in x]))


@pytest.mark.parametrize("name", ["slim_resnet", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_the_smallest_images_can_be_trained_on(name: str) -> None:
    model = build_model(name, {"cls": 3}, channels=1, seed=0, size=32).train()
    model(torch.randn(2, 1, 32, 32))["cls"].sum().backward()
    grads = [value.grad for value in model.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("alexnet", 63, "at least 64 pixels, not 63"),
        ("resnet18", 31, "at least 32 pixels, not 31"),
        ("densenet121", 16, "at least 32"),
        ("vit_b_16", 40, "multiple of 16, not 40"),
        ("vit_h_14", 64, "multiple of 14"),
        ("table_mlp", 64, "is for tables"),
    ],
)
def test_what_a_backbone_cannot_take(name: str, size: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build_image_backbone(name, 3, size)


@pytest.mark.parametrize("name", ["resnet19", "", "resnet18_quantized", "inception_v3", "ssd300_vgg16", "Resnet18"])
def test_an_unknown_name_is_answered_with_those_that_exist(name: str) -> None:
    with pytest.raises(InputError) as caught:
        build_image_backbone(name, 3, 64)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in image_backbones())


def test_an_unknown_table_backbone_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"'slim_resnet' is no backbone for tables\. .*table_linear, table_mlp"):
        build_table_backbone("slim_resnet", 3)


def test_a_vision_transformer_for_the_studys_image_size() -> None:
    with torch.device("meta"):
        model = TransferModel(build_image_backbone("vit_b_32", 1, 96), {"cls": 2}).eval()
        assert model.features(torch.zeros(1, 1, 96, 96)).shape == (1, 768)
    assert model.state_dict()["backbone.encoder.pos_embedding"].shape == (1, 1 + 9, 768)


def test_the_slim_resnet_is_slim() -> None:
    model = build_model("slim_resnet", {}, channels=1, seed=0)
    assert 0.28e6 < sum(value.numel() for value in model.parameters()) < 0.34e6
