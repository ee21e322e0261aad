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
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from fedgraft.client.training.device.row_ends import end_well

SPARE = 4
"""Cases at the end of a pass that do not count: what is left at the end of an array is theirs, if it has 8 numbers for
each case or more."""
_STEP, _MOST_THREADS = 4, 4
"""Sizes are multiples of 4, and of 4 for each of two or four threads: what a thread takes of an array then has no end
either, if there are multiples of 8 numbers for each case."""
_MORE = 8
"""So many steps beyond what was asked for are tried."""
_ENOUGH = 32
"""At least about so many rows are looked at: a few may come out alike by chance."""
_WIDE, _NUMBERS = 128, 1 << 13
"""Of layers with less than so many numbers for each case, about so many in all are looked at."""

Sizes = tuple[int, ...]
"""Numbers of rows at which passes come out alike, rising."""


@dataclass(frozen=True)
class RowTrial:
    """Work on rows of this shape, to be looked at for several draws of its inputs and entries."""

    found: Callable[[Tensor], Sequence[Tensor]]
    """What comes of inputs (cases, *shape), each (cases, ...)."""
    shape: Sequence[int]
    times: int = 1
    draw: Callable[[torch.Generator], None] = lambda _: None
    """Draws entries, before each time but the first."""


def alike_sizes(
    trials: Sequence[RowTrial], device: torch.device, most: int, sizes: int, widths: Collection[int] = ()
) -> Sizes:
    """At most so many `sizes`, from about half of the last up to it, which has room for `most` cases or a few more.

    `widths` are how many numbers a case has in arrays that may not end among cases that count, see `row_widths`.
    Single rows are what is left where nothing is alike, and for whoever asks for no more: there is only one way to
    stand alone.
    """
    if most <= 1:
        return (1,)
    unit = _STEP * min(_MOST_THREADS, 1 << (torch.get_num_threads() - 1).bit_length())
    first = unit * -(-(most + SPARE) // unit)
    step = unit * -(-first // (unit * 2 * (sizes - 1)))
    good = [
        size for size in range(unit, first + _MORE * _STEP + 1, unit) if size > SPARE and end_well(size, widths, SPARE)
    ]
    for largest in (size for size in good if size >= first):
        below = (
            max((size for size in good if size <= wanted), default=0) for wanted in range(largest - step, 0, -step)
        )
        left = {*islice((size for size in below if size), sizes - 1), largest}
        for trial in trials:
            left &= _alike_in(trial, device, left)
            if largest not in left:
                break
        else:
            return tuple(sorted(left))
    return (1,)


def _alike_in(trial: RowTrial, device: torch.device, sizes: set[int]) -> set[int]:
    """Those of `sizes` at which all draws came out alike; none if not at the largest."""
    generator, largest = torch.Generator().manual_seed(3), max(sizes)
    for at in range(trial.times * max(1, _ENOUGH // largest)):
        if at:
            trial.draw(generator)
        inputs = torch.randn((2 * largest, *trial.shape), generator=generator).to(device)
        rows, every = trial.found(_laid_out(inputs[:largest])), torch.arange(largest)
        if not all(_alike(rows, trial.found(_laid_out(inputs[order])), order) for order in _other_orders(largest)):
            return set()
        smaller = [size for size in sizes if size < largest]
        sizes = {largest, *(n for n in smaller if _alike(rows, trial.found(_laid_out(inputs[:n])), every[:n]))}
    return sizes


def _other_orders(count: int) -> Iterator[Tensor]:
    """Every row that counts far away from its place; and beside it, with others in place of every second one."""
    every = torch.arange(count)
    own, spare = every[:-SPARE], every[-SPARE:]
    yield torch.cat([own.flip(0), spare])
    yield torch.cat([torch.where(own % 2 == 0, own, own + count).roll(1), spare + count])


def _alike(rows: Sequence[Tensor], others: Sequence[Tensor], order: Tensor) -> bool:
    """Whether `others`, as far as they are among the rows, are these in this order, to the bit; but for spare ones."""
    known = order < len(rows[0])
    known[-SPARE:] = False
    return all(
        torch.equal(own[order[known].to(own.device)], other[known.to(own.device)])
        for own, other in zip(rows, others, strict=True)
    )


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
    entries = _floats(model)
    before = [entry.detach().clone() for entry in entries]
    training = [part for part in model.modules() if part.training]
    try:
        model.eval()
        draw_entries(model, torch.Generator().manual_seed(1))
        yield
    finally:
        with torch.no_grad():
            for entry, value in zip(entries, before, strict=True):
                entry.copy_(value)
        for part in training:
            part.training = True


def draw_entries(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what they are multiplied with; scales, means and variances from .5 to 1.5."""
    with torch.no_grad():
        for entry in _floats(model):
            if entry.ndim < 2:
                entry.copy_(torch.rand(entry.shape, generator=generator) + 0.5)
            else:
                drawn = torch.randn(entry.shape, generator=generator)
                entry.copy_(drawn / math.sqrt(entry[0].numel()))


def _floats(model: nn.Module) -> list[Tensor]:
    entries = {id(entry): entry for entry in (*model.parameters(), *model.buffers())}
    return [entry for entry in entries.values() if entry.is_floating_point()]


def narrow_layers(model: nn.Module, work: Callable[[], object], cases: int) -> list[RowTrial]:
    """Trials for layers with few numbers for each case, of which `work` on so many `cases` makes use.

    A sum in another order often has the same last digit: where a pass gives two numbers for each case, as a head may,
    it takes many draws to see that none depends on its place.
    """
    seen: dict[Hashable, RowTrial] = {}

    def see(layer: nn.Module, given: tuple[Tensor, ...], came: Tensor) -> None:
        shape = given[0].shape[1:]
        fewest = min(shape.numel(), came[0].numel()) if len(given[0]) == len(came) == cases else _WIDE
        if fewest < _WIDE:
            times = -(-_NUMBERS // (fewest * _ENOUGH))
            trial = RowTrial(partial(_through, layer), shape, times, partial(draw_entries, layer))
            seen.setdefault((type(layer), layer.extra_repr(), shape), trial)

    leaves = [part for part in model.modules() if not any(part.children()) and any(True for _ in part.parameters())]
    handles = [part.register_forward_hook(see) for part in leaves]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())


def _through(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What comes out of a layer, and what comes back through it."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        seen = inputs.detach().requires_grad_()
        came = layer.forward(seen)  # and no hook sees it
        (back,) = torch.autograd.grad(came.square().sum(), [seen])
    return [came.detach(), back]
