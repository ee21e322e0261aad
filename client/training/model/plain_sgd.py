"""Stochastic gradient descent on the CPU, step by step the sums of `torch.optim.SGD` and nothing around them.

A visit to a small site is one step or two. torch's optimiser brings a profiler's mark, hooks and the choice between
kernels to each, which there cost more than the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PlainSgd:
    """SGD with momentum and weight decay (no dampening, no Nesterov), to the last bit as torch has it on a CPU."""

    def __init__(self, groups: Sequence[dict[str, Any]], momentum: float, weight_decay: float) -> None:
        """`groups` are parameters (`params`) and their rate (`lr`), as torch's optimisers take them.

        `bare`, if it is there, are the parameters without a graph, of the same memory. No gradient is written to, and
        whoever writes to one after its step changes what moves on.
        """
        self.param_groups = list(groups)
        # Over the same memory, and of no graph: what is done to them needs no mode without gradients.
        self._bare = [group.get("bare") or [one.detach() for one in group["params"]] for group in self.param_groups]
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._moving: dict[int, tuple[Tensor, bool]] = {}
        """Moving sums, and whether their memory is this optimiser's own."""

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Move each parameter that has a gradient along it, in place."""
        for group, bare in zip(self.param_groups, self._bare, strict=True):
            pairs = zip(group["params"], bare, strict=True)
            found = [(parameter.grad, own) for parameter, own in pairs if parameter.grad is not None]
            if not found:
                continue
            along, moved = [gradient for gradient, _ in found], [own for _, own in found]
            if self._weight_decay:
                along = list(torch._foreach_add(along, moved, alpha=self._weight_decay))
            if self._momentum:
                along = [self._moved(own, new) for own, new in zip(moved, along, strict=True)]
            torch._foreach_add_(moved, along, alpha=-group["lr"])

    def _moved(self, own: Tensor, new: Tensor) -> Tensor:
        """The moving sum of a parameter's gradients after one more."""
        known = self._moving.get(id(own))
        if known is None:  # the first gradient itself, which is not written to: a visit may have no second step
            self._moving[id(own)] = new, False
            return new
        before, mine = known
        after = before.mul_(self._momentum) if mine else before.mul(self._momentum)
        self._moving[id(own)] = after.add_(new), True
        return after
