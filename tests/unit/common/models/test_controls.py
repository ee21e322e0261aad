"""Controls see what a shortcut sees, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from fedgraft.common.models.backbones.named import build_image_backbone


def test_a_thumbnail_is_the_mean_of_each_eighth_and_intensity_two_numbers() -> None:
    images = torch.rand(3, 2, 64, 64)
    small, dim = (built := build_image_backbone("thumbnail", 2, 64)).module(images).numpy(), built.feature_dim
    by_hand = images.numpy().reshape(3, 2, 8, 8, 8, 8).mean(axis=(3, 5)).reshape(3, 128)
    np.testing.assert_allclose(small, by_hand, atol=1e-6)
    assert dim == 128
    assert not list(built.module.parameters())
    plain = build_image_backbone("intensity", 2, 64)
    told = plain.module(images).numpy()
    wanted = np.hstack([images.numpy().mean((2, 3)), images.numpy().std((2, 3), ddof=1)])
    np.testing.assert_allclose(told, wanted, atol=1e-6)
    assert plain.feature_dim == 4
    scrambled = images.flatten(2)[:, :, torch.randperm(4096)].reshape(images.shape)
    np.testing.assert_allclose(plain.module(scrambled).numpy(), told, atol=1e-5)
