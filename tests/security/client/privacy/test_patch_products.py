"""Products of patches from pixels are those of the patches, so that no unit's norm is understated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedgraft.client.privacy.dp.gradients import patch_products

SHAPES = {
    "plain": nn.Conv2d(6, 4, 3, padding=1),
    "no padding": nn.Conv2d(6, 4, 3),
    "strides": nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "a stride each way": nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(1, 0)),
    "dilation": nn.Conv2d(6, 4, (2, 3), dilation=(2, 1), padding=(1, 2)),
    "groups": nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "one by one": nn.Conv2d(6, 4, 1, stride=2),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("cases", [1, 3])
def test_products_from_pixels_are_those_of_the_patches(name: str, cases: int) -> None:
    layer, units, (height, width) = SHAPES[name], 2, (5, 7)
    x = torch.randn(units * cases, 6, height, width, generator=torch.Generator().manual_seed(0)).double()
    assert not isinstance(layer.padding, str)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    patches = patches.view(units, cases, layer.groups, -1, patches.shape[-1]).permute(0, 2, 3, 1, 4).flatten(3)
    pixels = x.view(units, cases, layer.groups, -1, height * width).permute(0, 2, 3, 1, 4).flatten(3)
    found = patch_products.of_pixels(layer, pixels, height, width)
    assert torch.allclose(found, patches.mT @ patches, rtol=1e-12, atol=1e-12)


def test_a_unit_with_infinite_pixels_leaves_the_others_norms_alone() -> None:
    layer = SHAPES["plain"]
    pixels = torch.ones(2, 1, 6, 35).double()
    pixels[0, 0, 0, 17] = torch.inf
    found = patch_products.of_pixels(layer, pixels, 5, 7)
    assert not bool(found[0].isfinite().all())
    assert bool(found[1].isfinite().all())
    assert float(found[0, 0, 0, 0]) == 24, "a patch that does not see it is what it was, padded or not"


def test_pixels_are_multiplied_only_where_that_takes_less_than_patches() -> None:
    patches_of_a_transformer = nn.Conv2d(3, 768, 16, stride=16)
    assert not patch_products.are_worth_it(patches_of_a_transformer, 224 * 224, 14 * 14, 1)
    inner = nn.Conv2d(128, 128, 3, padding=1)
    assert patch_products.beat_gradients(inner, 64, 64, 1)
    assert not patch_products.beat_gradients(inner, 64, 64, 16), "sixteen views of one patient"
    assert not patch_products.beat_gradients(inner, 1024, 1024, 1)
