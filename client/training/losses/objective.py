"""The weighted sum of a stage's terms, as the training loop uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedgraft.client.training.losses.adversarial import adversarial_term
from fedgraft.client.training.losses.base import (
    Glance,
    Loss,
    Pull,
    Visit,
)
from fedgraft.client.training.losses.control_variate import control_term
from fedgraft.client.training.losses.discrepancy import discrepancy_term
from fedgraft.client.training.losses.distill import distill_term
from fedgraft.client.training.losses.infomax import infomax_term
from fedgraft.client.training.losses.proximal import anchor_term
from fedgraft.client.training.losses.pseudo_label import pseudo_label_term
from fedgraft.client.training.losses.supervised import supervised_term
from fedgraft.common.study.losses import (
    Adversarial,
    Anchor,
    Control,
    Discrepancy,
    Distill,
    InfoMax,
    PseudoLabel,
    Supervised,
)

LOSSES: Mapping[type, Callable[[Any, Visit], Loss]] = {
    Supervised: supervised_term,
    Adversarial: adversarial_term,
    Discrepancy: discrepancy_term,
    InfoMax: infomax_term,
    PseudoLabel: pseudo_label_term,
    Distill: distill_term,
}
"""Terms that look at cases."""

PULLS: Mapping[type, Callable[[Any, Visit], Pull]] = {Anchor: anchor_term, Control: control_term}
"""Terms that look at the model's entries alone."""


class Objective:
    """The terms of one visit."""

    def __init__(self, visit: Visit) -> None:
        terms = visit.spec.terms
        self._losses = [(term.weight, LOSSES[type(term)](term, visit)) for term in terms if type(term) in LOSSES]
        self._pulls = [(term.weight, PULLS[type(term)](term, visit)) for term in terms if type(term) in PULLS]
        self._parameters = visit.bench.parameters

    def loss(self, glance: Glance) -> Tensor:
        """The weighted sum of what looks at cases; a term alone that counts once is left as it is, to the last bit."""
        parts = [loss(glance) if weight == 1 else weight * loss(glance) for weight, loss in self._losses]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def pull(self) -> None:
        """Add the gradients of the other terms to those that a backward pass, or noise, has left."""
        for weight, pull in self._pulls:
            for key, gradient in pull().items():
                parameter = self._parameters[key]
                if parameter.grad is None:
                    parameter.grad = weight * gradient
                else:
                    parameter.grad.add_(gradient, alpha=weight)
