"""AdaBN: the norm layers' statistics become those of the site's own images; nothing else moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedgraft.client.training.model.errors import TooFewCases
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.plan import Recalibrate


def recalibrate(local_model: LocalModel, loader: Loader, spec: Recalibrate) -> dict[str, float]:
    """Replace running means and variances by the average over all training images, labelled or not.

    Li et al. 2016. Raises TooFewCases for fewer than two images.
    """
    indices = loader.splits["train"]
    if len(indices) < 2:
        raise TooFewCases
    layers = [
        layer for layer in local_model.model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]
    before = [layer.momentum for layer in layers]
    local_model.model.eval()
    try:
        for layer in layers:
            _reset(layer)
        with torch.no_grad():
            for batch in loader.batches(_groups(indices, spec.batch_size)):
                local_model.model.features(batch.inputs)
    finally:  # the next visit gets the layers as they were, even after a failure
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
        local_model.model.eval()
    return {"examples": len(indices)}


def _groups(indices: Tensor, size: int) -> list[Tensor]:
    """Batches of nearly equal size, none of a single image, which may have no variance: 2 or 3 where `size` is 2."""
    return list(indices.tensor_split(min(-(-len(indices) // size), len(indices) // 2)))


def _reset(layer: nn.Module) -> None:
    assert isinstance(layer, _BatchNorm)
    layer.reset_running_stats()
    layer.momentum = None  # torch's way to say: the plain average over all batches
    layer.train()
