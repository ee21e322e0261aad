"""A cohort's cases in passes of alike rows, for work that must hide how many there are; see `device.alike`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from fedgraft.client.training.device.alike import RowTrial, Sizes, alike_sizes, at_random, filled, narrow_layers, passes
from fedgraft.client.training.device.row_ends import row_widths
from fedgraft.client.training.model.loader import Batch, Loader
from fedgraft.client.training.model.local_model import LocalModel

_FEW = 7
"""Cases by which a pass is looked at; a number that seldom divides what is not of cases."""
_ROWS, _SIZES = 32, 2
"""For passes forward alone, of which a site may need few: to find their sizes takes about a hundred cases' time."""


def sizes_for(
    local_model: LocalModel,
    loader: Loader,
    body: nn.Module,
    work: Hashable,
    found: Callable[[Batch, Tensor], Sequence[Tensor]],
    at_most: tuple[int, int] = (_ROWS, _SIZES),
) -> Sizes:
    """Sizes of passes for this kind of `work` with `body`, looked for once.

    `found(example, inputs)` is what comes of inputs, and `example` one of the loader's cases. `at_most` are the cases
    that are worked on at once, to which spare ones come, and the number of sizes. Single rows if there is no case.
    """
    every = loader.splits["all"]
    if not len(every) or at_most[0] <= 1:
        return (1,)
    (example,) = loader.batches([every[:1]])
    shape = tuple(example.inputs.shape[1:])

    def look() -> Sizes:
        with at_random(body):
            few = example.inputs[:1].expand(_FEW, *shape)
            narrow = narrow_layers(body, lambda: found(example, few.clone()), _FEW)
            whole = RowTrial(lambda inputs: found(example, inputs), shape)
            widths = row_widths(lambda: found(example, few.clone()), _FEW)
            return alike_sizes([*narrow, whole], local_model.device, *at_most, widths)

    return local_model.alike((work, loader.seen, shape, at_most), look)


def groups(indices: Tensor, sizes: Sizes) -> list[tuple[Tensor, int]]:
    """`indices` pass by pass, each filled up, and how many of its cases count."""
    return [(filled(indices[start:end], sizes), end - start) for start, end, _ in passes(len(indices), sizes)]


def answers_of(work: Callable[[Tensor], Sequence[Tensor]]) -> Callable[[Batch, Tensor], list[Tensor]]:
    """For `sizes_for`: what `work` gives for inputs, without gradients."""

    def found(example: Batch, inputs: Tensor) -> list[Tensor]:  # noqa: ARG001
        with torch.inference_mode():
            return list(work(inputs))

    return found
