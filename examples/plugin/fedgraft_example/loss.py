"""Losses of one's own: one that looks at each case by itself, and one that compares the cases of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Focal:
    """-(1 - p)^gamma log p of the true class: cases that are sure already count less.

    Lin et al. 2017, "Focal loss for dense object detection". Each case has a loss of its own, so a stage that trains
    with differential privacy can have it.
    """

    scope = "per_sample"
    requires = ("labels",)
    tasks = ("multiclass",)

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, *, outputs: Tensor, targets: Tensor) -> Tensor:
        """(n,) of logits (n, classes) and class numbers (n,)."""
        log_chance = -F.cross_entropy(outputs, targets, reduction="none")
        return -((1 - log_chance.exp()) ** self.gamma) * log_chance


class Decorrelation:
    """The mean square of the features' correlations: keeps features from collapsing where sites differ.

    Shi et al. 2023, "Towards understanding and mitigating dimensional collapse in heterogeneous federated learning"
    (FedDecorr). Batch by batch, so a stage with differential privacy cannot have it.
    """

    scope = "per_batch"
    requires = ("features",)

    def __call__(self, *, features: Tensor) -> Tensor:
        """One number of features (n, dim)."""
        centred = features - features.mean(dim=0)
        scaled = centred / (centred.var(dim=0, unbiased=False) + 1e-6).sqrt()
        correlation = scaled.T @ scaled / max(1, len(features))
        return torch.mean(correlation**2)
