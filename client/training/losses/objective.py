"""The weighted sum of a stage's losses, as the training loop uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.training.losses.adaptation.adversarial import adversarial_loss
from fedgraft.client.training.losses.adaptation.discrepancy import discrepancy_loss
from fedgraft.client.training.losses.adaptation.distill import distill_loss
from fedgraft.client.training.losses.adaptation.infomax import infomax_loss
from fedgraft.client.training.losses.adaptation.pseudo_label import pseudo_label_loss
from fedgraft.client.training.losses.base import (
    ForwardOutput,
    LossFunction,
    Regulariser,
    StepContext,
    Visit,
)
from fedgraft.client.training.losses.machine import LocalMachine
from fedgraft.client.training.losses.plugged import plugged_loss
from fedgraft.client.training.losses.proximal import proximal_term
from fedgraft.client.training.losses.supervised import supervised_loss
from fedgraft.client.training.model.local_model import leave_gradient
from fedgraft.common.methods.memory.method import Pass
from fedgraft.common.study.stages.losses import (
    Adversarial,
    Discrepancy,
    Distill,
    InfoMax,
    PluggedLoss,
    Proximal,
    PseudoLabel,
    Supervised,
    sees_features,
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
        machine = LocalMachine(visit.local_model, visit.loader)
        self._methods = visit.visit_context.methods
        self._steps = steps = [one.method.step(one.visit, machine) for one in self._methods]
        self._losses += [(1.0, _of_target(step.loss)) for step in steps if step.loss is not None]
        self._regularisers += [(1.0, step.regulariser) for step in steps if step.regulariser is not None]
        self.sees_features = sees_features(losses) or any(method.sees_features for method in visit.spec.methods)
        """Whether any of it looks at features."""
        self._around = [step.around for step in steps if step.around is not None]
        self._parameters = {key: visit.local_model.parameters[key] for key in visit.trained}

    def loss(self, step_context: StepContext) -> Tensor:
        """The weighted sum of what looks at cases; a loss alone that counts once is left as it is, to the last bit."""
        parts = [loss(step_context) if weight == 1 else weight * loss(step_context) for weight, loss in self._losses]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def leave_gradients(self, one_pass: Pass, progress: float) -> Tensor:
        """The step's gradients, by as many passes as the stage's methods ask for; the loss."""
        for around in self._around:
            one_pass = partial(around, one_pass, progress)
        return one_pass()

    def finish(self) -> None:
        """The steps are done: let the stage's methods remember what they have come to."""
        for one, step in zip(self._methods, self._steps, strict=True):
            if step.own is not None:
                one.remembers(step.own())

    def add_regularisers(self) -> None:
        """Add the gradients of the other losses to those that a backward pass, or noise, has left."""
        for weight, add_regularisers in self._regularisers:
            for key, gradient in add_regularisers().items():
                if (parameter := self._parameters.get(key)) is None:  # frozen in this part of the visit
                    continue
                if parameter.grad is None:
                    leave_gradient(parameter, weight * gradient)
                else:
                    parameter.grad.add_(gradient, alpha=weight)


def _of_target(loss: Callable[[ForwardOutput], Tensor]) -> LossFunction:
    """A method's loss, which looks at the site's own cases."""
    return lambda step_context: loss(step_context.target)
