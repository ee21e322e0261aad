"""The gradient of each case alone, for layers where Opacus has none, or has one that takes too much memory.

Each takes a layer, its inputs and the gradient of the loss at its output, and gives (cases, ...) by parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def convolution(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """As Opacus's, but group by group: there a depthwise layer takes as much memory as one without groups."""
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        assert not isinstance(layer.padding, str)
        patches = F.unfold(activations[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        count, groups = len(patches), layer.groups
        patches = patches.view(count, groups, -1, patches.shape[-1])
        outputs = backprops.reshape(count, groups, -1, patches.shape[-1])
        found[layer.weight] = torch.einsum("ngoq,ngpq->ngop", outputs, patches).reshape(count, *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = backprops.flatten(2).sum(dim=2)
    return found


def convolution_norm(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of the gradients alone, (cases,): where there are few positions, without making the gradients.

    With patches a_t and outputs' gradients g_t at positions t, |sum_t g_t a_t'|^2 = sum_{t,s} (a_t a_s)(g_t g_s)
    (Bu et al. 2022, "Scalable and efficient training of large convolutional neural networks with differential
    privacy"). Terms that cancel would leave a norm that is too small, and so a gradient that is not clipped; in
    float64 what they leave is as good as the sum of gradients itself.
    """
    count, positions = len(backprops), backprops[0, 0].numel()
    inputs, outputs = layer.weight[0].numel(), layer.out_channels // layer.groups
    if not layer.weight.requires_grad or 2 * positions * (inputs + outputs) >= inputs * outputs:
        gradients = convolution(layer, activations, backprops)
        return {parameter: gradient.flatten(1).norm(dim=1) for parameter, gradient in gradients.items()}
    assert not isinstance(layer.padding, str)
    patches = F.unfold(activations[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    a = patches.view(count * layer.groups, inputs, positions).double()
    g = backprops.reshape(count * layer.groups, outputs, positions).double()
    squares = (torch.bmm(a.mT, a) * torch.bmm(g.mT, g)).view(count, -1).sum(dim=1)
    found = {layer.weight: squares.clamp(min=0).sqrt()}
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = backprops.flatten(2).sum(dim=2).norm(dim=1)
    return found


def linear_norm(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of the gradients alone, (cases,), as of a convolution whose positions are all dimensions in the middle.

    In float64: squares of small numbers are 0 in single precision, and a norm that gets lost is a gradient that is not
    clipped, whatever large number it is then multiplied with.
    """
    count, found = len(backprops), {}
    a = activations[0].reshape(count, -1, layer.in_features).double()
    g = backprops.reshape(count, -1, layer.out_features).double()
    if layer.weight.requires_grad:
        squares = (torch.bmm(a, a.mT) * torch.bmm(g, g.mT)).sum(dim=(1, 2))
        found[layer.weight] = squares.clamp(min=0).sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = g.sum(dim=1).norm(dim=1)
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


NORM_SAMPLERS: Mapping[type[nn.Module], Any] = {nn.Conv2d: convolution_norm, nn.Linear: linear_norm}

SAMPLERS: Mapping[type[nn.Module], Any] = {
    nn.Conv2d: convolution,
    nn.BatchNorm1d: fixed_norm,
    nn.BatchNorm2d: fixed_norm,
}
