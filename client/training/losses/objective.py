"""The weighted sum of a stage's losses, as the training loop uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.training.losses.adversarial import adversarial_loss
from fedgraft.client.training.losses.base import (
    ForwardOutput,
    LossFunction,
    Regulariser,
    StepContext,
    Visit,
)
from fedgraft.client.training.losses.discrepancy import discrepancy_loss
from fedgraft.client.training.losses.distill import distill_loss
from fedgraft.client.training.losses.infomax import infomax_loss
from fedgraft.client.training.losses.machine import LocalMachine
from fedgraft.client.training.losses.plugged import plugged_loss
from fedgraft.client.training.losses.proximal import proximal_term
from fedgraft.client.training.losses.pseudo_label import pseudo_label_loss
from fedgraft.client.training.losses.supervised import supervised_loss
from fedgraft.common.study.stages.losses import (
    Adversarial,
    Discrepancy,
    Distill,
    InfoMax,
    PluggedLoss,
    Proximal,
    PseudoLabel,
    Supervised,
)

LOSSES: Mapping[type, Callable[[Any, Visit], LossFunction]] = {
    Supervised: supervised_loss,
    Adversarial: adversarial_loss,
    Discrepancy: discrepancy_loss,
    InfoMax: infomax_loss,
    PseudoLabel: pseudo_label_loss,
    Distill: distill_loss,
    PluggedLoss: plugged_loss,
}
"""Losses that look at cases."""

REGULARISERS: Mapping[type, Callable[[Any, Visit], Regulariser]] = {
    Proximal: proximal_term,
}
"""Losses that look at the model's entries alone."""


class Objective:
    """The weighted sum of losses that one visit minimises, with what methods add to it."""

    def __init__(self, visit: Visit) -> None:
        losses = visit.spec.losses
        self._losses = [(spec.weight, LOSSES[type(spec)](spec, visit)) for spec in losses if type(spec) in LOSSES]
        self._regularisers = [
            (spec.weight, REGULARISERS[type(spec)](spec, visit)) for spec in losses if type(spec) in REGULARISERS
        ]
        machine = LocalMachine(visit.local_model)
        self.steps = [one.method.step(one.visit, machine) for one in visit.visit_context.methods]
        """What the stage's methods add to each step."""
        self._losses += [(1.0, _of_target(step.loss)) for step in self.steps if step.loss is not None]
        self._regularisers += [(1.0, step.regulariser) for step in self.steps if step.regulariser is not None]
        self._parameters = visit.local_model.parameters

    def loss(self, step_context: StepContext) -> Tensor:
        """The weighted sum of what looks at cases; a loss alone that counts once is left as it is, to the last bit."""
        parts = [loss(step_context) if weight == 1 else weight * loss(step_context) for weight, loss in self._losses]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def add_regularisers(self) -> None:
        """Add the gradients of the other losses to those that a backward pass, or noise, has left."""
        for weight, add_regularisers in self._regularisers:
            for key, gradient in add_regularisers().items():
                parameter = self._parameters[key]
                if parameter.grad is None:
                    parameter.grad = weight * gradient
                else:
                    parameter.grad.add_(gradient, alpha=weight)


def _of_target(loss: Callable[[ForwardOutput], Tensor]) -> LossFunction:
    """A method's loss, which looks at the site's own cases."""
    return lambda step_context: loss(step_context.target)
