"""First-order MAML in a training loop: some steps lead ahead, and the next one's gradient counts where they began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgraft.common.study.stages.training import InnerSteps


class Ahead:
    """Steps in groups of `spec.steps` that lead ahead, and one that counts; without `spec` all count.

    Finn et al. 2017, first-order form: w = w - eta g(w - alpha g(w)), each g on other cases.
    """

    def __init__(self, spec: InnerSteps | None, parameters: Sequence[nn.Parameter]) -> None:
        self._spec = spec
        self._parameters = list(parameters)
        self._before: list[Tensor] = []

    @property
    def length(self) -> int:
        """Steps of one group: the inner ones and the one that counts; 1 without inner steps."""
        return 1 if self._spec is None else self._spec.steps + 1

    def counts(self, step: int) -> bool:
        """Whether the `step`-th step (from 0) changes the model for good."""
        return (step + 1) % self.length == 0

    def lead(self) -> None:
        """Take a plain step along the gradients, to be taken back."""
        assert self._spec is not None
        self._before = self._before or [parameter.detach().clone() for parameter in self._parameters]
        with torch.no_grad():
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-self._spec.lr)

    def back(self) -> None:
        """Return to where the group began, with the gradients of where it led."""
        if not self._before:
            return
        with torch.no_grad():
            for parameter, before in zip(self._parameters, self._before, strict=False):
                parameter.copy_(before)
        self._before = []
