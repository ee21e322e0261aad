"""A cohort that is too large for the GPU's memory, on its way there batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

_AHEAD = 2
"""So many batches are under way while one is worked on."""


def streamed(inputs: Tensor, groups: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The rows of `inputs` (cases, ...), in the CPU's memory, at the positions of each group, on the GPU `device`.

    A thread gathers the next rows in pinned memory, and a stream of its own copies them, so that neither the steps that
    are queued nor the one that is worked on wait for them. Raises torch.OutOfMemoryError.
    """
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent(indices: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        pinned = torch.empty((len(indices), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=True)
        torch.index_select(inputs, 0, indices, out=pinned)
        with torch.cuda.stream(copies):
            return pinned.to(device, non_blocking=True), copies.record_event()

    with ThreadPoolExecutor(1) as thread:
        waiting = iter(groups)
        ahead: deque[Future[tuple[Tensor, torch.cuda.Event]]] = deque()
        for indices in waiting:
            ahead.append(thread.submit(sent, indices))
            if len(ahead) > _AHEAD:
                yield _arrived(*ahead.popleft().result())
        while ahead:
            yield _arrived(*ahead.popleft().result())


def _arrived(rows: Tensor, event: torch.cuda.Event) -> Tensor:
    """The rows, for work that is queued from now on; their memory is not given to another batch before it is done."""
    now = torch.cuda.current_stream(rows.device)
    now.wait_event(event)
    rows.record_stream(now)
    return rows


def placed(groups: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Positions on the device, in one copy: each copy of a few numbers would wait for all that is queued there."""
    if device.type == "cpu" or not groups:
        return groups
    return torch.split(torch.cat(list(groups)).to(device), [len(group) for group in groups])
