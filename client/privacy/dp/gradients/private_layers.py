"""The gradient of each case alone, for layers where Opacus has none, or has one that takes too much memory.

Each takes a layer, its inputs and the gradient of the loss at its output, and gives (cases, ...) by parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedgraft.client.privacy.dp.gradients.patches import patches


def convolution(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """As Opacus's, but group by group: there a depthwise layer takes as much memory as one without groups."""
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        seen = patches(layer, activations[0])
        outputs = backprops.reshape(len(seen), layer.groups, -1, seen.shape[-1])
        found[layer.weight] = torch.einsum("ngoq,ngpq->ngop", outputs, seen).reshape(len(seen), *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = backprops.flatten(2).sum(dim=2)
    return found


def fixed_norm(layer: _NormBase, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Batch norm in eval: a scale and a shift of values that do not depend on other cases."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *[1] * (backprops.ndim - 2))
    deviation = (layer.running_var + layer.eps).sqrt().view(shape)
    values = (activations[0] - layer.running_mean.view(shape)) / deviation
    positions = list(range(2, backprops.ndim))

    def over_positions(products: Tensor) -> Tensor:
        return products.sum(dim=positions) if positions else products

    found = {layer.weight: over_positions(backprops * values), layer.bias: over_positions(backprops)}
    return {parameter: gradient for parameter, gradient in found.items() if parameter.requires_grad}
