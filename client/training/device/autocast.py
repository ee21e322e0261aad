"""How cases go through a model: in half precision on a GPU, and in halves where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS: AbstractContextManager[None] = nullcontext()


def half_precision(device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bfloat16 on a GPU; on a CPU all stays as it is."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else _AS_IT_IS


def in_halves(work: Callable[[Tensor], Mapping[str, Tensor]], inputs: Tensor) -> Mapping[str, Tensor]:
    """`work` on cases that have nothing to do with each other, in halves where memory runs out."""
    try:
        return work(inputs)
    except torch.OutOfMemoryError:
        if len(inputs) < 2:
            raise
    halves = [in_halves(work, half) for half in inputs.tensor_split(2)]
    return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}


def features_in_halves(work: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The same for `work` that gives one tensor."""
    return in_halves(lambda cases: {"": work(cases)}, inputs)[""]
