"""What the patches that a convolution sees have in common, from its pixels: no patch is made, each pixel is read once.

The product of two patches is the sum, over the kernel's places, of the products of the two pixels that lie there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def are_worth_it(layer: nn.Conv2d, pixels: int, places: int, cases: int) -> bool:
    """Whether products of all of a unit's pixels take less time and memory than its patches; `cases` are a unit's most.

    A kernel that jumps over pixels, or does not overlap itself, has fewer patches than pixels.
    """
    inputs, kernel = layer.weight[0].numel(), layer.kernel_size[0] * layer.kernel_size[1]
    return pixels <= 2 * kernel**0.5 * places and cases * pixels * pixels <= inputs * places


def beat_gradients(layer: nn.Conv2d, pixels: int, places: int, cases: int) -> bool:
    """Whether a unit's norm takes less time and memory from products of pixels than from its gradient.

    Products are counted four times: they are in double precision, and what was made is also summed.
    """
    inputs, outputs = layer.weight[0].numel(), layer.weight.shape[0] // layer.groups
    seen, came = (cases * pixels) ** 2, (cases * places) ** 2
    work = seen * layer.in_channels // layer.groups + came * outputs
    return (
        are_worth_it(layer, pixels, places, cases)
        and 4 * work < inputs * outputs * places * cases
        and 4 * (seen + came) < inputs * outputs
    )


def of_pixels(layer: nn.Conv2d, pixels: Tensor, height: int, width: int) -> Tensor:
    """The products (units, groups, places, places) of all patches of a unit, in the numbers of `pixels`.

    `pixels` are (units, groups, channels of a group, cases * height * width). Places are in the order of `F.unfold`,
    case by case. Nothing is multiplied by the zeros around an image, where infinity would come to no number.
    """
    assert not isinstance(layer.padding, str)
    (high, wide), (down, right), (far_down, far_right) = layer.padding, layer.stride, layer.dilation
    cases = pixels.shape[-1] // (height * width)
    grid = (cases, height, width)
    products = (pixels.mT @ pixels).view(*pixels.shape[:2], *grid, *grid)
    products = F.pad(products, (wide, wide, high, high, 0, 0, wide, wide, high, high))
    # A kernel's place is a row and a column: first the one is summed, then the other.
    for dim, size, stride, dilation in (
        (3, layer.kernel_size[0], down, far_down),
        (4, layer.kernel_size[1], right, far_right),
    ):
        reach = products.shape[dim] - dilation * (size - 1)
        products = _along(products, dim, range(0, dilation * size, dilation), reach, stride)
    places = cases * products.shape[3] * products.shape[4]
    return products.reshape(*pixels.shape[:2], places, places)


def _along(products: Tensor, dim: int, starts: range, reach: int, stride: int) -> Tensor:
    """The sum of the products of what lies `starts` further, in both patches alike."""
    total: Tensor | None = None
    for start in starts:
        both = products
        for at in (dim, dim + 3):
            both = both.narrow(at, start, reach)
            both = both[(slice(None),) * at + (slice(None, None, stride),)]
        total = both.clone() if total is None else total.add_(both)
    assert total is not None
    return total
