"""Passes in which what comes of a case does not depend on how many others there are, nor on where it stands.

The last digit of a product of matrices depends on the order in which it is summed, and libraries choose that by the
number of rows: MKL sums 10 rows in another order than 11. With entries that cancel but for that digit, a model can turn
it into another answer for every case; then one patient more changes what all others count for, and no bound on what
one patient changes holds. So work that must hide a patient goes by numbers of rows at which all rows were seen to come
out alike, to the bit, on this machine; what is missing is filled up with cases that are there, and left out afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_STEP = 4
_MORE = 8
"""So many steps beyond what was asked for are tried."""
_ENOUGH = 32
"""At least about so many rows are looked at: a few may come out alike by chance."""

Sizes = tuple[int, ...]
"""Numbers of rows at which passes come out alike, rising."""


def alike_sizes(
    found: Callable[[Tensor], Sequence[Tensor]],
    shape: Sequence[int],
    device: torch.device,
    most: int,
    sizes: int,
) -> Sizes:
    """At most so many `sizes`, from half of the last up to it: the first from `most` at which no row depends on others.

    These are multiples of 4, or `most` itself if that is less.

    `found(inputs)` is what comes of inputs (cases, *shape), each (cases, ...). Single rows are what is left where
    nothing is alike, and for whoever asks for no more: there is only one way to stand alone.
    """
    if most <= 1:
        return (1,)
    step = min(most, _STEP * -(-most // (_STEP * 2 * (sizes - 1))))
    first = step * -(-most // step)
    for more in range(_MORE + 1):
        largest = first + more * _STEP - (first % _STEP if more else 0)
        inputs = _inputs(shape, 2 * max(largest, _ENOUGH), device)
        several = (inputs[at : at + 2 * largest] for at in range(0, len(inputs) - 2 * largest + 1, 2 * largest))
        alike = [_alike_at(found, own, step) for own in several]
        if all(largest in own for own in alike):
            return tuple(sorted(set.intersection(*alike)))
    return (1,)


def _alike_at(found: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor, step: int) -> set[int]:
    """Sizes at which these inputs come out alike, up to half their number; none if not at that."""
    largest = len(inputs) // 2
    rows, every = found(_laid_out(inputs[:largest])), torch.arange(largest)
    if not all(_alike(rows, found(_laid_out(inputs[order])), order) for order in _other_orders(largest)):
        return set()
    smaller = range(step * -(-largest // (2 * step)), largest, step)
    return {largest, *(n for n in smaller if _alike(rows, found(_laid_out(inputs[:n])), every[:n]))}


def _other_orders(count: int) -> Iterator[Tensor]:
    """Every row far away from its place; and beside it, with others in place of every second one."""
    every = torch.arange(count)
    yield every.flip(0)
    yield torch.where(every % 2 == 0, every, every + count).roll(1)


def _alike(rows: Sequence[Tensor], others: Sequence[Tensor], order: Tensor) -> bool:
    """Whether `others`, as far as they are among the rows, are these in this order, to the bit."""
    known = order < len(rows[0])
    return all(
        torch.equal(own[order[known].to(own.device)], other[known.to(own.device)])
        for own, other in zip(rows, others, strict=True)
    )


def _inputs(shape: Sequence[int], count: int, device: torch.device) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(2)).to(device)


def _laid_out(inputs: Tensor) -> Tensor:
    """As the loader lays out what it gives."""
    if inputs.device.type == "cuda" and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def passes(count: int, sizes: Sizes) -> Iterator[tuple[int, int, int]]:
    """Where each pass over `count` cases begins and ends, and how many rows it has: fewer cases are filled up."""
    start = 0
    while start < count:
        size = fitting(count - start, sizes)
        end = min(start + size, count)
        yield start, end, size
        start = end


def fitting(count: int, sizes: Sizes) -> int:
    """The size of the next pass for so many cases, so that all of them need few passes with little to fill up."""
    left = -(-count // sizes[-1])
    return next(size for size in sizes if size * left >= count)


def filled(indices: Tensor, sizes: Sizes) -> Tensor:
    """`indices` and then as many more of the first one as fill up their passes."""
    rows = sum(size for _, _, size in passes(len(indices), sizes))
    return indices if rows == len(indices) else torch.cat([indices, indices[:1].expand(rows - len(indices))])


@contextmanager
def at_random(model: nn.Module) -> Iterator[None]:
    """The model with entries drawn from a fixed seed and without dropout; as it was afterwards, to the bit.

    In what order is summed does not depend on the entries, but whether it shows does: whoever makes a model must not be
    able to hide it.
    """
    entries = {id(entry): entry for entry in (*model.parameters(), *model.buffers()) if entry.is_floating_point()}
    before = [entry.detach().clone() for entry in entries.values()]
    training = [part for part in model.modules() if part.training]
    generator = torch.Generator().manual_seed(1)
    try:
        model.eval()
        with torch.no_grad():
            for entry in entries.values():
                entry.copy_(_drawn(entry, generator))
        yield
    finally:
        with torch.no_grad():
            for entry, value in zip(entries.values(), before, strict=True):
                entry.copy_(value)
        for part in training:
            part.training = True


def _drawn(entry: Tensor, generator: torch.Generator) -> Tensor:
    """Weights that keep the size of what they are multiplied with; scales, means and variances from .5 to 1.5."""
    if entry.ndim < 2:
        return torch.rand(entry.shape, generator=generator) + 0.5
    return torch.randn(entry.shape, generator=generator) / math.sqrt(entry[0].numel())
