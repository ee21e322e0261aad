"""Masks from feature maps: the maps are those of the backbone's own pass, and the decoder is a head like others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgraft.client.training.model.task_losses import task_loss
from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.mask_metrics import dice, mask_rows
from fedgraft.common.models.backbones.feature_maps import feature_maps, map_channels
from fedgraft.common.models.model import Extras, build_model
from fedgraft.common.study.plan import Role
from fedgraft.common.study.tasks import Segmentation

MASK = Segmentation(name="lesion", kind="segmentation")


@pytest.mark.parametrize(
    ("name", "size"), [("slim_resnet", 32), ("resnet18", 64), ("resnet50", 64), ("efficientnet_lite0", 64)]
)
def test_features_through_the_maps_are_those_of_the_backbone(name: str, size: int) -> None:
    model = build_model(name, {"cls": 3}, channels=1, seed=0, size=size, extras=Extras(masks=["lesion"])).eval()
    x = torch.randn(2, 1, size, size)
    with torch.no_grad():
        z, maps = feature_maps(model.backbone, x)
        assert torch.equal(z, model.features(x))
        outputs = model(x)
    assert outputs["lesion"].shape == (2, size, size)
    assert torch.equal(outputs["cls"], model.heads["cls"](z))
    assert [each.shape[-1] for each in maps] == sorted((each.shape[-1] for each in maps), reverse=True)
    assert list(map_channels(model.backbone, 1, size)) == [each.shape[1] for each in maps]


@pytest.mark.slow
def test_a_decoder_learns_outlines_finer_than_the_backbones_finest_map() -> None:
    """Discs of odd places and sizes: with its first map alone, at half the resolution, Dice stays below."""
    torch.manual_seed(0)
    model = build_model("slim_resnet", {}, channels=1, seed=0, size=32, extras=Extras(masks=["lesion"])).train()
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    places = torch.randint(6, 26, (24, 2, 1, 1))
    masks = ((y - places[:, 0]) ** 2 + (x - places[:, 1]) ** 2 <= 13).to(torch.int8)
    images = masks[:, None].float() + 0.3 * torch.randn(24, 1, 32, 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = task_loss(MASK, model(images)["lesion"], masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rows = mask_rows(model(images)["lesion"].detach().numpy(), masks.numpy(), np.ones(24))
    assert dice(rows).mean() > 0.95


def test_a_backbone_without_maps_says_which_have_some() -> None:
    with pytest.raises(
        InputError, match=r"No feature maps are known of VGG.*slim_resnet, efficientnet_lite0 and torchvision's"
    ):
        build_model("vgg11", {}, channels=1, seed=0, size=32, extras=Extras(masks=["lesion"]))


def test_a_decoder_is_a_head_of_its_task_and_changes_no_other_entry() -> None:
    plain = build_model("slim_resnet", {"cls": 3}, channels=1, seed=5, size=32)
    both = build_model("slim_resnet", {"cls": 3}, channels=1, seed=5, size=32, extras=Extras(masks=["lesion"]))
    for key, value in plain.state_dict().items():
        assert torch.equal(both.state_dict()[key], value)
    own = {key: tag for key, tag in both.tags().items() if key not in plain.state_dict()}
    assert own
    assert {(tag.role, tag.task) for tag in own.values()} == {(Role.HEAD, "lesion")}
    assert set(both.tags()) == set(both.state_dict())
