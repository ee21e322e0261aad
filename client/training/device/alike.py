"""Passes in which what comes of a case does not depend on how many others there are, nor on where it stands.

The last digit of a product of matrices depends on the order in which it is summed, and libraries choose that by the
number of rows: MKL sums 10 rows in another order than 11. With entries that cancel but for that digit, a model can turn
it into another answer for every case; then one patient more changes what all others count for, and no bound on what
one patient changes holds. So work that must hide a patient goes by numbers of rows at which all rows were seen to come
out alike, to the bit, on this machine; what is missing is filled up with cases that are there, and left out afterwards.

At the end of an array, where fewer numbers are left than the processor takes at once, functions such as exp come from
other code than before, and may differ in a digit: too seldom to be seen for sure. There are always `SPARE` cases that
do not count, and losses, which have few numbers for each case, are worked out of as many as leave no such end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SPARE = 4
"""Cases at the end of a pass that do not count: what is left at the end of an array is theirs, if it has 8 numbers for
each case or more."""
_AT_ONCE = 32
"""As many numbers as are taken at once, at most: two registers of 512 bits."""
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
    """At most so many `sizes`, from about half of the last up to it, which has room for `most` cases or a few more.

    `found(inputs)` is what comes of inputs (cases, *shape), each (cases, ...). Single rows are what is left where
    nothing is alike, and for whoever asks for no more: there is only one way to stand alone.
    """
    if most <= 1:
        return (1,)
    first = _STEP * -(-(most + SPARE) // _STEP)
    step = _STEP * -(-first // (_STEP * 2 * (sizes - 1)))
    for largest in range(first, first + _MORE * _STEP + 1, _STEP):
        inputs = _inputs(shape, 2 * max(largest, _ENOUGH), device)
        several = (inputs[at : at + 2 * largest] for at in range(0, len(inputs) - 2 * largest + 1, 2 * largest))
        smaller = range(largest - step, SPARE, -step)[: sizes - 1]
        alike = [_alike_at(found, own, smaller) for own in several]
        if all(largest in own for own in alike):
            return tuple(sorted(set.intersection(*alike)))
    return (1,)


def _alike_at(found: Callable[[Tensor], Sequence[Tensor]], inputs: Tensor, smaller: Sequence[int]) -> set[int]:
    """Sizes at which these inputs come out alike: half their number, and `smaller` ones; none if not at that."""
    largest = len(inputs) // 2
    rows, every = found(_laid_out(inputs[:largest])), torch.arange(largest)
    if not all(_alike(rows, found(_laid_out(inputs[order])), order) for order in _other_orders(largest)):
        return set()
    return {largest, *(n for n in smaller if _alike(rows, found(_laid_out(inputs[:n])), every[:n]))}


def _other_orders(count: int) -> Iterator[Tensor]:
    """Every row far away from its place; and beside it, with others in place of every second one."""
    every = torch.arange(count)
    yield every.flip(0)
    yield torch.where(every % 2 == 0, every, every + count).roll(1)


def _alike(rows: Sequence[Tensor], others: Sequence[Tensor], order: Tensor) -> bool:
    """Whether `others`, as far as they are among the rows, are these in this order, to the bit; but for spare ones."""
    known = order < len(rows[0]) - SPARE
    known[-SPARE:] = False
    return all(
        torch.equal(own[order[known].to(own.device)], other[known.to(own.device)])
        for own, other in zip(rows, others, strict=True)
    )


def _inputs(shape: Sequence[int], count: int, device: torch.device) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(2)).to(device)


def _laid_out(inputs: Tensor) -> Tensor:
    """As the loader lays out what it gives."""
    if inputs.device.type == "cuda" and inputs.ndim == 4:
        return inputs.clone(memory_format=torch.channels_last)
    return inputs.clone()


def passes(count: int, sizes: Sizes) -> Iterator[tuple[int, int, int]]:
    """Where each pass over `count` cases begins and ends, and how many rows it has: fewer cases are filled up."""
    start = 0
    while start < count:
        size = fitting(count - start, sizes)
        end = min(start + room(size), count)
        yield start, end, size
        start = end


def fitting(count: int, sizes: Sizes) -> int:
    """The size of the next pass for so many cases, so that all of them need few passes with little to fill up."""
    left = -(-count // room(sizes[-1]))
    return next(size for size in sizes if room(size) * left >= count)


def room(size: int) -> int:
    """How many cases of a pass of this size count."""
    return size if size == 1 else size - SPARE


def without_an_end(rows: Tensor) -> Tensor:
    """The rows, and then the first one again until there are as many as leave no end, without a gradient."""
    missing = -len(rows) % _AT_ONCE
    return torch.cat([rows, rows[:1].detach().expand(missing, *rows.shape[1:])]) if missing else rows


def rows_for(count: int, sizes: Sizes) -> int:
    """How many rows the passes over so many cases have."""
    return sum(size for _, _, size in passes(count, sizes))


def filled(indices: Tensor, sizes: Sizes) -> Tensor:
    """`indices` and then as many more of the first one as fill up their passes."""
    rows = rows_for(len(indices), sizes)
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
