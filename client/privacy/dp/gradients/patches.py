"""What a layer's weights see: for each place of the output all inputs that it is made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_FEW_PLACES = 32
"""For fewer, torch's own function is faster on a CPU; for more, a copy along strides is, by up to two times."""


def patches(layer: nn.Conv2d, inputs: Tensor, groups: int | None = None) -> Tensor:
    """Of a convolution's inputs (cases, channels, height, width): (cases, groups, inputs of an output, places)."""
    assert not isinstance(layer.padding, str)
    (down, across), (far_down, far_across) = layer.stride, layer.dilation
    tall, wide = layer.kernel_size
    padded = F.pad(inputs, [layer.padding[1]] * 2 + [layer.padding[0]] * 2)
    cases, channels, height, width = padded.shape
    rows = (height - far_down * (tall - 1) - 1) // down + 1
    columns = (width - far_across * (wide - 1) - 1) // across + 1
    if inputs.device.type == "cpu" and rows * columns < _FEW_PLACES:
        seen = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    else:
        case, channel, row, column = padded.stride()
        seen = padded.as_strided(
            (cases, channels, tall, wide, rows, columns),
            (case, channel, far_down * row, far_across * column, down * row, across * column),
        )
    return seen.reshape(cases, groups or layer.groups, -1, rows * columns)
