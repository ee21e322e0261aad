"""Stochastic gradient descent on the CPU, step by step the sums of `torch.optim.SGD` and nothing around them.

A visit to a small site is one step or two. torch's optimiser brings a profiler's mark, hooks and the choice between
kernels to each, which there cost more than the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class PlainSgd:
    """SGD with momentum and weight decay (no dampening, no Nesterov), to the last bit as torch has it on a CPU."""

    def __init__(self, groups: Sequence[dict[str, Any]], momentum: float, weight_decay: float) -> None:
        """`groups` are parameters (`params`) and their rate (`lr`), as torch's optimisers take them."""
        self.param_groups = list(groups)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._moving: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient along it, in place."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            along = [parameter.grad for parameter in moved]
            if self._weight_decay:
                along = torch._foreach_add(along, moved, alpha=self._weight_decay)
            if self._momentum:
                along = [self._moved(parameter, new) for parameter, new in zip(moved, along, strict=True)]
            torch._foreach_add_(moved, along, alpha=-group["lr"])

    def _moved(self, parameter: nn.Parameter, new: Tensor) -> Tensor:
        """The parameter's moving sum of gradients after one more."""
        before = self._moving.get(parameter)
        if before is None:
            self._moving[parameter] = new.clone()
            return self._moving[parameter]
        return before.mul_(self._momentum).add_(new)
