"""AdamW on the CPU, step by step the sums of `torch.optim.AdamW` and nothing around them.

torch's optimisers import its compiler before their first step, also where nothing is compiled: two seconds and a tenth
of a gigabyte, which a small simulation otherwise needs for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIRST, _SECOND, _EPS = 0.9, 0.999, 1e-8
"""As torch has them if nothing else is said."""


class PlainAdamW:
    """AdamW (no AMSGrad) with weight decay apart from the gradient, to the last bit as torch has it on a CPU."""

    def __init__(self, groups: Sequence[dict[str, Any]], weight_decay: float) -> None:
        """`groups` are parameters (`params`) and their rate (`lr`), as torch's optimisers take them."""
        self.param_groups = list(groups)
        # Over the same memory, and of no graph: what is done to them needs no mode without gradients.
        self._known = [[_Moments(parameter.detach()) for parameter in group["params"]] for group in self.param_groups]
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self) -> None:
        """Move each parameter that has a gradient, in place."""
        for group, known in zip(self.param_groups, self._known, strict=True):
            for parameter, moments in zip(group["params"], known, strict=True):
                if parameter.grad is not None:
                    moments.step(parameter.grad, group["lr"], self._weight_decay)


@dataclass
class _Moments:
    """A parameter, its steps so far, and the moving sums of its gradients and of their squares."""

    own: Tensor
    count: float = 0.0
    first: Tensor | None = None
    second: Tensor | None = None

    def step(self, gradient: Tensor, rate: float, weight_decay: float) -> None:
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(self.own), torch.zeros_like(self.own)
        self.count += 1
        if weight_decay:
            self.own.mul_(1 - rate * weight_decay)
        self.first.lerp_(gradient, 1 - _FIRST)
        self.second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
        length = rate / (1 - _FIRST**self.count)
        spread = self.second.sqrt().div_((1 - _SECOND**self.count) ** 0.5).add_(_EPS)
        self.own.addcdiv_(self.first, spread, value=-length)
